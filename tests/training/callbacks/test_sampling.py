"""Is a picture its prompt's and seed's alone, and does drawing leave the training as it was?"""

from __future__ import annotations

import random
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from ldm.app.fit import sample_grid
from ldm.app.job import Job, build_job
from ldm.training.callbacks.sampling import SampleGrid, SampleSettings
from ldm.training.module import DiffusionModule
from ldm.types import Conditioning

PROMPTS = ["a small red circle", "a large blue star", "a large green heart"]


class Numbers:
    """Stands for a Pipeline: the picture of a prompt with a seed is the two numbers, everywhere."""

    device = torch.device("cpu")

    def __init__(self) -> None:
        self.text = SimpleNamespace(encode=self.encode, null=lambda n: Conditioning())
        self.codec = SimpleNamespace(decode=lambda x0: x0)

    def encode(self, prompts: list[str]) -> Conditioning:
        return Conditioning(torch.tensor([float(prompt) for prompt in prompts]))

    def latents(self, cond: Conditioning, null: Conditioning, seeds: list[int]) -> Tensor:
        values = torch.stack([cond.context, torch.tensor(seeds).float(), 0 * cond.context], dim=1)
        return (values / 127.5 - 1)[:, :, None, None].expand(-1, -1, 2, 2)


@pytest.mark.parametrize("world", [1, 2, 3, 4])
@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_every_rank_draws_its_share_and_all_arrive_in_order(
    tiny_job: Callable[..., Job],
    ranks: Callable[..., Any],
    tmp_path: Path,
    world: int,
    count: int,
) -> None:
    """Also with fewer prompts than ranks: every rank enters the gather with equally many."""
    module = tiny_job().module
    settings = SampleSettings(
        prompts=[str(10 + k) for k in range(count)], seeds=[100 + k for k in range(count)]
    )
    processes = ranks(world)
    grids = [SampleGrid(Numbers(), tmp_path, settings) for _ in range(world)]  # type: ignore[arg-type]
    for rank, grid in enumerate(grids):
        pictures = grid.run(processes.trainer(rank), module)
    assert len({tuple(given[0].shape) for given in processes.given.values()}) == 1
    assert pictures.shape == (count, 2, 2, 3)
    assert pictures[:, 0, 0].tolist() == [[10 + k, 100 + k, 0] for k in range(count)]


@pytest.fixture(scope="module")
def trained(
    tiny_cfg: Callable[..., dict[str, Any]], tmp_path_factory: pytest.TempPathFactory
) -> tuple[DiffusionModule, Callable[..., SampleGrid]]:
    """A module whose raw and averaged weights differ, and grid("key=value", …) for it."""
    folder = tmp_path_factory.mktemp("sampling")
    listed = ",".join(PROMPTS)

    def job(*changes: str) -> tuple[dict[str, Any], Job]:
        key = "training.callbacks.samples.prompts"
        line = changes if any(key in c for c in changes) else (f"{key}=[{listed}]", *changes)
        cfg = tiny_cfg(folder, *line)
        return cfg, build_job(cfg)

    module = job()[1].module
    draws = torch.Generator().manual_seed(1)
    for parameter in module.parameters():
        parameter.data.add_(0.05 * torch.randn(parameter.shape, generator=draws))

    def grid(*changes: str) -> SampleGrid:
        cfg, built = job(*changes)
        made = sample_grid(cfg, built, folder, [])
        made.pipeline.unet = module.unet
        return made

    return module, grid


Trained = tuple[DiffusionModule, Callable[..., SampleGrid]]


@pytest.mark.parametrize("world", [2, 3])
def test_the_picture_does_not_depend_on_the_number_of_ranks(
    trained: Trained, ranks: Callable[..., Any], world: int
) -> None:
    module, grid = trained
    alone = grid().run(ranks(1).trainer(), module)
    processes = ranks(world)
    for rank in range(world):
        together = grid().run(processes.trainer(rank), module)
    # kernels may round otherwise for other batch sizes: at most one of 255 levels
    assert (alone.int() - together.int()).abs().max() <= 1
    assert (alone != together).float().mean() < 1e-3
    assert len({picture.numpy().tobytes() for picture in alone}) == 3


def test_training_is_untouched(trained: Trained, ranks: Callable[..., Any]) -> None:
    """Generators of torch, numpy and Python, weights, modes, gradients."""
    module, grid = trained
    module.train()
    for parameter in module.parameters():
        parameter.grad = torch.ones_like(parameter)
    torch.manual_seed(3)
    np.random.seed(3)
    random.seed(3)

    def state() -> list[Any]:
        return [
            torch.get_rng_state().tolist(),
            [x.tolist() if isinstance(x, np.ndarray) else x for x in np.random.get_state()],
            random.getstate(),
            [p.data_ptr() for p in module.parameters()],
            [p.detach().sum().item() for p in module.parameters()],
            [p.grad.sum().item() for p in module.parameters()],
            [p.requires_grad for p in module.parameters()],
            [m.training for m in module.modules()],
            [shadow.sum().item() for shadow in module.ema.shadows.values()],
            module.samples_seen,
            torch.is_grad_enabled(),
        ]

    before = state()
    drawn = grid("sampling.eta=1.0").run(ranks(1).trainer(), module)  # noise at every step
    assert state() == before
    assert drawn.float().std() > 0
    for parameter in module.parameters():
        parameter.grad = None


