"""Does pairing show a difference that two separate means hide?"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ldm.evaluation.paired import LossTable, compare, loss_by_bin

EDGES = (0.0, 0.5, 1.0)


def table(gain: float = 0.0, *, seed: int = 9, noise: str = "seed 7") -> LossTable:
    """40 images x 4 times; losses differ widely between images, by `gain` where t < 0.5."""
    image = torch.arange(40).repeat_interleave(4)
    t = torch.tensor([0.1, 0.4, 0.5, 1.0]).repeat(40)
    spread = torch.rand(40, generator=torch.Generator().manual_seed(0)).repeat_interleave(4)
    own = 0.001 * torch.randn(160, generator=torch.Generator().manual_seed(seed))
    return LossTable.of(image, t, spread + own - gain * (t < 0.5), noise=noise)


def test_the_difference_is_found_where_it_is() -> None:
    low, high = compare(table(0.01, seed=1), table(seed=2), edges=EDGES, seed=0)
    assert low.interval.excludes_zero
    assert low.interval.value == pytest.approx(0.01, abs=0.001)  # positive: the first is better
    assert not high.interval.excludes_zero
    assert (low.start, low.stop, low.losses, low.interval.n) == (0.0, 0.5, 80, 40)


def test_unpaired_means_would_not_show_it() -> None:
    better = loss_by_bin(table(0.01), edges=EDGES, seed=0)[0].interval
    worse = loss_by_bin(table(), edges=EDGES, seed=0)[0].interval
    assert better.high > worse.low


def test_means_are_those_of_the_bins() -> None:
    one = table()
    found = loss_by_bin(one, edges=EDGES, seed=0)
    for bin_, chosen in zip(found, (one.t < 0.5, one.t >= 0.5), strict=True):
        assert bin_.interval.value == pytest.approx(float(one.loss[chosen].mean()), abs=1e-14)
    (whole,) = loss_by_bin(one, edges=(0.0, 1.0), seed=0)
    assert whole.interval.value == pytest.approx(float(one.loss.mean()), abs=1e-14)


def test_batches_and_ranks_come_together() -> None:
    whole = table()

    def part(rows: Tensor) -> LossTable:
        return LossTable.of(whole.image[rows], whole.t[rows], whole.loss[rows], noise=whole.noise)

    mixed = torch.randperm(160, generator=torch.Generator().manual_seed(1))
    merged = part(mixed[:70]).merge(part(mixed[70:100]), part(mixed[100:]))
    assert torch.equal(merged.loss, whole.loss)
    assert compare(merged, whole, edges=EDGES, seed=0)[0].interval.value == 0
    with pytest.raises(ValueError, match="noises seed 7 and seed 8"):
        whole.merge(table(noise="seed 8"))


def test_only_the_same_measurement_is_compared() -> None:
    one = table()
    moved = LossTable.of(one.image, one.t * 0.9, one.loss, noise=one.noise)
    fewer = LossTable.of(one.image[:8], one.t[:8], one.loss[:8], noise=one.noise)
    for other in (moved, fewer, table(noise="seed 8")):
        with pytest.raises(ValueError, match="not paired"):
            compare(one, other, edges=EDGES, seed=0)


def test_bins_are_checked() -> None:
    with pytest.raises(ValueError, match="2 or more, ascending"):
        loss_by_bin(table(), edges=(1.0, 0.0), seed=0)
    with pytest.raises(ValueError, match=r"times are 0.1 … 1, edges 0 … 0.9"):
        loss_by_bin(table(), edges=(0.0, 0.9), seed=0)
    with pytest.raises(ValueError, match=r"0 images have a time in \[0.2, 0.3\)"):
        loss_by_bin(table(), edges=(0.0, 0.2, 0.3, 1.0), seed=0)


def test_losses_are_checked() -> None:
    index = torch.arange(2)
    with pytest.raises(ValueError, match=r"1 losses or times are NaN.*image 1"):
        LossTable.of(index, torch.zeros(2), torch.tensor([0.0, float("nan")]), noise="seed 7")
    with pytest.raises(ValueError, match="2 images, 1 times, 2 losses"):
        LossTable.of(index, torch.zeros(1), torch.zeros(2), noise="seed 7")
    with pytest.raises(ValueError, match="give int64"):
        LossTable.of(index.float(), torch.zeros(2), torch.zeros(2), noise="seed 7")
