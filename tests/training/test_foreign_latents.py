"""Do latents of an autoencoder that is not here train, go on, and say what they cannot do?"""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import ldm
from ldm import app
from ldm.cli import ConfigError
from ldm.io.convert import Conversion, convert, verify
from ldm.models.codec import Codec
from ldm.models.vae import Autoencoder, IdentityVAEConfig
from ldm.types import Conditioning

Config = dict[str, Any]
CHANNELS, SIDE, STD = 6, 4, 7.5


def write(path: Path, count: int, *, std: float = STD, seed: int = 0) -> Path:
    """Samples with a .npy [6,4,4] float32 around 2."""
    draws = np.random.default_rng(seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as archive:
        for n in range(count):
            buffer = io.BytesIO()
            values = 2 + std * draws.standard_normal((CHANNELS, SIDE, SIDE))
            np.save(buffer, values.astype(np.float32))
            for ext, data in (("npy", buffer.getvalue()), ("txt", b"a red circle")):
                info = tarfile.TarInfo(f"{n:03d}.{ext}")
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
    return path


@pytest.fixture
def foreign(tmp_path: Path) -> Callable[..., tuple[str, ...]]:
    """foreign(): the arguments of a run on 64 such samples, 8 px a latent position."""

    def arguments(shard: Path | None = None) -> tuple[str, ...]:
        shard = shard or write(tmp_path / "train.tar", 64)
        return (
            "models/vae=foreign",
            f"models.vae.latent_channels={CHANNELS}",
            "models.vae_weights=null",
            f"models.unet.in_channels={CHANNELS}",
            f"models.unet.out_channels={CHANNELS}",
            "data.format=latents",
            "data.size=32",
            f"data.train.shards={shard}",
            f"data.val.shards={write(tmp_path / 'val.tar', 8, seed=1)}",
            "training.sample_every=8",
            "training.val_every=16",
        )

    return arguments


@pytest.fixture
def trained(
    tiny_run: Callable[..., Path], foreign: Callable[..., tuple[str, ...]], tmp_path: Path
) -> Path:
    return tiny_run(tmp_path / "run", *foreign())


def scale_of(run_dir: Path) -> float:
    return float(json.loads((run_dir / "card.json").read_text())["vae"]["config"]["scaling_factor"])


def test_the_scale_is_one_by_their_deviation(
    trained: Path, metrics: Callable[[Path], list[dict[str, float]]]
) -> None:
    """In the card; validation works; pictures there are none."""
    assert scale_of(trained) == pytest.approx(1 / STD, rel=0.02)  # 6,144 numbers
    rows = metrics(trained)
    assert [row["samples_seen"] for row in rows if "val/loss_ema" in row] == [0, 16, 32]
    # at the start the network gives 0: what is left is the noise's own variance
    assert rows[0]["val/loss_raw"] == pytest.approx(1.0, abs=0.2)
    assert not (trained / "samples").exists()
    assert "sample every" in (trained / "plan.txt").read_text()
    assert "never" in (trained / "plan.txt").read_text().partition("sample every")[2].split("\n")[0]


def test_a_resumed_run_keeps_the_scale_of_its_card(
    trained: Path,
    tiny_cfg: Callable[..., Config],
    foreign: Callable[..., tuple[str, ...]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(
        "ldm.app.foreign._measured", lambda data: pytest.fail("the scale was measured again")
    )
    before = scale_of(trained)
    cfg = tiny_cfg(trained, *foreign(), "resume=auto", "training.max_samples=40", "allow=[lr]")
    assert app.train(cfg) == 0
    assert scale_of(trained) == before
    changes = ("resume=auto", "training.max_samples=48", "models.vae.scaling_factor=0.2")
    other = tiny_cfg(trained, *foreign(), *changes)
    with pytest.raises(ConfigError, match=r"scaling_factor was 0\.13\d+ and is 0\.2 now .*archit"):
        app.train(other)


def test_a_run_that_begins_from_it_keeps_the_scale_too(
    trained: Path,
    tiny_run: Callable[..., Path],
    foreign: Callable[..., tuple[str, ...]],
    tmp_path: Path,
) -> None:
    """On data of another deviation: the weights know latents of the first scale."""
    shard = write(tmp_path / "more.tar", 64, std=9.0, seed=2)
    more = tiny_run(tmp_path / "more", *foreign(shard), f"init_from={trained}")
    assert scale_of(more) == scale_of(trained)


def test_a_number_is_taken_as_it_is(
    tiny_run: Callable[..., Path],
    tiny_cfg: Callable[..., Config],
    foreign: Callable[..., tuple[str, ...]],
    tmp_path: Path,
) -> None:
    run_dir = tiny_run(tmp_path / "a", *foreign(), "models.vae.scaling_factor=0.1")
    assert scale_of(run_dir) == 0.1
    with pytest.raises(ConfigError, match=r"deviation 7\.\d+ after the scale 1"):
        app.train(tiny_cfg(tmp_path / "b", *foreign(), "models.vae.scaling_factor=1"))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("models.vae_weights=tiny", ["models.vae_weights=tiny, but models/vae=foreign has none"]),
        ("models.vae.latent_channels=4", ["but the latents have 6", "models.unet.in_channels"]),
        ("models.vae.factor=16", ["set data.size=64"]),
        ("models.vae.scaling_factor=often", ["scaling_factor", "auto"]),
        ("models.vae.scaling_factor=-1", ["scaling_factor=-1; give a positive number"]),
        ("data.format=images", ["for cached latents say data.format=latents"]),
    ],
)
def test_what_does_not_fit(
    tiny_cfg: Callable[..., Config],
    foreign: Callable[..., tuple[str, ...]],
    tmp_path: Path,
    change: str,
    words: list[str],
) -> None:
    key = change.partition("=")[0]
    line = [argument for argument in foreign() if not argument.startswith(f"{key}=")]
    with pytest.raises(ConfigError) as error:
        app.train(tiny_cfg(tmp_path / "run", *line, change))
    assert all(word in str(error.value) for word in words), str(error.value)


def test_pictures_cannot_be_encoded(tiny_cfg: Callable[..., Config], tmp_path: Path) -> None:
    cfg = tiny_cfg(tmp_path / "run", "models/vae=foreign", "models.vae_weights=null")
    with pytest.raises(ConfigError, match=r"needs data\.format=latents"):
        app.train(cfg)


# -- what can be done with the model --------------------------------------------------------------


def test_sampling_says_what_is_missing(
    trained: Path, composed: Callable[..., Config], tmp_path: Path
) -> None:
    line = (f"checkpoint={trained}", "prompt=a red circle", f"out={tmp_path / 'out'}")
    with pytest.raises(ConfigError, match="the autoencoder that made this model's latents is not"):
        app.sample(composed(*line, "device=cpu", "steps=2", config="sample"))
    assert not list((tmp_path / "out").glob("*.png"))


class Mean(Autoencoder):
    """Stands for an autoencoder that the user has: three means of channels, 8 px a position."""

    latent_channels, factor = CHANNELS, 8
    config = IdentityVAEConfig()

    def encode(self, pixels: torch.Tensor) -> torch.Tensor:
        raise NotImplementedError

    def decode(self, z: torch.Tensor) -> torch.Tensor:
        return z.unflatten(1, (3, 2)).mean(2).repeat_interleave(8, -1).repeat_interleave(8, -2)


def test_latents_are_drawn_and_a_decoder_makes_pictures(trained: Path) -> None:
    pipe = ldm.load(trained, device="cpu")
    cond = pipe.text.encode(["a red circle"])
    assert isinstance(cond, Conditioning)
    x0 = pipe.latents(cond, pipe.text.null(1), [0])
    assert x0.shape == (1, CHANNELS, SIDE, SIDE)
    with pytest.raises(ValueError, match=r"pipe\.codec = Codec"):
        pipe.txt2img(["a red circle"])
    pipe.codec = Codec(Mean(), pipe.codec.scale)
    (picture,) = pipe.txt2img(["a red circle"], steps=2)
    assert picture.size == (32, 32)


@pytest.mark.slow
def test_two_processes_have_one_scale(
    script: Callable[..., Any],
    trained: Path,
    foreign: Callable[..., tuple[str, ...]],
    tmp_path: Path,
    metrics: Callable[[Path], list[dict[str, float]]],
) -> None:
    """Or the second rank's losses would differ from those of one process."""
    two = tmp_path / "two"
    line = (*foreign(), f"run_dir={two}", "training.trainer.devices=2")
    done = script("train", *line, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    assert scale_of(two) == scale_of(trained)
    losses = [
        [row["train/loss"] for row in metrics(f) if "train/loss" in row] for f in (two, trained)
    ]
    assert losses[0] == [pytest.approx(loss, rel=1e-5) for loss in losses[1]]


def test_a_model_on_pixels_loads_though_its_autoencoder_has_no_weights(
    tiny_run: Callable[..., Path], tmp_path: Path
) -> None:
    line = ("models/vae=identity", "models.unet.in_channels=3", "models.unet.out_channels=3")
    run_dir = tiny_run(tmp_path / "run", *line, "data.size=16", "training.max_samples=8")
    (picture,) = ldm.load(run_dir, device="cpu").txt2img(["a red circle"], steps=2)
    assert picture.size == (16, 16)


def test_formats_that_hold_an_autoencoder_are_refused(trained: Path, tmp_path: Path) -> None:
    """Our own does without, and is verified without it."""
    for fmt, name in (("diffusers", "folder"), ("single", "one.safetensors")):
        job = Conversion(input=str(trained), output=tmp_path / name, format=fmt)
        with pytest.raises(ValueError, match=f"format={fmt} holds the autoencoder too.*native"):
            convert(job)
        assert not (tmp_path / name).exists()
    native = Conversion(input=str(trained), output=tmp_path / "native", format="native")
    rows = verify(convert(native), native.output)
    assert all(row.good for row in rows)
    assert {row.part: row.forward is None for row in rows}["vae"]
    assert {row.part: row.forward is None for row in rows}["unet"] is False