def test_raw_and_averaged_weights_draw_differently(
    trained: Trained, ranks: Callable[..., Any]
) -> None:
    module, grid = trained
    pictures = {
        kind: grid(f"training.callbacks.samples.weights={kind}").run(ranks(1).trainer(), module)
        for kind in ("ema", "raw")
    }
    assert not torch.equal(pictures["ema"], pictures["raw"])
    with module.ema.swapped():
        swapped = grid("training.callbacks.samples.weights=raw").run(ranks(1).trainer(), module)
    assert torch.equal(pictures["ema"], swapped)
    ema, module._ema = module.ema, None  # training without: the raw ones are what there is
    try:
        assert torch.equal(grid().run(ranks(1).trainer(), module), pictures["raw"])
    finally:
        module._ema = ema


def test_the_seeds_choose_the_pictures(trained: Trained, ranks: Callable[..., Any]) -> None:
    module, grid = trained
    first = grid().run(ranks(1).trainer(), module)
    key = "training.callbacks.samples.seeds"
    assert torch.equal(grid(f"{key}=[0,1,2]").run(ranks(1).trainer(), module), first)
    other = grid(f"{key}=[0,7,2]").run(ranks(1).trainer(), module)
    assert [torch.equal(a, b) for a, b in zip(first, other, strict=True)] == [True, False, True]


def test_the_grid_is_written_with_its_columns_and_given_to_the_loggers(
    trained: Trained, ranks: Callable[..., Any], tmp_path: Path
) -> None:
    module, _ = trained
    sizes, given = [], []
    for columns in (1, 3):
        settings = SampleSettings(prompts=["10", "20", "30"], columns=columns)
        grid = SampleGrid(
            Numbers(),  # type: ignore[arg-type]
            tmp_path / str(columns),
            settings,
            sink=lambda *arguments: given.append(arguments),
        )
        module.samples_seen = 640
        grid.run(ranks(1).trainer(), module)
        sizes.append(Image.open(tmp_path / str(columns) / "s000000640.png").size)
    module.samples_seen = 0
    assert sizes[0][1] > sizes[0][0]  # one below the other
    assert sizes[1][0] > sizes[1][1]
    key, images, captions, samples = given[0]
    assert (key, captions, samples) == ("samples/ema", ["10", "20", "30"], 640)
    assert [image.getpixel((0, 0)) for image in images] == [(10, 0, 0), (20, 1, 0), (30, 2, 0)]


def test_a_full_disk_costs_the_grid_not_the_run(
    trained: Trained,
    ranks: Callable[..., Any],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    full_disk: Callable[[int], AbstractContextManager[None]],
) -> None:
    given: list[Any] = []
    settings = SampleSettings(prompts=["10", "20"])
    grid = SampleGrid(Numbers(), tmp_path, settings, sink=lambda *args: given.append(args))  # type: ignore[arg-type]
    with full_disk(100):
        pictures = grid.run(ranks(1).trainer(), trained[0])
    assert len(pictures) == 2
    assert list(tmp_path.iterdir()) == []  # no half picture
    assert "the run goes on without this grid" in caplog.text
    assert len(given) == 1  # the loggers have it


def test_only_the_first_rank_writes(
    trained: Trained, ranks: Callable[..., Any], tmp_path: Path
) -> None:
    settings = SampleSettings(prompts=["10", "20"])
    processes = ranks(2)
    for rank in (0, 1):
        folder = tmp_path / str(rank)
        SampleGrid(Numbers(), folder, settings).run(processes.trainer(rank), trained[0])  # type: ignore[arg-type]
    assert (tmp_path / "0").exists()
    assert not (tmp_path / "1").exists()


def test_pictures_come_at_the_interval_and_at_the_end(
    tiny_run: Callable[..., Path], tmp_path: Path
) -> None:
    run_dir = tiny_run(tmp_path, "training.sample_every=24", "sampling.steps=1")
    assert sorted(p.name for p in (run_dir / "samples").iterdir()) == [
        "s000000024.png",
        "s000000032.png",
    ]


def test_settings_say_what_is_wrong() -> None:
    bad = SampleSettings(prompts=["a"], seeds=[1, 2], weights="best")
    assert len(bad.problems()) == 2
    assert SampleSettings(prompts=["a"], seeds=[0]).problems() == []
    assert "sample_every=null" in SampleSettings(prompts=[]).problems()[0]
