"""Do runs that train adapters, or the text encoder, begin, resume, sample and convert exactly?"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import ldm
from ldm import app
from ldm.adapters.attach import attach, detach, merge
from ldm.app import adapting
from ldm.cli import ConfigError

LORA = ("adapters=lora", "adapters.rank=4", "adapters.alpha=2", "adapters.dropout=0.1")
TEXT_LORA = (*LORA, 'adapters.text_targets=["*.self_attn.*_proj","*.mlp.fc?"]')
HYPER = ("adapters=hypernetwork", "adapters.cross_only=false")
KINDS = {
    "lora": LORA,
    "lora with text": TEXT_LORA,
    "hypernetwork": HYPER,
    "text": ("training.train=[text]",),
    "unet and text": ("training.train=[unet,text]",),
}
# what each keeps: the names in its document begin like this
KEPT = {
    "lora": {"adapters.unet"},
    "lora with text": {"adapters.unet", "adapters.text"},
    "hypernetwork": {"adapters.unet"},
    "text": {"text"},
    "unet and text": {"unet", "text"},
}
EXACT = ("state_dict", "ema", "optimizer_states", "lr_schedulers", "samples_seen", "global_step")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory, finished_run: Path) -> Path:
    """A model to tune: the finished run's, as a folder that is only read."""
    copy = tmp_path_factory.mktemp("base") / "base"
    return Path(shutil.copytree(finished_run, copy, symlinks=True))


@pytest.fixture
def tuned(base: Path, tiny_run: Callable[..., Path]) -> Callable[..., Path]:
    """tuned(run_dir, kind, …): a run of this kind on `base`, of 4 steps."""

    def run(run_dir: Path, kind: str, *changes: str, expect: int = 0) -> Path:
        lines = (f"init_from={base}", "training.gradient_clip=null", *KINDS[kind], *changes)
        last = {line.partition("=")[0]: line for line in lines}
        return tiny_run(run_dir, *last.values(), expect=expect)

    return run


def picture(pipe: ldm.Pipeline, seed: int = 3) -> np.ndarray:
    return np.asarray(pipe.txt2img(["a large red circle"], seeds=[seed], steps=3)[0]).astype(int)


@pytest.mark.parametrize("kind", KINDS)
def test_a_tuned_run_trains_what_it_says_and_nothing_else(
    kind: str, base: Path, tuned: Callable[..., Path], document: Callable[..., Any], tmp_path: Path
) -> None:
    run_dir = tuned(tmp_path / "run", kind)
    kept = document(run_dir)
    own = {".".join(name.split(".")[: 2 if name.startswith("adapters") else 1])
           for name in kept["state_dict"]}  # fmt: skip
    assert own == KEPT[kind]
    before, after = ldm.load(base), ldm.load(run_dir)
    for name, value in before.unet.state_dict().items():
        same = torch.equal(value, after.unet.state_dict()[name])
        assert same is ("unet" not in own), name
        if "unet" in own:
            break
    text = [torch.equal(a, b) for a, b in zip(
        before.text.module.state_dict().values(), after.text.module.state_dict().values(),
        strict=True)]  # fmt: skip
    assert all(text) is ("text" not in own)
    assert (picture(before) != picture(after)).any()
    raw = ldm.load(run_dir, weights="raw")
    assert (picture(raw) != picture(after)).any()  # the average is another one


@pytest.mark.parametrize("kind", [*KINDS, "unet and text, from init_from"])
def test_an_interrupted_run_goes_on_bit_for_bit(
    kind: str,
    tuned: Callable[..., Path],
    document: Callable[..., Any],
    differences: Callable[[Any, Any], list[str]],
    tmp_path: Path,
) -> None:
    kind, _, source = kind.partition(", from ")
    lines = [f"models.text.source={source}"] if source else []
    whole = document(tuned(tmp_path / "whole", kind, *lines))
    part = tuned(tmp_path / "part", kind, *lines)
    for path in (part / "checkpoints").glob("*32*"):
        path.unlink()
    tuned(part, kind, *lines, "resume=auto")
    resumed = document(part)
    for key in EXACT:
        assert differences(whole[key], resumed[key]) == []
    assert ldm.load(part).unet is not None  # what was resumed is a whole model


