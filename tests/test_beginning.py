"""Does a run begin from weights in every format, and say where they came from?"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from ldm import app
from ldm.app.job import build_job
from ldm.cli import ConfigError
from ldm.io import checkpoint as files
from ldm.io.convert import Conversion, convert
from ldm.io.load import load_model
from ldm.types import Conditioning

Config = dict[str, Any]
FORMATS = ("run", "document", "safetensors", "pickle", "diffusers", "native", "unet", "unet_file")
WHOLE = FORMATS[:-2]


@pytest.fixture(scope="module")
def places(finished_run: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The finished run in every format, and its UNet alone."""
    out = tmp_path_factory.mktemp("formats")
    made = {
        "safetensors": ("single", "model.safetensors"),
        "pickle": ("single", "model.ckpt"),
        "diffusers": ("diffusers", "folder"),
        "native": ("native", "native"),
    }
    for fmt, name in made.values():
        convert(Conversion(input=str(finished_run), output=out / name, format=fmt))
    shutil.copytree(out / "folder" / "unet", out / "only" / "unet")
    return {
        "run": finished_run,
        "document": finished_run / "checkpoints" / "last.ckpt",
        "unet": out / "only",
        "unet_file": out / "only" / "unet" / "diffusion_pytorch_model.safetensors",
        **{name: out / path for name, (_, path) in made.items()},
    }


def weights_of(job: Any) -> dict[str, torch.Tensor]:
    return {k.removeprefix("unet."): v for k, v in job.module.state_dict().items()}


@pytest.mark.parametrize("kind", FORMATS)
def test_every_format_gives_the_same_weights(
    places: dict[str, Path], tiny_cfg: Callable[..., Config], tmp_path: Path, kind: str
) -> None:
    job = build_job(tiny_cfg(tmp_path, f"init_from={places[kind]}"))
    expected = load_model(places["run"]).unet.state_dict()
    for name, value in weights_of(job).items():
        assert torch.equal(value, expected[name]), name
    parent = job.card["parent"]
    assert parent["source"] == str(places[kind])
    assert len(parent["hash"]) == 40
    if kind in WHOLE:
        assert parent["samples_seen"] == 32
        assert parent["weights"] == "ema"


@pytest.mark.parametrize("kind", WHOLE)
def test_the_encoders_come_along(
    places: dict[str, Path], tiny_run: Callable[..., Path], tmp_path: Path, kind: str
) -> None:
    """The command of `experiment=sd15_finetune` at tiny size: one step, then it goes on."""
    line = (
        f"init_from={places[kind]}",
        "models.vae_weights=init_from",
        "models.text.source=init_from",
        "training.max_samples=16",
        "training.save_every=8",
    )
    run_dir = tiny_run(tmp_path / "run", *line)
    card = json.loads((run_dir / "card.json").read_text())
    before = load_model(places["run"])
    assert card["vae"]["hash"] == before.card["vae"]["hash"]
    assert card["text"]["hash"] == before.text.hash()
    (run_dir / "checkpoints" / "s000000016.ckpt").unlink()
    tiny_run(run_dir, *line, "resume=auto")  # the same command line once more
    again = json.loads((run_dir / "card.json").read_text())
    assert again["parent"] == card["parent"]
    assert load_model(run_dir).card["samples_seen"] == 16


def test_the_card_says_what_changed(
    places: dict[str, Path], tiny_cfg: Callable[..., Config], tmp_path: Path
) -> None:
    cfg = tiny_cfg(tmp_path, f"init_from={places['run']}", "training.batch_size=4")
    changed = build_job(cfg).card["parent"]["changed"]
    assert changed == {"batch_size": [8, 4]}


