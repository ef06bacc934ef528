"""Are precision, recall, density and coverage those of their papers?"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from ldm.evaluation import prdc
from ldm.evaluation.prdc import density_coverage, precision_recall
from ldm.evaluation.statistics import Features


def of(values: Tensor) -> Features:
    return Features.of(torch.arange(len(values)), values)


def normal(n: int, *, seed: int, dim: int = 4, shift: float = 0.0) -> Features:
    generator = torch.Generator().manual_seed(seed)
    return of(torch.randn(n, dim, generator=generator) + shift)


def definitions(x: np.ndarray, y: np.ndarray, k: int) -> tuple[float, float, float, float]:
    """Precision, recall, density, coverage, written out sample by sample."""

    def far(a: np.ndarray, b: np.ndarray) -> float:
        return float(np.sqrt(np.sum((a - b) ** 2)))

    def radius(i: int, own: np.ndarray) -> float:
        return sorted(far(own[i], own[j]) for j in range(len(own)) if j != i)[k - 1]

    rx, ry = ([radius(i, own) for i in range(len(own))] for own in (x, y))
    d = np.array([[far(a, b) for b in y] for a in x])
    precision = np.mean([any(d[i, j] <= rx[i] for i in range(len(x))) for j in range(len(y))])
    recall = np.mean([any(d[i, j] <= ry[j] for j in range(len(y))) for i in range(len(x))])
    density = np.mean([sum(d[i, j] < rx[i] for i in range(len(x))) / k for j in range(len(y))])
    coverage = np.mean([min(d[i]) < rx[i] for i in range(len(x))])
    return float(precision), float(recall), float(density), float(coverage)


@pytest.mark.parametrize("k", [1, 3, 5])
def test_they_are_the_definitions(k: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prdc, "_PAIRS", 100)  # several blocks
    x, y = normal(41, seed=0), normal(33, seed=1, shift=0.8)
    expected = definitions(x.values.double().numpy(), y.values.double().numpy(), k)
    pr, dc = precision_recall(x, y, neighbours=k), density_coverage(x, y, neighbours=k)
    got = (pr.precision, pr.recall, dc.density, dc.coverage)
    assert got == pytest.approx(expected, abs=1e-12)
    assert 0 < min(got[:2]) <= max(got[:2]) < 1  # a case that can tell
    assert (pr.n_reference, dc.n_samples) == (41, 33)


def test_a_set_against_itself() -> None:
    x = normal(50, seed=0)
    pr, dc = precision_recall(x, x), density_coverage(x, x)
    assert (pr.precision, pr.recall, dc.coverage) == (1, 1, 1)
    assert dc.density == 1  # itself and its nearest four, over five


def test_two_draws_of_one_law_have_density_one() -> None:
    """Naeem et al. 2020, section 3.2: the expectation is 1; ± 0.1 is three standard deviations."""
    dc = density_coverage(normal(1000, seed=0), normal(1000, seed=1))
    assert dc.density == pytest.approx(1, abs=0.1)
    assert dc.coverage == pytest.approx(1 - 2.0**-5, abs=0.03)  # their eq. 9 for N = M, k = 5


def test_dropped_modes_cost_recall_and_strays_cost_precision() -> None:
    centres = torch.tensor([[0.0, 0.0], [50.0, 0.0]]).repeat(40, 1)
    x = of(normal(80, seed=0, dim=2).values + centres)
    one_mode = normal(80, seed=1, dim=2)
    dropped = precision_recall(x, one_mode)
    assert dropped.precision > 0.9
    assert dropped.recall <= 0.5
    stray = of(normal(80, seed=2, dim=2).values * 30)
    assert precision_recall(x, stray).precision < 0.5
    assert density_coverage(x, one_mode).coverage <= 0.5


def test_copies_are_at_distance_zero_and_ties_are_ties() -> None:
    """Samples that are the references, far from the origin, where a product form loses digits."""
    x = of(normal(40, seed=0).values.double() + 1e6)
    copies = of(x.values.flip(0))
    pr = precision_recall(x, copies, neighbours=1)
    assert (pr.precision, pr.recall) == (1, 1)
    assert density_coverage(x, copies, neighbours=1).density == 1


def test_a_collapsed_model_is_a_result_and_a_collapsed_reference_an_error() -> None:
    x = normal(20, seed=0)
    collapsed = of(x.values[:1].repeat(20, 1))
    pr = precision_recall(x, collapsed)
    assert (pr.precision, pr.recall) == (1, 1 / 20)  # recalls only the picture it copies
    with pytest.raises(ValueError, match="all 20 reference pictures have the same features"):
        precision_recall(collapsed, x)


def test_fewer_pictures_than_neighbours_are_an_error() -> None:
    x = normal(20, seed=0)
    with pytest.raises(ValueError, match="3 sampled pictures: neighbours=3 needs 4 or more"):
        precision_recall(x, normal(3, seed=1))
    with pytest.raises(ValueError, match="1 reference pictures: neighbours=5 needs 6"):
        density_coverage(normal(1, seed=1), x)
    with pytest.raises(ValueError, match="neighbours=0"):
        density_coverage(x, x, neighbours=0)
    assert precision_recall(x, normal(4, seed=1)).n_samples == 4
