"""Are merged statistics those of the whole, whoever measured what?"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from ldm.evaluation.statistics import Features, Moments, merged


def rows(n: int, dim: int = 5, *, seed: int = 0, offset: float = 0.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, dim, generator=generator, dtype=torch.float64) + offset


def test_moments_are_those_of_numpy() -> None:
    values = rows(40)
    moments = Moments.of(values)
    assert_close(moments.mean.numpy(), values.numpy().mean(0), rtol=0, atol=1e-14)
    assert_close(moments.covariance().numpy(), np.cov(values.numpy().T), rtol=0, atol=1e-13)


@pytest.mark.parametrize("sizes", [(40,), (20, 20), (1, 38, 1), (13, 13, 14)])
def test_parts_together_are_the_whole(sizes: tuple[int, ...]) -> None:
    values = rows(40, offset=3.0)
    together = merged(Moments.of(part) for part in values.split(sizes))
    whole = Moments.of(values)
    assert together.count == 40
    assert_close(together.mean, whole.mean, rtol=0, atol=1e-13)
    assert_close(together.scatter, whole.scatter, rtol=0, atol=1e-11)  # entries of some 40


def test_a_large_mean_costs_no_digits() -> None:
    """Sums of raw products would leave 1e12 x 1e-16 x 40 of rounding in a scatter of 40."""
    near, far = rows(40), rows(40, offset=1e6)
    parts = merged(Moments.of(part) for part in far.split(7))
    assert_close(parts.scatter, Moments.of(near).scatter, rtol=0, atol=1e-6)


def test_half_precision_is_taken_up_in_double() -> None:
    moments = Moments.of(rows(40).half())
    assert moments.scatter.dtype == torch.float64
    assert_close(moments.scatter, Moments.of(rows(40).half().double()).scatter, rtol=0, atol=0)


def test_features_are_the_same_bits_in_any_order_and_split() -> None:
    values, index = rows(11).float(), torch.arange(11)
    whole = Features.of(index, values)
    mixed = Features.of(
        index[6:], values[6:]
    ).merge(
        Features.of(index[:0], values[:0]),  # a rank without pictures
        Features.of(index[:6].flip(0), values[:6].flip(0)),
    )
    assert torch.equal(mixed.index, whole.index)
    assert torch.equal(mixed.values, whole.values)
    assert torch.equal(Moments.of(mixed.values).scatter, Moments.of(whole.values).scatter)


def test_a_picture_that_counts_twice_is_named() -> None:
    part = Features.of(torch.tensor([4, 7]), rows(2))
    with pytest.raises(ValueError, match=r"1 pictures are there more than once.*\[7\]"):
        part.merge(Features.of(torch.tensor([7, 9]), rows(2)))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_features_that_are_not_finite_are_named(bad: float) -> None:
    values = rows(4)
    values[2, 1] = bad
    with pytest.raises(ValueError, match=r"1 pictures have NaN or infinite.*\[12\]"):
        Features.of(torch.arange(10, 14), values)
    with pytest.raises(ValueError, match="NaN or infinite"):
        Moments.of(values)


def test_shapes_are_checked() -> None:
    with pytest.raises(ValueError, match=r"give floats \[N,D\]"):
        Moments.of(torch.zeros(3))
    with pytest.raises(ValueError, match="give floats"):
        Moments.of(torch.zeros(3, 2, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"give int64 \[N\]"):
        Features.of(torch.arange(2), rows(3))
    with pytest.raises(ValueError, match="no features"):
        Moments.of(rows(0))
    with pytest.raises(ValueError, match="5 and 6"):
        Moments.of(rows(3)).merge(Moments.of(rows(3, 6)))
    one = Features.of(torch.arange(2), rows(2))
    with pytest.raises(ValueError, match="5 and 6 wide"):
        one.merge(Features.of(torch.arange(2, 4), rows(2, 6)))


def test_one_picture_has_a_mean_and_no_covariance() -> None:
    one = Moments.of(rows(1))
    assert torch.equal(one.mean, rows(1)[0])
    with pytest.raises(ValueError, match="1 picture has no covariance"):
        one.covariance()
