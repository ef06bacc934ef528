"""Is every bad input one clear error before any work, and does each task run from its config?"""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from PIL import Image

from ldm import app
from ldm.app import fit
from ldm.app.job import build_job
from ldm.cli import ConfigError
from ldm.io import checkpoint as files
from ldm.io.frozen import write_tensors

Config = dict[str, Any]
Refused = Callable[..., str]


@pytest.fixture
def refused(
    tiny_cfg: Callable[..., Config], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Refused:
    """refused("key=value", …, {"key": value}): the text of the one error, before any step."""
    monkeypatch.setattr(fit, "_fit", lambda *_: pytest.fail("the run began"))

    def run(*changes: str, values: Config | None = None, run_dir: Path | None = None) -> str:
        cfg = deepcopy(tiny_cfg(run_dir or tmp_path / "run", *changes))
        for path, value in (values or {}).items():
            *parents, last = path.split(".")
            node = cfg
            for key in parents:
                node = node.setdefault(key, {})
            node[last] = value
        with pytest.raises(ConfigError) as caught:
            app.train(cfg)
        if run_dir is None:
            assert not (tmp_path / "run" / "card.json").exists()  # the next try may use the folder
        return str(caught.value)

    return run


# what came, and the parts of the error that say so, what is allowed and what to do
VALUES: list[tuple[Config, list[str]]] = [
    ({"sede": 1}, ["sede is unknown (did you mean 'seed'?)"]),
    ({"training.batchsize": 8}, ["training.batchsize", "did you mean 'batch_size'"]),
    ({"training.optim.learning_rate": 1.0}, ["training.optim.learning_rate", "known here:", "lr"]),
    ({"models.unet.widths": [1]}, ["models.unet.widths is unknown", "block_out_channels"]),
    ({"training.callbacks.sample": {}}, ["training.callbacks.sample", "did you mean 'samples'"]),
    ({"sampling.step": 3}, ["sampling.step", "did you mean 'steps'"]),
    ({"diffusion.offset": 0.1}, ["diffusion.offset", "did you mean 'offset_noise'"]),
    ({"models.vae_weight": "x"}, ["models.vae_weight", "did you mean 'vae_weights'"]),
    ({"models.unet": "tiny"}, ["models.unet='tiny'", "write models/unet=tiny"]),
    ({"data": "emoji"}, ["data='emoji'", "write data=emoji"]),
    ({"data.size": 30}, ["data.size=30", "not a multiple of 8", "factor 4", "use 24 or 32"]),
    ({"data.size": 0}, ["size=0"]),
    ({"sampling.size": [32, 30]}, ["sampling.size=30", "not a multiple of 8", "use 24 or 32"]),
    ({"sampling.size": 32}, ["sampling.size=32 is a int"]),
    ({"sampling.steps": 0}, ["sampling.steps=0; allowed: 1 to 2000"]),
    ({"sampling.steps": "x"}, ["sampling.steps='x' is a str; allowed: int"]),
    ({"sampling.sampler": "dddim"}, ["'dddim' is unknown (did you mean 'ddim'?)", "plms"]),
    ({"sampling.sampler": "euler", "sampling.eta": 1.0}, ["eta=1.0", "eta=0", "ddim"]),
    ({"data.train.shards": "/nowhere/x-{0..3}.tar"}, ["/nowhere/x-0.tar"]),
    ({"data.val.shards": "/nowhere/v.tar"}, ["/nowhere/v.tar"]),
    ({"data.crop": "left"}, ["data", "'left'", "center", "random"]),
    ({"data.mode": "weird"}, ["weird", "ordered", "stream"]),
    ({"models.vae_weights": "/nowhere/vae"}, ["/nowhere/vae", "does not exist"]),
    ({"models.vae_weights": None}, ["models.vae_weights=null", "give tiny"]),
    ({"models.text.source": "/nowhere/clip"}, ["/nowhere/clip", "config.json"]),
    ({"init_from": "/nowhere/run"}, ["/nowhere/run does not exist", "a .ckpt"]),
    ({"resume": "/nowhere/x.ckpt"}, ["resume=/nowhere/x.ckpt does not exist", "give auto"]),
    ({"resume": "x.ckpt", "init_from": "tiny"}, ["resume=x.ckpt and init_from=tiny", "give one"]),
    ({"models.unet.cross_attention_dim": 64}, ["cross_attention_dim=64", "set it to 128"]),
    ({"models.unet.out_channels": 3}, ["out_channels=3", "4 latent channels"]),
    ({"training.batch_size": "x"}, ["training.batch_size='x' is a str; allowed: int"]),
    ({"training.batch_size": 0}, ["training.batch_size=0"]),
    ({"training.micro_batch": 3}, ["batch_size=8", "micro_batch=3", "one of [1, 2, 4, 8]"]),
    ({"training.max_samples": None}, ["training.max_samples=null", "2ep"]),
    ({"training.save_every": "often"}, ["training.save_every='often'", "2ep"]),
    ({"training.optim.lr": -1.0}, ["training.optim.lr=-1.0", "above 0"]),
    ({"training.ema.half_life": 0}, ["training.ema.half_life=0", "null for none"]),
    ({"training.trainer.devices": 0}, ["training.trainer.devices=0", "a number from 1"]),
    ({"training.trainer.precision": "fp8"}, ["precision='fp8'", "32-true, bf16-mixed"]),
    ({"training.trainer.profiler": "x"}, ["profiler='x'", "simple, advanced, pytorch"]),
    ({"training.logger.wandb_mode": "x"}, ["wandb_mode='x'", "auto, online, offline"]),
    ({"training.callbacks.samples.weights": "x"}, ["samples.weights='x'", "ema, raw"]),
    ({"training.callbacks.samples.prompts": "a cat"}, ["prompts='a cat' is a str", "list[str]"]),
    ({"training.callbacks.samples.seeds": [1]}, ["1 seeds for 4 prompts"]),
    ({"training.callbacks.validation.batch_size": 0}, ["validation", "batch_size=0"]),
    ({"task": "unet"}, ["task='unet'; allowed: diffusion, vae, clip"]),
    ({"weights": "best"}, ["weights='best'; allowed: ema, raw"]),
    ({"seed": 1.5}, ["seed=1.5; give an integer"]),
    ({"models.vae_dtype": "fp8"}, ["models.vae_dtype='fp8'; allowed: fp32, bf16, fp16"]),
]


@pytest.mark.parametrize(("values", "parts"), VALUES, ids=[" ".join(v) for v, _ in VALUES])
def test_bad_values(refused: Refused, values: Config, parts: list[str]) -> None:
    text = refused(values=values)
    assert [part for part in parts if part not in text] == []
    assert "Traceback" not in text
    assert "InstantiationException" not in text


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        (["diffusion/schedules=ztsnr"], ["eps", "use v"]),
        (["diffusion/schedules=flow"], ["flow"]),
        (["training.batch_size=5", "training.trainer.devices=2"], ["batch_size=5", "2 divides, 4"]),
        (["models/text=none"], ["cross_attention_dim=128", "set it to null"]),
        (["models/vae=identity"], ["out_channels=4", "3 latent channels"]),
        (["data=webdataset", "data.train.shards=???"], ["data.train.shards is required"]),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else None,
)
def test_bad_choices(refused: Refused, changes: list[str], parts: list[str]) -> None:
    text = refused(*changes)
    assert [part for part in parts if part not in text] == []


