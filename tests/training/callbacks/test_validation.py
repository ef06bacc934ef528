"""Is the validation loss a number of the weights alone?"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from ldm import app
from ldm.training.callbacks.validation import Validation, ValidationSettings
from ldm.training.module import NUM_BINS


@pytest.fixture
def job(tiny_job: Callable[..., app.Job]) -> app.Job:
    """Raw and averaged weights differ."""
    built = tiny_job()
    draws = torch.Generator().manual_seed(1)
    for parameter in built.module.parameters():
        parameter.data.add_(0.05 * torch.randn(parameter.shape, generator=draws))
    return built


def measured(job: app.Job, ranks: Any, **settings: Any) -> dict[str, float]:
    """What the last rank, which has everyone's sums, says."""
    for rank in range(ranks.world):
        validation = Validation(ValidationSettings(**settings), job.data)
        job.module._trainer = ranks.trainer(rank)
        found = validation.run(job.module._trainer, job.module)
    return found


@pytest.mark.parametrize(("world", "batch_size"), [(1, 3), (2, 4), (3, 64)])
def test_neither_ranks_nor_batches_change_it(
    job: app.Job, ranks: Callable[..., Any], world: int, batch_size: int
) -> None:
    """11 samples: no number of ranks or rows here divides them."""
    alone = measured(job, ranks(1), batch_size=11)
    split = measured(job, ranks(world), batch_size=batch_size)
    assert alone.keys() == split.keys()
    for name, value in alone.items():
        assert split[name] == pytest.approx(value, rel=1e-5), name  # rounding of other batch sizes


def test_raw_and_averaged_weights_are_both_measured(
    job: app.Job, ranks: Callable[..., Any]
) -> None:
    found = measured(job, ranks(1))
    assert found["val/loss_raw"] != found["val/loss_ema"]
    with job.module.ema.swapped():
        swapped = measured(job, ranks(1))
    assert swapped["val/loss_raw"] == found["val/loss_ema"]
    job.module._ema = None
    assert {name.rpartition("_")[2] for name in measured(job, ranks(1))} == {"raw"}


def test_the_bins_average_to_the_whole(job: app.Job, ranks: Callable[..., Any]) -> None:
    """11 samples in 10 bins: one bin has two."""
    found = measured(job, ranks(1))
    bins = [found[f"val/loss/t{number}_raw"] for number in range(NUM_BINS)]
    batch = job.data.val.batch(torch.arange(11))
    losses = job.module.eval().validation_losses(batch, 11)
    counts = [(losses["bin"] == number).sum().item() for number in range(NUM_BINS)]
    total = sum(value * count for value, count in zip(bins, counts, strict=True)) / 11
    assert found["val/loss_raw"] == pytest.approx(total)
    assert sorted(counts) == [1] * 9 + [2]


def test_the_limit_takes_the_first_ones(job: app.Job, ranks: Callable[..., Any]) -> None:
    few = measured(job, ranks(1), max_samples=4)
    losses = job.module.eval().validation_losses(job.data.val.batch(torch.arange(4)), 4)["loss"]
    assert few["val/loss_raw"] == pytest.approx(losses.mean().item(), rel=1e-5)
    everyone = measured(job, ranks(1), max_samples=None)
    assert everyone == measured(job, ranks(1), max_samples=99)
    assert everyone["val/loss_raw"] != few["val/loss_raw"]


def test_training_is_untouched(job: app.Job, ranks: Callable[..., Any]) -> None:
    module = job.module.train()
    torch.manual_seed(5)
    before = (torch.get_rng_state(), [p.clone() for p in module.parameters()])
    measured(job, ranks(1))
    assert torch.equal(torch.get_rng_state(), before[0])
    assert all(torch.equal(a, b) for a, b in zip(module.parameters(), before[1], strict=True))
    assert module.training
    assert all(p.grad is None for p in module.parameters())


def test_it_is_measured_at_the_start_at_the_interval_and_at_the_end(
    tiny_run: Callable[..., Path],
    tmp_path: Path,
    metrics: Callable[..., list[dict[str, float]]],
) -> None:
    rows = metrics(tiny_run(tmp_path / "a", "training.val_every=24"))
    assert [row["samples_seen"] for row in rows if "val/loss_raw" in row] == [0, 24, 32]
    first = next(row for row in rows if "val/loss_raw" in row)
    assert first["val/loss_raw"] == first["val/loss_ema"]  # nothing is averaged yet
    rows = metrics(tiny_run(tmp_path / "b", "training.val_every=null"))
    assert not any("val/loss_raw" in row for row in rows)


def test_settings_say_what_is_wrong() -> None:
    assert ValidationSettings(batch_size=0).problems()
    assert ValidationSettings(max_samples=0).problems()
    assert ValidationSettings(max_samples=None).problems() == []
