"""Are KID and CMMD those of their papers, and is the interval honest?"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from ldm import rng
from ldm.evaluation.mmd import cmmd, kid
from ldm.evaluation.statistics import Features


def features(n: int, *, seed: int, shift: float = 0.0, dim: int = 6) -> Features:
    generator = torch.Generator().manual_seed(seed)
    return Features.of(torch.arange(n), torch.randn(n, dim, generator=generator) + shift)


def unbiased(x: np.ndarray, y: np.ndarray) -> float:
    """Bińkowski et al. 2018 written as the double sum it is."""

    def kernel(a: np.ndarray, b: np.ndarray) -> float:
        return float((a @ b / len(a) + 1) ** 3)

    m = len(x)
    within = sum(
        kernel(s[i], s[j]) for s in (x, y) for i in range(m) for j in range(m) if i != j
    ) / (m * (m - 1))
    return within - 2 * np.mean([kernel(a, b) for a in x for b in y])


def test_kid_is_the_mean_over_keyed_subsets() -> None:
    one, other = features(30, seed=0), features(40, seed=1, shift=0.3)
    found = kid(one, other, seed=5, subsets=4, subset_size=12)
    expected = [
        unbiased(
            one.values.double().numpy()[rng.permutation(5, "kid/reference", k, 30)[:12]],
            other.values.double().numpy()[rng.permutation(5, "kid/samples", k, 40)[:12]],
        )
        for k in range(4)
    ]
    assert found.value == pytest.approx(np.mean(expected), abs=1e-9)
    assert found.std == pytest.approx(np.std(expected, ddof=1), abs=1e-9)
    half = 1.959963984540054 * found.std * (12 / (30 - 12) + 1 / 4) ** 0.5
    assert found.interval.half_width == pytest.approx(half, rel=1e-9)
    assert (found.n_reference, found.n_samples) == (30, 40)
    assert "40 samples, 30 references" in str(found)


def test_kid_subsets_are_those_of_the_seed() -> None:
    one, other = features(30, seed=0), features(40, seed=1)
    assert kid(one, other, seed=5, subset_size=9) == kid(one, other, seed=5, subset_size=9)
    assert kid(one, other, seed=5, subset_size=9) != kid(one, other, seed=6, subset_size=9)


def test_the_kid_interval_narrows_with_the_pictures_and_not_with_the_subsets() -> None:
    few = [features(100, seed=k, shift=k * 0.5) for k in (0, 1)]
    many = [features(1600, seed=k, shift=k * 0.5) for k in (0, 1)]
    width = kid(*few, seed=0, subset_size=25).interval.half_width
    assert kid(*few, seed=0, subset_size=25, subsets=400).interval.half_width > 0.8 * width
    narrow = kid(*many, seed=0, subset_size=25, subsets=400).interval.half_width
    assert 0.15 < narrow / width < 0.45  # a quarter, give or take what one draw of a set varies


@pytest.mark.slow
def test_the_kid_interval_holds_the_truth_as_often_as_it_says() -> None:
    """Sets of 200 again and again, truth from far larger ones; some 95 % (± 2 %) at any subset."""
    truth = kid(
        features(20000, seed=1), features(20000, seed=2, shift=0.3), seed=0, subset_size=2000
    ).value
    inside = 0
    for k in range(100):
        pair = features(200, seed=2 * k + 10), features(200, seed=2 * k + 11, shift=0.3)
        interval = kid(*pair, seed=k, subsets=50, subset_size=50).interval
        inside += interval.low <= truth <= interval.high
    assert 87 <= inside <= 100  # never too few; few subsets of a skewed distance: rarely too many


def test_kid_says_what_it_needs() -> None:
    one, other = features(30, seed=0), features(1, seed=1)
    with pytest.raises(ValueError, match=r"subset_size=10 with 1 pictures.*4 or more pictures"):
        kid(one, other, seed=0, subset_size=10)
    with pytest.raises(ValueError, match=r"subset_size=16 with 30 pictures.*use 2 … 15"):
        kid(one, one, seed=0, subset_size=16)
    with pytest.raises(ValueError, match=r"subsets=1: .*; subset_size=1 .*; level=2"):
        kid(one, one, seed=0, subset_size=1, subsets=1, level=2)
    with pytest.raises(ValueError, match="6 wide, sampled ones 4"):
        kid(one, features(30, seed=0, dim=4), seed=0, subset_size=5)


def gaussian(x: Tensor, y: Tensor) -> float:
    a, b = ((s.double() / s.double().norm(dim=1, keepdim=True)).numpy() for s in (x, y))

    def mean(p: np.ndarray, q: np.ndarray) -> float:
        return float(np.mean([np.exp(-np.sum((u - v) ** 2) / (2 * 10.0**2)) for u in p for v in q]))

    return 1000 * (mean(a, a) + mean(b, b) - 2 * mean(a, b))


def test_cmmd_is_the_published_formula() -> None:
    one, other = features(25, seed=0), features(31, seed=1, shift=0.5)
    found = cmmd(one, other)
    assert found.value == pytest.approx(gaussian(one.values, other.values), abs=1e-9)
    assert (found.n_reference, found.n_samples) == (25, 31)


def test_cmmd_does_not_see_the_length_of_features() -> None:
    one, other = features(25, seed=0), features(31, seed=1, shift=0.5)
    longer = Features.of(other.index, other.values * 8)
    assert cmmd(one, longer).value == pytest.approx(cmmd(one, other).value, abs=1e-12)


def test_cmmd_of_a_set_with_itself_is_zero() -> None:
    one = features(25, seed=0)
    assert cmmd(one, one).value == 0
    same = Features.of(torch.arange(5), torch.ones(5, 3))
    assert cmmd(same, same).value == 0


def test_cmmd_says_what_it_needs() -> None:
    one = features(25, seed=0)
    with pytest.raises(ValueError, match="1 sampled pictures: CMMD needs 2 or more"):
        cmmd(one, features(1, seed=1))
    zeros = Features.of(torch.tensor([3, 8]), torch.zeros(2, 6))
    with pytest.raises(ValueError, match=r"2 pictures have all-zero features \(the first: 3\)"):
        cmmd(one, zeros)
