"""Does an interval hold the truth as often as it says?"""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ldm.evaluation.bootstrap import bootstrap_mean, bootstrap_ratio


def skewed(n: int, seed: int) -> torch.Tensor:
    return -torch.rand(n, generator=torch.Generator().manual_seed(seed)).double().log()  # mean 1


def test_the_width_is_that_of_the_normal_law() -> None:
    values = torch.randn(400, generator=torch.Generator().manual_seed(0))
    interval = bootstrap_mean(values, seed=1, purpose="test")
    expected = 1.96 * float(values.double().std()) / 400**0.5
    assert interval.half_width == pytest.approx(expected, rel=0.08)
    assert interval.value == pytest.approx(float(values.double().mean()), abs=1e-15)
    assert interval.low < interval.value < interval.high


@pytest.mark.reference
def test_scipy_has_the_same_interval() -> None:
    from scipy.stats import bootstrap

    values = skewed(15, 3).square()  # skewed enough for bias and acceleration to show
    interval = bootstrap_mean(values, seed=1, purpose="test", draws=40_000)
    other = bootstrap(
        (values.numpy(),), np.mean, method="BCa", n_resamples=40_000, rng=np.random.default_rng(0)
    ).confidence_interval
    slack = 0.04 * (other.high - other.low)  # from draw to draw either varies by some 1 %
    assert interval.low == pytest.approx(other.low, abs=slack)
    assert interval.high == pytest.approx(other.high, abs=slack)


def test_it_holds_the_truth() -> None:
    found = [bootstrap_mean(skewed(60, k), seed=k, purpose="t", draws=400) for k in range(200)]
    share = np.mean([interval.low <= 1 <= interval.high for interval in found])
    assert 0.90 <= share <= 0.99  # 0.95; a skewed law and 60 values cost a little, 200 tries ± 0.03


def test_draws_are_keyed() -> None:
    values = skewed(40, 0)
    one = bootstrap_mean(values, seed=1, purpose="a")
    assert one == bootstrap_mean(values, seed=1, purpose="a")
    assert one != bootstrap_mean(values, seed=2, purpose="a")
    assert one != bootstrap_mean(values, seed=1, purpose="b")


def test_rows_that_gave_more_values_count_more() -> None:
    interval = bootstrap_ratio(
        torch.tensor([2.0, 9.0]), torch.tensor([1, 3]), seed=0, purpose="test"
    )
    assert interval.value == 11 / 4
    assert interval.n == 2


def test_values_that_hang_together_are_drawn_together() -> None:
    """Every value four times over: no more is known than from each once."""
    values = skewed(50, 0)
    four = torch.full((50,), 4)
    repeated = bootstrap_ratio(4 * values, four, seed=1, purpose="test")
    assert repeated.half_width == pytest.approx(
        bootstrap_mean(values, seed=1, purpose="test").half_width
    )


def test_equal_values_are_certain() -> None:
    interval = bootstrap_mean(torch.full((5,), 0.25), seed=0, purpose="test")
    assert (interval.low, interval.high) == (0.25, 0.25)
    assert interval.excludes_zero


def test_all_that_is_wrong_is_said_at_once() -> None:
    with pytest.raises(ValueError, match=r"N of 2 or more; level=95 .*; draws=5 are too few"):
        bootstrap_mean(torch.ones(1), seed=0, purpose="test", level=95, draws=5)
    with pytest.raises(ValueError, match=r"1 values are NaN or infinite"):
        bootstrap_mean(torch.tensor([1.0, float("nan")]), seed=0, purpose="test")
    with pytest.raises(ValueError, match="counts are not positive"):
        bootstrap_ratio(torch.ones(2), torch.tensor([1, 0]), seed=0, purpose="test")


def test_an_interval_reads_as_x_plus_minus_y() -> None:
    text = str(bootstrap_mean(skewed(100, 0), seed=0, purpose="test"))
    assert "±" in text
    assert "95%, n=100" in text