def test_a_gpu_that_is_not_there(refused: Refused) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    text = refused(values={"training.trainer.accelerator": "gpu"})
    assert "accelerator=gpu, but torch sees no GPU; use auto or cpu" in text


def test_misspelt_keys_of_an_experiment_file(refused: Refused, tmp_path: Path) -> None:
    """Hydra adds them in silence."""
    overlay = {"sede": 99, "training": {"optm": {"lr": 1}}, "data": {"sise": 3}}
    path = tmp_path / "conf" / "experiment" / "typo.yaml"
    path.parent.mkdir(parents=True)
    path.write_text("# @package _global_\n" + yaml.safe_dump(overlay))
    text = refused(f"hydra.searchpath=[file://{tmp_path / 'conf'}]", "experiment=typo")
    for part in ("sede", "'seed'", "training.optm", "'optim'", "data.sise", "'size'"):
        assert part in text


def test_every_problem_is_reported_at_once(refused: Refused) -> None:
    wrong: Config = {
        "sede": 1,
        "models.vae": "tiny",
        "training.optim.lr": 0,
        "training.batchsize": 1,
        "sampling.sampler": "x",
        "data.size": 30,
        "diffusion.schedules.zero_terminal_snr": True,
        "training.trainer.devices": 0,
        "task": "diffusion",
        "weights": "x",
    }
    text = refused(values=wrong)
    assert text.startswith("the configuration has problems:\n  ")
    for part in ("sede", "models/vae=tiny", "lr=0", "batchsize", "'x' is unknown", "use v"):
        assert part in text
    assert "devices=0" in text
    assert "weights='x'" in text
    assert len(text.splitlines()) >= 9


