"""Is a run on two processes the run on one?"""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

Rows = list[dict[str, float]]
LINE = (
    "training.max_samples=160",  # 20 steps of 8
    "training.val_every=80",
    "training.sample_every=80",
    "training.save_every=80",
    'training.callbacks.samples.prompts=["a red circle","a blue star","a large green heart"]',
    "training.gradient_clip=0.5",
)
LOSSES = ("train/loss", "val/loss_raw", "val/loss_ema", "grad_norm", "lr")


def test_two_processes_train_and_draw_what_one_does(
    tmp_path: Path,
    script: Callable[..., subprocess.CompletedProcess[str]],
    metrics: Callable[[Path], Rows],
) -> None:
    """Losses to 1e-5 relative over 20 steps (sums in another order); 3 prompts on 2 ranks; and a
    run of one process goes on with two."""
    runs = {}
    for name, line in {
        "one": LINE,
        "two": (*LINE, "training.trainer.devices=2"),
        "half": ("training.max_samples=80", *LINE[1:]),
    }.items():
        runs[name] = tmp_path / name
        done = script("train", *line, f"run_dir={runs[name]}")
        assert done.returncode == 0, done.stderr[-3000:]
    resumed = script(
        "train", *LINE, f"run_dir={runs['half']}", "training.trainer.devices=2", "resume=auto"
    )
    assert resumed.returncode == 0, resumed.stderr[-3000:]

    expected = metrics(runs["one"])
    for name in ("two", "half"):
        got = metrics(runs[name])
        assert [row["samples_seen"] for row in got] == [row["samples_seen"] for row in expected]
        for have, want in zip(got, expected, strict=True):
            for key in LOSSES:
                if key in want:
                    assert abs(have[key] / want[key] - 1) < 1e-5, (name, want["samples_seen"], key)
    grids = {name: sorted((run / "samples").iterdir()) for name, run in runs.items()}
    assert [path.name for path in grids["one"]] == ["s000000080.png", "s000000160.png"]
    for name in ("two", "half"):  # weights that differ in the last bit may round a pixel otherwise
        for have, want in zip(grids[name], grids["one"], strict=True):
            assert np.abs(levels(have) - levels(want)).max() <= 1, (name, want.name)


def test_equal_weights_draw_equal_pictures_on_any_number_of_ranks(
    tmp_path: Path, script: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    """3 prompts on 2 ranks, byte for byte: the shipped weights, and a rate that moves nothing."""
    line = (
        "init_from=tiny",
        "models.unet.block_out_channels=[64,128]",
        "models.unet.num_attention_heads=4",
        "training.max_samples=8",
        "training.sample_every=8",
        "training.optim.lr=1e-30",
        *LINE[4:5],
    )
    for devices in (1, 2):
        run_dir = tmp_path / str(devices)
        done = script("train", *line, f"training.trainer.devices={devices}", f"run_dir={run_dir}")
        assert done.returncode == 0, done.stderr[-3000:]
    (one, two) = (tmp_path / name / "samples" / "s000000008.png" for name in ("1", "2"))
    assert levels(one).std() > 10  # something is drawn
    assert one.read_bytes() == two.read_bytes()


def levels(path: Path) -> npt.NDArray[np.int64]:
    """The grey levels of a picture."""
    with Image.open(path) as picture:
        return np.asarray(picture.convert("RGB"), dtype=np.int64)