def test_a_run_resumes_from_a_named_checkpoint(
    tuned: Callable[..., Path],
    document: Callable[..., Any],
    differences: Callable[[Any, Any], list[str]],
    tmp_path: Path,
) -> None:
    whole = tuned(tmp_path / "run", "lora")
    expected = document(whole)
    for path in (whole / "checkpoints").glob("*32*"):
        path.unlink()
    first = whole / "checkpoints" / "s000000016.ckpt"
    tuned(whole, "lora", f"resume={first}", "init_from=null")
    for key in EXACT:
        assert differences(expected[key], document(whole)[key]) == []
    assert document(whole)["card"]["parent"] == expected["card"]["parent"]


def test_a_run_of_adapters_is_what_it_is_attached_to(
    base: Path, tuned: Callable[..., Path], tmp_path: Path
) -> None:
    """Loading the run, and attaching it to its base, draw the same; detached, the base is back."""
    for kind in ("lora with text", "hypernetwork"):
        run_dir = tuned(tmp_path / kind, kind)
        whole, pipe = ldm.load(run_dir), ldm.load(base)
        alone, prints = picture(pipe), pipe.fingerprint()
        name = pipe.attach(run_dir)
        assert (picture(pipe) == picture(whole)).all()
        assert pipe.fingerprint() != prints
        pipe.adapters.set_strength(name, 0.0)
        assert (picture(pipe) == alone).all()
        pipe.detach(name)
        assert (picture(pipe) == alone).all()
        assert pipe.fingerprint() == prints
        with pytest.raises(ValueError, match="attached are: none"):
            pipe.detach(name)


@pytest.mark.parametrize("form", ["native", "single"])
def test_conversion_merges_trained_adapters(
    form: str, tuned: Callable[..., Path], composed: Callable[..., Any], tmp_path: Path
) -> None:
    run_dir = tuned(tmp_path / "run", "lora with text")
    out = tmp_path / ("merged.safetensors" if form == "single" else "merged")
    cfg = composed(f"input={run_dir}", f"output={out}", f"format={form}", config="convert")
    assert app.convert(cfg) == 0
    whole, merged = ldm.load(run_dir), ldm.load(out)
    assert len(merged.adapters) == 0
    assert abs(picture(whole) - picture(merged)).max() <= 1
    x, t = torch.randn(2, whole.unet.config.in_channels, 8, 8), torch.tensor([10.0, 500.0])
    context = whole.text.encode(["a red circle", "x"]).context
    assert torch.allclose(merged.text.encode(["a red circle", "x"]).context, context, atol=1e-5)
    with torch.no_grad():
        assert torch.allclose(merged.unet(x, t, context), whole.unet(x, t, context), atol=1e-5)


def test_a_trained_hypernetwork_is_written_for_web_uis_and_is_not_merged(
    base: Path, tuned: Callable[..., Path], composed: Callable[..., Any], tmp_path: Path
) -> None:
    run_dir, out = tuned(tmp_path / "run", "hypernetwork"), tmp_path / "style.pt"
    line = [f"input={run_dir}", f"output={out}", "format=hypernetwork"]
    assert app.convert(composed(*line, config="convert")) == 0
    pipe = ldm.load(base)
    pipe.attach(out)
    assert (picture(pipe) == picture(ldm.load(run_dir))).all()
    line = [f"input={run_dir}", f"output={tmp_path / 'x'}", "format=native"]
    with pytest.raises(ConfigError, match="cannot be merged"):
        app.convert(composed(*line, config="convert"))


@pytest.mark.parametrize("form", ["lora_kohya", "lora_diffusers"])
def test_a_trained_lora_is_written_and_comes_back(
    form: str, base: Path, tuned: Callable[..., Path], composed: Callable[..., Any], tmp_path: Path
) -> None:
    run_dir, out = tuned(tmp_path / "run", "lora with text"), tmp_path / "l.safetensors"
    line = [f"input={run_dir}", f"output={out}", f"format={form}"]
    assert app.convert(composed(*line, config="convert")) == 0
    pipe = ldm.load(base)
    pipe.attach(out)
    assert (picture(pipe) == picture(ldm.load(run_dir))).all()
    line = [f"input={run_dir}", f"output={tmp_path / 'x.pt'}", "format=hypernetwork"]
    with pytest.raises(ConfigError, match="has a LoRA"):
        app.convert(composed(*line, config="convert"))