def test_four_channels_become_nine(
    places: dict[str, Path], tiny_cfg: Callable[..., Config], tmp_path: Path
) -> None:
    """By name only; the new channels begin at zero, so nothing they are fed matters."""
    line = (f"init_from={places['run']}", "models.unet.in_channels=9", "+training/inpainting=masks")
    with pytest.raises(ValueError, match=r"conv_in\.weight: file \(16, 4.*model \(16, 9"):
        build_job(tiny_cfg(tmp_path, *line))
    unet = build_job(tiny_cfg(tmp_path, *line, "widen=[conv_in]")).module.unet.eval()
    narrow = load_model(places["run"]).unet
    x, rest = torch.randn(2, 4, 8, 8), torch.randn(2, 5, 8, 8)
    t, cond = torch.tensor([1.0, 700.0]), Conditioning(torch.randn(2, 24, 128))
    with torch.no_grad():
        got = unet(torch.cat([x, rest], 1), t, cond.context)
        torch.testing.assert_close(got, narrow(x, t, cond.context), rtol=0, atol=1e-6)
    assert not unet.conv_in.weight[:, 4:].any()


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (["widen=[conv_in]"], ["widen=['conv_in'] belongs to init_from"]),
        (["change=[predicton]", "init_from=tiny"], ["predicton", "prediction, schedule"]),
        (["widen=conv_in", "init_from=tiny"], ["widen='conv_in'", "give a list"]),
        (["models.vae_weights=init_from"], ["init_from=null", "give init_from"]),
        (["init_from=RUN", "widen=[conv_out]"], ["widen=conv_out", "input channels"]),
        (["init_from=RUN", "widen=[nowhere]"], ["widen=nowhere: no such layer", "conv_in"]),
        (
            ["init_from=RUN", "diffusion/prediction=v"],
            ["says eps", "diffusion/prediction says v", "change=[prediction]"],
        ),
        (["init_from=RUN", "diffusion/schedules=linear"], ["schedule", "beta_end 0.02"]),
        (
            ["init_from=RUN", "models.vae_weights=init_from", "models.vae.scaling_factor=2"],
            ["models.vae.scaling_factor=2", "has 1.0"],
        ),
        (["init_from=UNET", "models.vae_weights=init_from"], ["holds a UNet only"]),
    ],
)
def test_what_contradicts_names_both_sides(
    places: dict[str, Path],
    tiny_cfg: Callable[..., Config],
    tmp_path: Path,
    line: list[str],
    words: list[str],
) -> None:
    names = {"RUN": str(places["run"]), "UNET": str(places["unet"])}
    for name, place in names.items():
        line = [argument.replace(name, place) for argument in line]
    with pytest.raises(ConfigError) as error:
        app.train(tiny_cfg(tmp_path / "run", *line))
    assert all(word in str(error.value) for word in words), str(error.value)


def test_a_change_that_is_named_is_allowed(
    places: dict[str, Path], tiny_cfg: Callable[..., Config], tmp_path: Path
) -> None:
    line = (f"init_from={places['run']}", "diffusion/prediction=v", "change=[prediction]")
    assert build_job(tiny_cfg(tmp_path, *line)).card["objective"]["prediction"]["name"] == "v"


def test_a_run_goes_on_with_its_own_parent_only(
    places: dict[str, Path], tiny_run: Callable[..., Path], tmp_path: Path
) -> None:
    run_dir = tiny_run(tmp_path / "run", "training.max_samples=16")
    with pytest.raises(ConfigError, match=r"began from no weights, not from init_from="):
        tiny_run(run_dir, "resume=auto", f"init_from={places['run']}")


def test_what_was_converted_cannot_be_resumed(
    places: dict[str, Path], tiny_run: Callable[..., Path], tmp_path: Path
) -> None:
    copy = Path(shutil.copytree(places["native"], tmp_path / "native", symlinks=True))
    with pytest.raises(ConfigError, match=r"was converted.*init_from="):
        tiny_run(copy, "resume=auto")
    assert files.latest_valid(copy / "checkpoints") is not None


@pytest.mark.parametrize("kind", WHOLE)
def test_sampling_from_every_format(
    places: dict[str, Path], composed: Callable[..., Config], tmp_path: Path, kind: str
) -> None:
    """The same picture, bit for bit, whatever the weights lie in."""
    for name in (kind, "run"):
        cfg = composed(
            f"checkpoint={places[name]}", "prompt=a red circle", f"out={tmp_path / name}",
            "device=cpu", config="sample",
        )  # fmt: skip
        assert app.sample(cfg) == 0
    pictures = [next((tmp_path / name).glob("*.png")) for name in (kind, "run")]
    from PIL import Image

    assert Image.open(pictures[0]).tobytes() == Image.open(pictures[1]).tobytes()