def test_a_folder_that_holds_another_run(refused: Refused, finished_run: Path) -> None:
    before = (finished_run / "card.json").read_bytes()
    text = refused(run_dir=finished_run)
    assert f"run_dir={finished_run} holds a run already; resume=auto goes on with it" in text
    assert (finished_run / "card.json").read_bytes() == before


def test_a_checkpoint_of_another_architecture(refused: Refused, finished_run: Path) -> None:
    wider = "models.unet.block_out_channels=[32,32]"
    text = refused("resume=auto", wider, "training.max_samples=64", run_dir=finished_run)
    assert "unet.block_out_channels was [16, 32] and is [32, 32] now (unsafe: arch" in text
    assert "init_from=" in text
    path = finished_run / "checkpoints" / "s000000016.ckpt"
    assert "[16, 32]" in refused(f"resume={path}", wider)
    assert "another architecture" in refused(f"init_from={finished_run}", wider)


def test_a_resumed_run_cannot_change_what_it_is(refused: Refused, finished_run: Path) -> None:
    text = refused(
        "resume=auto",
        "seed=1",
        "diffusion/prediction=v",
        "training.batch_size=4",
        "training.max_samples=64",
        run_dir=finished_run,
    )
    for part in ("seed was 0", "objective.prediction", "batch_size was 8"):
        assert part in text


def test_a_file_that_is_no_checkpoint(refused: Refused, tmp_path: Path) -> None:
    foreign = tmp_path / "sd.ckpt"
    torch.save({"state_dict": {}}, foreign)
    assert "is a pickle without named tensors" in refused(f"init_from={foreign}")
    page = tmp_path / "vae.safetensors"
    page.write_bytes(b"<!DOCTYPE html>")
    assert "a web page (HTML)" in refused(f"models.vae_weights={page}")
    write_tensors(page, {"w": torch.zeros(2)})
    assert "another architecture" in refused(f"models.vae_weights={page}")


def uncaptioned(path: Path, count: int = 12) -> Path:
    """A shard of pictures alone."""
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as archive:
        for n in range(count):
            buffer = io.BytesIO()
            Image.new("RGB", (32, 32), (n * 20, 0, 0)).save(buffer, "PNG")
            info = tarfile.TarInfo(f"{n:04d}.png")
            info.size = buffer.tell()
            archive.addfile(info, io.BytesIO(buffer.getvalue()))
    return path


def test_shards_without_captions(
    refused: Refused, tiny_cfg: Callable[..., Config], tmp_path: Path
) -> None:
    shard = uncaptioned(tmp_path / "x.tar")
    text = refused(f"data.train.shards={shard}")
    assert "x.tar" in text
    assert "caption" in text
    job = build_job(tiny_cfg(tmp_path, f"data.train.shards={shard}", "data.uncaptioned=true"))
    assert job.plan.train_size == 12


