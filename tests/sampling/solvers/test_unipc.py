"""Does UniPC weigh what it saw as the exact solution would?"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from ldm.sampling.solvers import dpmpp_2m, unipc
from ldm.sampling.solvers.unipc import mean_x0, polynomial_shares
from ldm.types import Denoised, Level


@pytest.mark.parametrize("length", [2.0, 0.3, -0.3, 0.004])
@pytest.mark.parametrize("places", [[-1.3, -2.0], [-0.7, 1.0], [-0.7, -1.6, 1.0]])
def test_polynomials_are_averaged_exactly(places: list[float], length: float) -> None:
    """Against the integral of u^power e^(length u), normed, by many points."""
    shares = polynomial_shares(places, length)
    u = (torch.arange(200_000).double() + 0.5) / 200_000
    weight = (length * u).exp()
    for power in range(1, len(places) + 1):
        want = float((weight * u**power).sum() / weight.sum())
        got = sum(s / p * p**power for s, p in zip(shares, places, strict=True))
        # at length 0.004, as of 2,000 steps, the recursion has lost 10 of 16 digits
        assert math.isclose(got, want, abs_tol=1e-6 if abs(length) < 0.01 else 1e-9)


def test_one_other_place_counts_by_half() -> None:
    here, other = (1.0, torch.tensor(4.0)), (0.5, torch.tensor(3.0))
    assert float(mean_x0(here, [other], end=1.5)) == 4.5  # slope 2, half of a step of 0.5
    assert float(mean_x0(here, [], end=1.5)) == 4.0


def test_the_first_two_orders_predict_as_known_solvers(
    gaussian: Any, uniform_in_lambda: Any, z: Tensor
) -> None:
    """ "bh2" with half of the slope is DPM-Solver++ (2M): x at the second level is the same."""
    levels = uniform_in_lambda(20)
    x = gaussian.exact(z, levels.at(0))
    seen: dict[Any, list[Tensor]] = {}
    for solver in (unipc, dpmpp_2m):
        seen[solver] = []

        def watched(x: Tensor, level: Level, into: list[Tensor] = seen[solver]) -> Denoised:
            into.append(x)
            return gaussian.denoise(x, level)

        solver(watched, x, levels)
    assert torch.equal(seen[unipc][1], seen[dpmpp_2m][1])  # nothing to correct yet
    assert not torch.equal(seen[unipc][2], seen[dpmpp_2m][2])  # corrected


def test_order_out_of_range_is_refused(gaussian: Any, uniform_in_lambda: Any, z: Tensor) -> None:
    with pytest.raises(ValueError, match="order=4; allowed: 1, 2 or 3"):
        unipc(gaussian.denoise, z, uniform_in_lambda(3), order=4)


def test_a_level_twice_is_no_step(gaussian: Any, uniform_in_lambda: Any, z: Tensor) -> None:
    once = uniform_in_lambda(8)
    index = torch.tensor([0, 1, 2, 3, 3, 4, 5, 6, 7, 8])
    twice = type(once)(once.t[index], once.alpha[index], once.sigma[index], once.schedule)
    x = gaussian.exact(z, once.at(0))
    got = unipc(gaussian.denoise, x, twice, order=3)
    # the same but for one x0, found where the corrected x is: 3e-4
    assert_close(got, unipc(gaussian.denoise, x, once, order=3), rtol=0, atol=2e-3)