def test_a_lora_is_extracted_from_a_difference(
    base: Path, tuned: Callable[..., Path], composed: Callable[..., Any], tmp_path: Path
) -> None:
    """Of merged LoRAs of rank 4 nothing is lost at rank 4, and something at rank 1."""
    run_dir, merged = tuned(tmp_path / "run", "lora with text"), tmp_path / "merged"
    line = [f"input={run_dir}", f"output={merged}", "format=native"]
    assert app.convert(composed(*line, config="convert")) == 0
    x, t = torch.randn(2, 4, 8, 8), torch.tensor([10.0, 500.0])

    @torch.no_grad()
    def out_of(pipe: ldm.Pipeline) -> torch.Tensor:
        return pipe.unet(x, t, pipe.text.encode(["a red circle", "x"]).context)

    expected, worst = out_of(ldm.load(run_dir)), {}
    for rank in (1, 4):
        out = tmp_path / f"x{rank}.safetensors"
        line = [f"input={merged}", f"base={base}", f"output={out}", "format=lora_kohya"]
        line += [f"rank={rank}", f"text_rank={rank}"]
        assert app.convert(composed(*line, config="convert")) == 0
        pipe = ldm.load(base)
        pipe.attach(out)
        worst[rank] = (out_of(pipe) - expected).abs().max()
    assert worst[4] < 1e-5 < worst[1]


def test_sampling_takes_several_adapters_with_strengths(
    base: Path, tuned: Callable[..., Path], composed: Callable[..., Any], tmp_path: Path
) -> None:
    one, two = tuned(tmp_path / "one", "lora"), tuned(tmp_path / "two", "hypernetwork")
    out = tmp_path / "drawn"
    line = [
        f"checkpoint={base}",
        f"adapter=[{one}:0.123456789,{two}]",
        "prompt=a red circle",
        "steps=2",
    ]
    assert app.sample(composed(*line, f"out={out}", "seed=3", config="sample")) == 0
    pipe = ldm.load(base)
    pipe.attach(one, strength=0.123456789, name="a")
    pipe.attach(two, name="b")
    expected = pipe.txt2img(["a red circle"], seeds=[3], steps=2)[0]
    from PIL import Image

    (path,) = out.glob("*.png")
    with Image.open(path) as drawn:
        assert (np.asarray(drawn) == np.asarray(expected)).all()
    # the picture's recipe draws it again, and knows an adapter that has changed
    again = [f"recipe={path}", f"out={tmp_path / 'again'}"]
    assert app.sample(composed(*again, config="sample")) == 0
    (copy,) = (tmp_path / "again").glob("*.png")
    with Image.open(copy) as drawn:
        assert (np.asarray(drawn) == np.asarray(expected)).all()
    # ... or with other adapters, or none
    none = [f"recipe={path}", f"out={tmp_path / 'none'}", "adapter=[]"]
    assert app.sample(composed(*none, config="sample")) == 0
    (alone,) = (tmp_path / "none").glob("*.png")
    with Image.open(alone) as drawn:
        bare = ldm.load(base).txt2img(["a red circle"], seeds=[3], steps=2)[0]
        assert (np.asarray(drawn) == np.asarray(bare)).all()


