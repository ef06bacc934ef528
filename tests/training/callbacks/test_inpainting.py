"""Are the holes and pictures of the grid those of the validation set, on any number of ranks?"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from ldm.app.job import Job
from ldm.images import to_uint8
from ldm.pipeline import Pipeline
from ldm.training.callbacks import inpainting
from ldm.training.callbacks.inpainting import InpaintGrid
from ldm.training.callbacks.sampling import SampleSettings

SIZE = 32


@pytest.fixture(scope="module")
def job(tiny_cfg: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Job:
    from ldm.app.job import build_job

    return build_job(tiny_cfg(tmp_path_factory.mktemp("grid") / "run"))


def grid_of(job: Job, folder: Path, *, count: int = 3, seeds: list[int] | None = None) -> Any:
    pipeline = Pipeline(
        job.module.unet,
        job.encoders.codec,
        job.encoders.text,
        job.module.objective,
        defaults=job.defaults,
        null=job.card["null"],
    )
    settings = SampleSettings(prompts=["ignored"] * count, seeds=seeds)
    return InpaintGrid(pipeline, folder, settings, data=job.data, seed=0)


def halves(pictures: Tensor) -> tuple[Tensor, Tensor]:
    assert pictures.shape[1:] == (SIZE, 2 * SIZE, 3)
    return pictures[:, :, :SIZE], pictures[:, :, SIZE:]


def test_validation_pictures_with_holes_stand_beside_what_was_painted(
    job: Job, ranks: Callable[..., Any], tmp_path: Path
) -> None:
    grid = grid_of(job, tmp_path)
    holes, painted = halves(grid.run(ranks(1).trainer(), job.module))
    batch = job.data.val.batch(torch.arange(3))
    assert grid.prompts == list(batch.captions)
    hidden = grid.masks.permute(0, 2, 3, 1).expand(-1, -1, -1, 3) > 0
    originals = to_uint8(batch.pixels)
    assert 0 < float(hidden.float().mean()) < 1
    assert (holes[hidden] == 128).all()
    assert torch.equal(holes[~hidden], originals[~hidden])
    assert torch.equal(painted[~hidden], originals[~hidden])
    assert not torch.equal(painted[hidden], originals[hidden])
    assert Image.open(next(tmp_path.glob("*.png"))).width > 3 * 2 * SIZE


def test_the_grid_is_the_same_each_time_and_on_two_ranks(
    job: Job, ranks: Callable[..., Any], tmp_path: Path
) -> None:
    alone = grid_of(job, tmp_path).run(ranks(1).trainer(), job.module)
    processes = ranks(2)
    for rank in range(2):
        together = grid_of(job, tmp_path).run(processes.trainer(rank), job.module)
    # kernels may round otherwise for other batch sizes
    assert (alone.int() - together.int()).abs().max() <= 1
    other = grid_of(job, tmp_path, seeds=[5, 1, 2]).run(ranks(1).trainer(), job.module)
    assert [torch.equal(a, b) for a, b in zip(alone, other, strict=True)] == [False, True, True]


def test_there_are_no_more_than_validation_pictures(job: Job, tmp_path: Path) -> None:
    grid = grid_of(job, tmp_path, count=40, seeds=list(range(40)))
    assert len(grid.prompts) == len(grid.seeds) == len(grid.masks) == job.data.val_size == 11


def test_a_hole_that_no_latent_sees_becomes_the_whole_picture() -> None:
    masks = torch.zeros(2, 1, 8, 8)
    masks[0, 0, 1, 1] = 1  # latents see the upper left pixel of four
    masks[1, 0, 4, 4] = 1
    seen = inpainting._visible(masks, 4)
    assert seen[0].all()
    assert torch.equal(seen[1], masks[1])
