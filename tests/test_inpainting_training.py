"""Does a 4-channel model become one that inpaints, from the command line to the picture?"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image, ImageChops
from torch.testing import assert_close

import ldm
from ldm import app
from ldm.app.job import build_job
from ldm.cli import ConfigError

Config = dict[str, Any]
# what experiment=tiny_inpaint adds to a run of the tiny network
WIDE = ("models.unet.in_channels=9", "+training/inpainting=masks")
FROM_TINY = (
    "init_from=tiny",
    "models.unet.block_out_channels=[64,128]",
    "models.unet.num_attention_heads=4",
)


def unet_of(job: Any) -> Any:
    return job.module.unet


def test_the_first_loss_is_the_base_models(tiny_cfg: Callable[..., Config], tmp_path: Path) -> None:
    """The new channels begin at zero, so mask and masked picture change nothing yet."""
    narrow = build_job(tiny_cfg(tmp_path / "narrow", *FROM_TINY))
    wide = build_job(tiny_cfg(tmp_path / "wide", *FROM_TINY, *WIDE, "widen=[conv_in]"))
    batch = narrow.data.train.batch(torch.arange(4))
    for job in (narrow, wide):
        job.module.eval()
    assert wide.module.encoders.concat(batch, "val-mask").any()
    for losses in ("validation_losses", "batch_loss"):
        before = getattr(narrow.module, losses)(batch, 11)["loss"]
        now = getattr(wide.module, losses)(batch, 11)["loss"]
        assert_close(now, before, rtol=1e-5, atol=1e-6)  # a sum over more channels
    now.backward()
    gradient = wide.module.unet.conv_in.weight.grad
    assert all(gradient[:, channel].any() for channel in range(9))


def test_the_experiments_widen_and_hide_a_quarter(composed: Callable[..., Config]) -> None:
    for name in ("tiny_inpaint", "sd15_inpaint"):
        cfg = composed(f"experiment={name}")
        assert cfg["models"]["unet"]["in_channels"] == 9
        assert cfg["widen"] == ["conv_in"]
        assert cfg["training"]["inpainting"]["full"] == 0.25
        assert cfg["training"]["caption_dropout"] == 0.1


def test_it_goes_on_bit_for_bit_and_draws(
    tiny_run: Callable[..., Path],
    tmp_path: Path,
    document: Callable[[Path], Config],
    differences: Callable[[Any, Any], list[str]],
) -> None:
    """Straight and interrupted, with cached latents; then the run folder inpaints."""
    line = (
        *WIDE,
        "training.cache_latents=128",
        "training.max_samples=16",
        "training.save_every=8",
        "training.sample_every=16",
    )
    straight = tiny_run(tmp_path / "straight", *line)
    halved = tiny_run(tmp_path / "halved", *line)
    (halved / "checkpoints" / "s000000016.ckpt").unlink()
    tiny_run(halved, *line, "resume=auto")
    one, other = document(straight), document(halved)
    for key in ("state_dict", "ema", "optimizer_states", "samples_seen"):
        assert not differences(one[key], other[key], key), key
    (shown,) = (straight / "samples").glob("*.png")  # hole and picture beside each other, in a row
    assert Image.open(shown).width > 4 * 2 * 32
    pipe = ldm.load(straight)
    assert pipe.parts.extra_channels == 5
    image, mask = Image.new("RGB", (32, 32), "white"), Image.new("L", (32, 32), 0)
    mask.paste(255, (16, 0, 32, 32))
    (drawn,) = pipe.inpaint("a small red circle", image, mask)
    (whole,) = pipe.txt2img("a small red circle")
    left = (0, 0, 16, 32)
    assert ImageChops.difference(drawn.crop(left), image.crop(left)).getbbox() is None
    assert ImageChops.difference(drawn, whole).getbbox() is not None


def test_masks_may_not_change_unasked(tiny_run: Callable[..., Path], tmp_path: Path) -> None:
    run_dir = tiny_run(tmp_path, *WIDE, "training.max_samples=16")
    line = (*WIDE, "training.max_samples=16", "training.inpainting.full=0.5", "resume=auto")
    with pytest.raises(ConfigError, match=r"training.inpainting.full was 0.25.*unsafe: objective"):
        tiny_run(run_dir, *line)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (["models.unet.in_channels=9"], ["in_channels=9", "+training/inpainting=masks"]),
        (["models.unet.in_channels=6"], ["in_channels=6", "4 latent channels"]),
        (["+training/inpainting=masks"], ["in_channels=4; use 9", "widen=[conv_in]"]),
        ([*WIDE, "training.inpainting.full=1.5"], ["training.inpainting.full=1.5", "0 to 1"]),
        ([*WIDE, "training.inpainting.full=0.9"], ["more than 1"]),
        ([*WIDE, "+training.inpainting.ful=1"], ["training.inpainting.ful", "'full'"]),
        ([*WIDE, *FROM_TINY], ["conv_in.weight: file (64, 4"]),
    ],
)
def test_what_does_not_fit_ends_before_the_first_step(
    tiny_cfg: Callable[..., Config], tmp_path: Path, line: list[str], words: list[str]
) -> None:
    with pytest.raises(ConfigError) as error:
        app.train(tiny_cfg(tmp_path / "run", *line))
    assert all(word in str(error.value) for word in words), str(error.value)


@pytest.mark.slow
def test_two_processes_are_one(
    script: Callable[..., Any],
    tiny_run: Callable[..., Path],
    tmp_path: Path,
    metrics: Callable[..., list[dict[str, float]]],
) -> None:
    """The same masks in training, in validation and in the grid."""
    line = (*WIDE, "training.max_samples=16", "training.val_every=16", "training.sample_every=16")
    two = tmp_path / "two"
    done = script("train", *line, f"run_dir={two}", "training.trainer.devices=2", cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    one = tiny_run(tmp_path / "one", *line)
    for row, other in zip(metrics(two), metrics(one), strict=True):
        for name in ("train/loss", "val/loss_raw", "val/loss_ema"):
            if name in other:  # summation order alone
                assert row[name] == pytest.approx(other[name], rel=1e-5), (row, name)
    (shown, alone) = (Image.open(run / "samples" / "s000000016.png") for run in (two, one))
    assert max(high for _, high in ImageChops.difference(shown, alone).getextrema()) <= 1