def test_two_processes_train_a_lora_like_one(
    base: Path,
    tuned: Callable[..., Path],
    script: Callable[..., Any],
    document: Callable[..., Any],
    tmp_path: Path,
) -> None:
    two = tmp_path / "two"
    line = [f"init_from={base}", "training.gradient_clip=null", *TEXT_LORA[:3], TEXT_LORA[-1]]
    done = script("train", *line, f"run_dir={two}", "training.trainer.devices=2", cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    one = tuned(tmp_path / "one", "lora with text", "adapters.dropout=0")
    ours, theirs = document(one)["state_dict"], document(two)["state_dict"]
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        assert torch.allclose(value, theirs[name], rtol=1e-3, atol=2e-5), name


@pytest.mark.parametrize(
    "change",
    [
        "models.unet.checkpointing=true",
        "training.trainer.precision=bf16-mixed",
        "training.channels_last=true",
        "training.micro_batch=4",
    ],
)
def test_adapters_train_under(
    change: str, tuned: Callable[..., Path], document: Callable[..., Any], tmp_path: Path
) -> None:
    """The same LoRA as without, up to what the option is known to change."""
    loose = "bf16" in change
    plain = document(tuned(tmp_path / "a", "lora with text", "adapters.dropout=0"))["state_dict"]
    other = tuned(tmp_path / "b", "lora with text", "adapters.dropout=0", change)
    for name, value in document(other)["state_dict"].items():
        assert value.dtype == torch.float32
        assert value.abs().sum() > 0, name  # trained: up begins at zero
        if not loose:
            assert torch.allclose(value, plain[name], rtol=1e-3, atol=2e-5), name


def test_a_compiled_network_trains_its_adapter(
    base: Path, tiny_cfg: Callable[..., Any], tmp_path: Path
) -> None:
    """Attached before compiling: the compiled step has the same gradients."""
    from ldm.app.job import build_job

    cfg = tiny_cfg(tmp_path / "run", f"init_from={base}", *LORA[:3])
    norms = []
    for compile_it in (False, True):
        module = build_job(cfg).module
        for layer in module.adapters["unet"].named_layers().values():
            torch.manual_seed(0)
            layer.up.weight.data.normal_(std=0.02)
        if compile_it:
            module.unet.compile(backend="aot_eager")
        torch.manual_seed(1)
        x = torch.randn(2, 4, 8, 8)
        context = torch.randn(2, 5, module.unet.config.cross_attention_dim)
        module.unet(x, torch.tensor([3.0, 900.0]), context).square().mean().backward()
        norms.append([p.grad.clone() for p in module.adapters.parameters()])
        assert all(p.grad is None for p in module.unet.parameters())
    for plain, other in zip(*norms, strict=True):
        assert torch.allclose(plain, other, atol=1e-6)
        assert plain.abs().sum() > 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_merged_is_attached_under_checkpointing_and_in_half_precision(
    dtype: torch.dtype, base: Path
) -> None:
    from ldm.adapters.settings import LoRASettings
    from ldm.models.unet import UNet

    tuned = ldm.load(base).unet
    network = UNet(replace(tuned.config, checkpointing=True))
    network.load_state_dict(tuned.state_dict())
    network.to(dtype).train().requires_grad_(False)
    lora = LoRASettings(rank=2, alpha=4).build(network, None)["unet"]
    for parameter in lora.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    x, t = torch.randn(2, 4, 8, 8).to(dtype), torch.tensor([3.0, 900.0])
    context = torch.randn(2, 5, network.config.cross_attention_dim).to(dtype)
    before = network(x, t, context)
    attach(network, lora)
    attached = network(x, t, context)
    attached.float().square().mean().backward()  # through the checkpoints
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in lora.parameters())
    detach(network, lora)
    assert torch.equal(network(x, t, context), before)
    merge(network, lora)
    limit = 1e-5 if dtype == torch.float32 else 0.1 * float((attached - before).abs().max())
    assert torch.allclose(network(x, t, context), attached, atol=limit)
    assert (attached - before).abs().max() > 1e-2


# -- bad input ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (("adapters=lora",), "give init_from"),
        (("training.train=[text]",), "give init_from"),
        (("training.train=[]",), "nothing would be trained"),
        (("training.train=[vae]",), "give a list of unet and text"),
        (("adapters=lora", "training.train=[unet]", "init_from=tiny"), "leave them as they"),
        (("adapters=lora", "adapters.rank=0", "init_from=tiny"), "rank=0; give 1 or more"),
        (("adapters=lora", "adapters.rnk=3", "init_from=tiny"), "did you mean 'rank'"),
        (("adapters=lora", "adapters.text_rank=3", "init_from=tiny"), "names no layers"),
        (("adapters=lora", "widen=[conv_in]", "init_from=tiny"), "they would stay zero"),
    ],
)
def test_what_cannot_be_trained_is_said_at_once(
    changes: tuple[str, ...], message: str, tiny_cfg: Callable[..., Any], tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=message.replace("[", r"\[")):
        app.train(tiny_cfg(tmp_path / "run", *changes))


@pytest.mark.parametrize(
    ("kind", "changes", "message"),
    [
        ("lora", ('adapters.targets=["*.to_qq"]',), r"names no .*nearest: .*to_q"),
        ("lora", ("adapters.rank=4000",), "have rank .* at most"),
        ("lora with text", ("training.cache_captions=8",), "use 0"),
        ("text", ("models.text.dtype=bf16",), "too coarse to train"),
    ],
)
def test_what_does_not_fit_the_model_is_said_before_training(
    kind: str,
    changes: tuple[str, ...],
    message: str,
    tuned: Callable[..., Path],
    tmp_path: Path,
) -> None:
    with pytest.raises(ConfigError, match=message):
        tuned(tmp_path / "run", kind, *changes)
    assert not (tmp_path / "run" / "card.json").exists()


def test_another_adapter_is_another_architecture(
    tuned: Callable[..., Path], tmp_path: Path
) -> None:
    run_dir = tuned(tmp_path / "run", "lora")
    with pytest.raises(ConfigError, match=r"adapters\.unet.*allow=\[architecture\]"):
        tuned(run_dir, "lora", "adapters.rank=5", "resume=auto", "training.max_samples=40")


