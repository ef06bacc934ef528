"""Is N = N/2 + resume, bit for bit, whatever of the training is switched on together?

Six choices with two values each: every pair of values meets in `make test`, all 64 combinations in
`make test-all`. test_resume.py has augmentations, workers and signals.
"""

from __future__ import annotations

import io
import itertools
import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ldm import app
from ldm.io import checkpoint as files
from ldm.training.base import TrainedModule

Document = dict[str, Any]
CHOICES = {
    "ema": ("training.ema.half_life=20", "training.ema.half_life=null"),
    "accumulation": ("training.micro_batch=8", "training.micro_batch=4"),
    "rate": (
        ("training.optim.shape=constant", "training.optim.warmup=0"),
        ("training.optim.shape=cosine", "training.optim.warmup=16"),
    ),
    "data": ("pictures", "latents"),
    "shapes": ("squares", "buckets"),
    "dropout": ("models.unet.dropout=0.0", "models.unet.dropout=0.1"),
}
# all four pairs of values of any two choices: a first row of zeros, and below it each choice is 1
# in another three of five rows (Kleitman & Spencer 1973)
PAIRWISE = (
    (0, 0, 0, 0, 0, 0),
    (1, 1, 1, 0, 0, 1),
    (1, 1, 0, 1, 1, 0),
    (1, 0, 1, 0, 1, 0),
    (0, 1, 0, 1, 0, 1),
    (0, 0, 1, 1, 1, 1),
)
ALL = list(itertools.product((0, 1), repeat=len(CHOICES)))
FIXED = (
    "diffusion/times=stratified",
    "training.max_samples=32",
    "training.save_every=16",
    "resume=auto",
)
EXACT = (
    "state_dict",
    "ema",
    "optimizer_states",
    "lr_schedulers",
    "samples_seen",
    "global_step",
    "batch_size",
)


def test_the_pairs_are_all_there() -> None:
    for one, other in itertools.combinations(range(len(CHOICES)), 2):
        assert len({(row[one], row[other]) for row in PAIRWISE}) == 4, (one, other)


@pytest.fixture(scope="module")
def corpora(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], str]:
    """(data, shapes) -> a shard of 48 samples, every third twice as wide as high in buckets."""
    folder, found = tmp_path_factory.mktemp("corpora"), {}
    for data, shapes in itertools.product(*(CHOICES[name] for name in ("data", "shapes"))):
        path = folder / f"{data}-{shapes}.tar"
        with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as archive:
            for n in range(48):
                wide = shapes == "buckets" and n % 3 == 0
                for ext, content in members(str(data), n, wide).items():
                    info = tarfile.TarInfo(f"{n:03d}.{ext}")
                    info.size = len(content)
                    archive.addfile(info, io.BytesIO(content))
        found[str(data), str(shapes)] = str(path)
    return found


def members(data: str, n: int, wide: bool) -> dict[str, bytes]:
    draws, buffer = np.random.default_rng(n), io.BytesIO()
    height, width = (8, 32) if wide else (16, 16)
    text = {"txt": f"a circle of size {n}".encode()}
    if data == "latents":
        moments = draws.standard_normal((8, height // 4, width // 4))
        np.save(buffer, moments.astype(np.float16))
        return {"moments.npy": buffer.getvalue(), **text}
    pixels = draws.integers(0, 256, (height, width, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(buffer, "PNG")
    about = json.dumps({"width": width, "height": height}).encode()
    return {"png": buffer.getvalue(), "json": about, **text}


def changes_of(row: tuple[int, ...], corpora: dict[tuple[str, str], str]) -> list[str]:
    values = [options[value] for options, value in zip(CHOICES.values(), row, strict=True)]
    ema, accumulation, rate, data, shapes, dropout = values
    shard = corpora[str(data), str(shapes)]
    changes = [str(ema), str(accumulation), *rate, str(dropout), *FIXED, "data.size=16"]
    changes += [f"data.train.shards={shard}", f"data.val.shards={shard}"]
    if data == "latents":
        changes.append("data.format=latents")
    if shapes == "buckets":
        changes += ["data.buckets.max_aspect=6", "data.buckets.step=8"]
    return changes


class PowerCutError(Exception):
    pass


def interrupted(cfg: Document, monkeypatch: pytest.MonkeyPatch, at: int) -> None:
    """Trains up to the micro-batch number `at`, in the middle of the step after the checkpoint."""
    step, count = TrainedModule.training_step, 0

    def training_step(self: TrainedModule, batch: Any, batch_idx: int) -> Any:
        nonlocal count
        if count == at:
            raise PowerCutError
        count += 1
        return step(self, batch, batch_idx)

    with monkeypatch.context() as patch:
        patch.setattr(TrainedModule, "training_step", training_step)
        with pytest.raises(PowerCutError):
            app.train(cfg)


@pytest.mark.parametrize(
    "row",
    [row if row in PAIRWISE else pytest.param(row, marks=pytest.mark.slow) for row in ALL],
    ids=lambda row: "".join(map(str, row)),
)
def test_half_and_half_is_the_whole(
    tiny_cfg: Callable[..., Document],
    corpora: dict[tuple[str, str], str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    document: Callable[[Path], Document],
    differences: Callable[..., list[str]],
    row: tuple[int, ...],
) -> None:
    """Two of four steps, then the rest; the digits of the id are the values of CHOICES."""
    changes = changes_of(row, corpora)
    assert app.train(tiny_cfg(tmp_path / "whole", *changes)) == 0
    accumulate = 1 + row[1]
    interrupted(tiny_cfg(tmp_path / "halves", *changes), monkeypatch, at=3 * accumulate - 1)
    saved = files.list_checkpoints(tmp_path / "halves" / "checkpoints")
    assert [files.samples_of(path) for path in saved] == [16]
    assert app.train(tiny_cfg(tmp_path / "halves", *changes)) == 0
    one, other = document(tmp_path / "whole"), document(tmp_path / "halves")
    for key in EXACT:
        assert differences(one[key], other[key]) == [], key
    assert (one["ema"] is None) == bool(row[0])
    first = files.read(saved[0])
    assert differences(first["state_dict"], one["state_dict"])  # or nothing was trained