def test_a_folder_without_shards(refused: Refused, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    text = refused(f"data.train.shards={tmp_path / 'empty'}")
    assert "empty" in text
    assert ".tar" in text


def test_the_process_ends_with_one_line_and_code_1(
    script: Callable[..., Any], tmp_path: Path
) -> None:
    done = script("train", "training.batchsize=3", f"run_dir={tmp_path / 'run'}", cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr.count("error:") == 1
    assert "training.batchsize is unknown (did you mean 'batch_size'?)" in done.stderr
    assert "Traceback" not in done.stderr + done.stdout
    assert not (tmp_path / "run").exists()


# -- the other scripts ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        (["promt=x"], "did you mean 'prompt'"),
        ([], "give prompt="),
        (["prompt=x", "checkpoint=/nowhere"], "/nowhere does not exist"),
        (["prompt=x", "height=30"], "height=30 is not a multiple of 4"),
        (["prompt=x", "steps=0"], "steps=0; give 1 or more"),
        (["prompt=x", "steps=2001"], "steps=2001; allowed: 1 to 2000"),
        (["prompt=x", "height=0"], "height=0; give 1 or more"),
        (["prompt=x", "steps=many"], "steps='many' is a str"),
        (["prompt=x", "n=0"], "n=0"),
        (["prompt=x", "n=two"], "n='two' is a str"),
        (["prompt=x", "batch_size=0"], "batch_size=0"),
        (["prompt=x", "sampler=dddim"], "'dddim' is unknown"),
        (["prompt=x", "weights=best"], "weights='best'; allowed: ema, raw"),
        (["prompt=x", "dtype=fp8"], "dtype='fp8'; allowed: auto, fp32"),
        (["prompt=x", "seeds=3"], "seeds=3 is a int"),
        (["prompts=/nowhere.txt"], "/nowhere.txt"),
    ],
    ids=lambda v: " ".join(v) if isinstance(v, list) else None,
)
def test_bad_input_to_sample(
    composed: Callable[..., Config],
    finished_run: Path,
    tmp_path: Path,
    changes: list[str],
    part: str,
) -> None:
    where = () if any("checkpoint" in c for c in changes) else (f"checkpoint={finished_run}",)
    cfg = composed(*changes, *where, f"out={tmp_path / 'out'}", config="sample")
    with pytest.raises(ConfigError) as caught:
        app.sample(cfg)
    assert part in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_bad_input_to_evaluate_and_make_shards(
    composed: Callable[..., Config], tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match="did you mean 'checkpoint'"):
        app.evaluate(composed("checkpont=x", config="evaluate"))
    with pytest.raises(ConfigError, match="samples='x' is a str"):
        app.evaluate(composed("samples=x", config="evaluate"))
    with pytest.raises(ConfigError, match="out is not given"):
        app.make_shards(composed(config="make_shards"))
    with pytest.raises(ConfigError, match="did you mean 'count'"):
        app.make_shards(composed(f"out={tmp_path}", "data.coutn=3", config="make_shards"))


def test_make_shards_from_its_config(composed: Callable[..., Config], tmp_path: Path) -> None:
    cfg = composed(f"out={tmp_path}", "data.count=5", "writer.progress=false", config="make_shards")
    assert app.make_shards(cfg) == 0
    assert json.loads((tmp_path / "index.json").read_text())["samples"] == 5


def test_sampling_is_said_in_the_picture(
    composed: Callable[..., Config], finished_run: Path, tmp_path: Path
) -> None:
    arguments = ("prompt=a cat, on a mat", "n=2", "seed=5", "guidance=1", "steps=1")
    cfg = composed(*arguments, f"checkpoint={finished_run}", f"out={tmp_path}", config="sample")
    assert app.sample(cfg) == 0
    pictures = sorted(p for p in tmp_path.glob("*.png") if p.name != "grid.png")
    assert len(pictures) == 2
    assert (tmp_path / "grid.png").is_file()
    said = [json.loads(Image.open(path).text["ldm"]) for path in pictures]
    assert [entry["seed"] for entry in said] == [5, 6]
    assert said[0]["prompt"] == "a cat, on a mat"
    assert (said[0]["steps"], said[0]["guidance"], said[0]["weights"]) == (1, 1, "ema")


# -- the tasks ----------------------------------------------------------------------------------


SMALL_VAE = (
    "task=vae",
    "models.vae_weights=null",
    "models.vae.block_out_channels=[8,8]",
    "models.vae.norm_num_groups=4",
)
SMALL_CLIP = (
    "task=clip",
    "models/text=tiny_clip",
    "models.text.config.width=16",
    "models.text.config.text_layers=1",
    "models.text.config.vision_layers=1",
    "models.text.config.heads=2",
    "models.text.config.projection=16",
)


