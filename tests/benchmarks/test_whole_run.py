"""Does benchmarks/whole_run.py compare the same work, and compute what it says?"""

from __future__ import annotations

import argparse
import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.testing import assert_close


def report() -> dict:
    """Ours: 10 s and 2 s an epoch; theirs: 4 s and 8 s an epoch. Two rounds, one of them slow."""
    rows = []
    for name, start, epoch in (("ours, bf16", 10, 2), ("diffusers' loop", 4, 8)):
        for epochs in (1, 4):
            for slower in (0.0, 0.0, 1.0):
                wall = start + epochs * epoch + slower
                rows.append({"contender": name, "epochs": epochs, "wall": wall, "cpu": 2 * wall})
    return {"rows": rows, "settings": {"pictures": 64, "side_px": 32}}


def test_start_and_epoch_from_two_lengths() -> None:
    from whole_run import parts

    assert parts(report(), "ours, bf16", "wall") == pytest.approx((10, 2))
    assert parts(report(), "diffusers' loop", "cpu") == pytest.approx((8, 16))


def test_the_table() -> None:
    from whole_run import tables

    rows = tables(report())["whole-run"].rows
    assert rows[0] == [
        *("ours, bf16", "wall", "10.0", "1,000", "4.00"),
        *("18.0", "**2.00**", "50.0", "**3.28**"),
    ]
    assert [row[3] for row in rows if row[1] == "wall"] == ["1,000", "4,000"]


def test_a_longer_run_that_was_shorter_is_no_number() -> None:
    from whole_run import tables

    noisy = report()
    for row in noisy["rows"]:
        if row["contender"] == "ours, bf16" and row["epochs"] == 4:
            row["wall"] = 1.0
    rows = tables(noisy)["whole-run"].rows
    assert set(rows[0][2:]) == {"too noisy"}
    assert rows[1][4] == "4.00"  # by the other clock


def test_shards_and_folder_hold_the_same(tmp_path: Path) -> None:
    from whole_run import _as_jpeg, _unpack

    drawn = tmp_path / "drawn"
    drawn.mkdir()
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), "red").save(buffer, "PNG")
    with tarfile.open(drawn / "shard-00000.tar", "w") as tar:
        members = {"0-a.json": b"{}", "0-a.png": buffer.getvalue(), "0-a.txt": b"red"}
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    _as_jpeg(drawn, tmp_path / "shards")
    _unpack(tmp_path / "shards", tmp_path / "folder")
    (line,) = (tmp_path / "folder" / "metadata.jsonl").read_text().splitlines()
    row = json.loads(line)
    assert row == {"file_name": "0-a.jpg", "text": "red"}
    picture = Image.open(tmp_path / "folder" / "0-a.jpg")
    assert (picture.format, picture.size) == ("JPEG", (8, 8))


def test_the_transforms_of_the_stand_in() -> None:
    from their_script import CenterCrop, Compose, InterpolationMode, Normalize, Resize, ToTensor

    whole = np.zeros((16, 24, 3), dtype=np.uint8)
    whole[:, 8:16] = 255  # what the crop leaves after halving: all white in its middle
    steps = [Resize(8, InterpolationMode.LANCZOS), CenterCrop(8), ToTensor()]
    pixels = Compose([*steps, Normalize([0.5], [0.5])])(Image.fromarray(whole))
    assert pixels.shape == (3, 8, 8)
    assert_close(pixels[:, :, 3:5], torch.ones(3, 8, 2))
    assert -1 <= pixels[:, :, 0].min() <= pixels[:, :, 0].max() < 0


@pytest.mark.reference
def test_the_loop_prepares_pictures_as_the_script_does(tmp_path: Path) -> None:
    from their_loop import Pictures
    from their_script import CenterCrop, Compose, InterpolationMode, Normalize, Resize, ToTensor

    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 56, 3), dtype=np.uint8))
    image.save(tmp_path / "a.png")
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "a.png", "text": "noise"}\n')
    steps = [Resize(32, InterpolationMode.LANCZOS), CenterCrop(32), ToTensor()]
    pixels, caption = Pictures(tmp_path, 32)[0]
    assert caption == "noise"
    assert torch.equal(pixels, Compose([*steps, Normalize([0.5], [0.5])])(image))


@pytest.mark.slow
@pytest.mark.reference
@pytest.mark.parametrize("size", [32, 64])
def test_both_sides_run(tmp_path: Path, size: int) -> None:
    """Exported weights answer as ours do, and two steps of the loop give a folder of weights."""
    from their_loop import train
    from whole_run import Case, differences, prepare

    case = Case(tmp_path, pictures=32, side_px=48, size_px=size, threads=1, script=None)
    prepare(case)
    assert max(differences(case.model, size).values()) < 1e-4
    out = tmp_path / "out"
    options = {"precision": "fp32", "foreach": True, "workers": 0}
    train(
        argparse.Namespace(
            model=case.model, data=case.folder, out=out, steps=2, batch=8, size=size, **options
        )
    )
    assert (out / "unet" / "diffusion_pytorch_model.safetensors").is_file()