def test_a_run_with_adapters_is_merged_before_it_is_tuned_again(
    tuned: Callable[..., Path], tiny_run: Callable[..., Path], tmp_path: Path
) -> None:
    run_dir = tuned(tmp_path / "run", "lora")
    with pytest.raises(ConfigError, match="merge it first"):
        tiny_run(tmp_path / "next", f"init_from={run_dir}")


def test_the_frozen_unet_must_be_the_one_that_was_tuned(
    tuned: Callable[..., Path], tmp_path: Path
) -> None:
    from ldm.io.frozen import write_tensors
    from ldm.io.reading import open_tensors

    run_dir = tuned(tmp_path / "run", "lora")
    path = run_dir / "frozen" / "unet.safetensors"
    tensors = dict(open_tensors(path).read())
    tensors["conv_in.bias"] = tensors["conv_in.bias"] + 1e-3
    write_tensors(path, tensors)
    with pytest.raises(ValueError, match="is another UNet than the one trained with"):
        ldm.load(run_dir)


def test_a_trained_text_encoder_is_not_left_out_by_the_next_run(
    tuned: Callable[..., Path], tiny_run: Callable[..., Path], tmp_path: Path
) -> None:
    run_dir = tuned(tmp_path / "run", "text")
    with pytest.raises(ConfigError, match=r"give models\.text\.source=init_from"):
        tiny_run(tmp_path / "next", f"init_from={run_dir}")
    following = tiny_run(tmp_path / "next", f"init_from={run_dir}", "models.text.source=init_from")
    ours, theirs = ldm.load(run_dir).text, ldm.load(following).text
    assert ours.hash() == theirs.hash()


def test_nothing_is_extracted_from_models_with_adapters_or_without_a_difference(
    base: Path, tuned: Callable[..., Path], composed: Callable[..., Any], tmp_path: Path
) -> None:
    run_dir, out = tuned(tmp_path / "run", "lora"), tmp_path / "x.safetensors"
    for source, message in ((run_dir, "has adapters"), (base, "are equal in all")):
        line = [f"input={source}", f"base={base}", f"output={out}", "format=lora_kohya", "rank=2"]
        with pytest.raises(ConfigError, match=message):
            app.convert(composed(*line, config="convert"))
    assert not out.exists()


def test_keys_that_an_adapters_file_has_no_use_for_are_refused(
    tuned: Callable[..., Path], composed: Callable[..., Any], tmp_path: Path
) -> None:
    run_dir = tuned(tmp_path / "run", "hypernetwork")
    line = [f"input={run_dir}", f"output={tmp_path / 'x.pt'}", "format=hypernetwork"]
    line += ["verify=false", "licence=mit"]
    with pytest.raises(ConfigError, match=r"verify=False has no meaning(.|\n)*licence=mit"):
        app.convert(composed(*line, config="convert"))


def test_layers_behind_clip_skip_are_not_trained(
    tuned: Callable[..., Path], document: Callable[..., Any], tmp_path: Path
) -> None:
    """DDP would wait for their gradients."""
    lines = ("models.text.clip_skip=2",)
    shapes = document(tuned(tmp_path / "run", "text", *lines))["ema"]["shadows"]
    layers = {int(name.split("layers.")[1].split(".")[0]) for name in shapes if "layers." in name}
    assert layers == {0, 1, 2}  # of four
    shapes = document(tuned(tmp_path / "lora", "lora with text", *lines))["ema"]["shadows"]
    paths = [name for name in shapes if name.startswith("adapters.text")]
    layers = {int(path.split("encoder.layers.")[1].split(".")[0]) for path in paths}
    assert layers == {0, 1, 2}


def test_files_that_are_no_adapters_say_what_they_are(base: Path, tmp_path: Path) -> None:
    pipe = ldm.load(base)
    with pytest.raises(ValueError, match="whole model without adapters"):
        pipe.attach(base)
    with pytest.raises(FileNotFoundError, match="does not exist; give a LoRA file"):
        pipe.attach(tmp_path / "none.safetensors")
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(ValueError, match="is no adapter"):
        pipe.attach(tmp_path / "notes.txt")


def test_settings_that_contradict_are_listed() -> None:
    cfg = {"task": "vae", "adapters": {"_target_": "x"}, "training": {"train": ["unet"]}}
    assert len(adapting.trained_problems(cfg)) == 2