@pytest.mark.parametrize(("line", "prefix"), [(SMALL_VAE, "vae."), (SMALL_CLIP, "pair.")])
def test_the_other_tasks_train_and_resume_exactly(
    tiny_run: Callable[..., Path],
    tmp_path: Path,
    document: Callable[[Path], Config],
    differences: Callable[..., list[str]],
    metrics: Callable[..., list[dict[str, float]]],
    line: tuple[str, ...],
    prefix: str,
) -> None:
    changes = (*line, "training.val_every=16", "training.optim.warmup=0")
    tiny_run(tmp_path / "straight", *changes)
    tiny_run(tmp_path / "parts", *changes, "training.max_samples=16")
    tiny_run(tmp_path / "parts", *changes, "resume=auto")
    straight, parts = document(tmp_path / "straight"), document(tmp_path / "parts")
    for key in ("state_dict", "ema", "optimizer_states"):
        assert differences(straight[key], parts[key]) == []
    assert all(name.startswith(prefix) for name in straight["state_dict"])
    rows = metrics(tmp_path / "straight")
    extra = "val/psnr_raw" if prefix == "vae." else "val/top1_raw"
    assert sum(extra in row for row in rows) == 3  # at the start, in the middle, at the end


def test_init_from_starts_a_new_run_from_the_averaged_weights(
    tiny_cfg: Callable[..., Config], finished_run: Path, tmp_path: Path
) -> None:
    """`weights` says which; the lineage is in the card; nothing else is taken over."""
    path = finished_run / "checkpoints" / "s000000032.ckpt"
    source = files.read(path)
    for weights, expected in (("ema", source["ema"]["shadows"]), ("raw", source["state_dict"])):
        cfg = tiny_cfg(tmp_path, f"init_from={finished_run}", f"weights={weights}")
        job = build_job(cfg)
        for name, value in job.module.state_dict().items():
            assert torch.equal(value, expected[name]), name
            assert torch.equal(job.module.ema.shadows[name], expected[name]), name
        assert job.module.samples_seen == 0
        assert job.card["parent"]["weights"] == weights
        assert job.card["parent"]["samples_seen"] == 32
    assert build_job(tiny_cfg(tmp_path)).card.get("parent") is None


def test_a_vae_run_can_be_initialised_too(tiny_cfg: Callable[..., Config], tmp_path: Path) -> None:
    job = build_job(tiny_cfg(tmp_path, "task=vae", "models.vae_weights=tiny"))
    packaged = build_job(tiny_cfg(tmp_path)).encoders.codec.vae.state_dict()
    for name, value in job.module.vae.state_dict().items():
        assert torch.equal(value, packaged[name])


def test_the_run_folder_is_complete(finished_run: Path) -> None:
    names = {str(p.relative_to(finished_run)) for p in finished_run.rglob("*") if p.is_file()}
    assert names >= {
        "card.json",
        "config.yaml",
        "plan.txt",
        "metrics.csv",
        "frozen/vae.safetensors",
        "frozen/text/model.safetensors",
        "checkpoints/last.ckpt",
        "samples/s000000016.png",
        "samples/s000000032.png",
    }
    card = json.loads((finished_run / "card.json").read_text())
    assert card["objective"]["prediction"]["name"] == "eps"
    assert card["sampling"] | {"steps": 2, "size": [32, 32]} == card["sampling"]
    assert card["data"]["train_size"] == 96
    assert (card["task"], card["seed"], card["batch_size"], card["null"]) == (
        "diffusion",
        0,
        8,
        "empty",
    )
    config = yaml.safe_load((finished_run / "config.yaml").read_text())
    assert config["models"]["unet"]["block_out_channels"] == [16, 32]
    plan = (finished_run / "plan.txt").read_text()
    assert "32 samples = 4 steps" in plan
    assert str(finished_run) in plan


def test_the_configuration_that_is_kept_makes_the_same_run(
    tiny_cfg: Callable[..., Config], finished_run: Path
) -> None:
    kept = yaml.safe_load((finished_run / "config.yaml").read_text())
    assert kept == tiny_cfg(finished_run, "training.val_every=16", "training.sample_every=16")


def test_building_a_job_leaves_the_global_generator_alone(
    tiny_cfg: Callable[..., Config], tmp_path: Path
) -> None:
    """And the initial weights depend on the seed alone."""
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = build_job(tiny_cfg(tmp_path)).module.state_dict()
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    again = build_job(tiny_cfg(tmp_path)).module.state_dict()
    other = build_job(tiny_cfg(tmp_path, "seed=1")).module.state_dict()
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)
