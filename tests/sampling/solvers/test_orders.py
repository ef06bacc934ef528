"""Does every deterministic solver converge to the exact solution at its order?"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from itertools import combinations
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from ldm.diffusion.schedules import ScaledLinear
from ldm.sampling.levels import Levels, karras
from ldm.sampling.solvers import (
    ddim,
    dpm2,
    dpmpp_2m,
    dpmpp_2s_ancestral,
    dpmpp_sde,
    euler,
    heun,
    heun_churn,
    lms,
    plms,
    unipc,
)
from ldm.types import Denoised, Level

NO_NOISE = torch.zeros(1, dtype=torch.float64)
ORDERS = {  # solver, and the least order that 80 -> 160 -> 320 steps may show
    "ddim": (ddim, 0.95),
    "euler": (euler, 0.95),
    "heun": (heun, 1.9),
    "heun_churn of nothing": (partial(heun_churn, s_churn=0.0, noise=lambda i: NO_NOISE), 1.9),
    "dpm2": (dpm2, 1.9),
    "plms": (plms, 1.9),
    "dpmpp_2m": (dpmpp_2m, 1.9),
    "dpmpp_2s, eta 0": (partial(dpmpp_2s_ancestral, eta=0.0), 1.9),
    "dpmpp_sde, eta 0": (partial(dpmpp_sde, eta=0.0), 1.9),
    "unipc-1": (partial(unipc, order=1), 1.9),  # its corrector adds an order
    "unipc": (unipc, 2.9),
    # 2.3 to 2.6: ahead of UniPC-2, until its last two steps, of order 2 and 1, are what is left
    "unipc-3": (partial(unipc, order=3), 1.9),
    "lms-2": (partial(lms, order=2), 1.9),
    "lms-3": (partial(lms, order=3), 2.7),
    "lms-4": (lms, 3.0),
}
Solver = Callable[..., Tensor]


def error(solver: Solver, gaussian: Any, levels: Levels, z: Tensor) -> float:
    x = solver(gaussian.denoise, gaussian.exact(z, levels.at(0)), levels)
    return float((x - gaussian.exact(z, levels.at(levels.steps))).abs().max())


@pytest.mark.parametrize("name", ORDERS)
@pytest.mark.parametrize("grid", ["uniform_in_lambda", "flow_in_lambda"])
def test_order(
    name: str, grid: str, request: pytest.FixtureRequest, gaussian: Any, z: Tensor
) -> None:
    """Twice the steps divide the error by 2^order, float64; solvers know only pairs."""
    solver, order = ORDERS[name]
    make = request.getfixturevalue(grid)
    errors = [error(solver, gaussian, make(n), z) for n in (80, 160, 320)]
    assert math.log2(errors[0] / errors[1]) >= order
    assert math.log2(errors[1] / errors[2]) >= order


def test_unipc_of_order_3_is_the_most_exact(
    gaussian: Any, uniform_in_lambda: Any, z: Tensor
) -> None:
    errors = {n: error(ORDERS[n][0], gaussian, uniform_in_lambda(80), z) for n in ORDERS}
    assert sorted(errors, key=lambda name: errors[name])[:2] == ["unipc-3", "unipc"]


def test_solvers_agree_on_a_mixture(mixture: Any) -> None:
    """200 steps of one Karras grid, pairwise: the exact solution has no closed form here."""
    levels = karras(ScaledLinear(), steps=200)
    normals = torch.randn(4096, generator=torch.Generator().manual_seed(0)).double()
    x = levels.sigma[0] * normals
    ends = {name: solver(mixture.denoise, x, levels) for name, (solver, _) in ORDERS.items()}
    for one, other in combinations(ends, 2):
        rmse = float((ends[one] - ends[other]).square().mean().sqrt())
        assert rmse <= 1e-2, (one, other, rmse)


@pytest.mark.parametrize("name", ORDERS)
def test_inversion_returns(name: str, gaussian: Any, uniform_in_lambda: Any, z: Tensor) -> None:
    """Up the reversed grid and down again is the identity in the limit of many steps."""
    solver, order = ORDERS[name]

    def left(steps: int) -> float:
        levels = uniform_in_lambda(steps)
        clean = gaussian.exact(z, levels.at(steps))
        noisy = solver(gaussian.denoise, clean, levels.reversed())
        back = solver(gaussian.denoise, noisy, levels)
        return float((back - clean).abs().max())

    # twice the global error of the first-order solver at 400 steps, 7e-3
    assert left(400) <= (2e-2 if order < 1 else 1e-3)
    assert left(400) < 0.6 * left(200)


@pytest.mark.parametrize("name", ORDERS)
@pytest.mark.parametrize("steps", [1, 2, 3, 20, 40])
def test_ends_without_signal_and_without_noise_are_finite(
    name: str, steps: int, gaussian: Any, flow_to_zero: Any, z: Tensor
) -> None:
    """From alpha = 0 to sigma = 0; the denoiser is never asked at sigma = 0."""
    solver, _ = ORDERS[name]
    levels = flow_to_zero(steps)

    def denoise(x: Tensor, level: Level) -> Denoised:
        assert level.sigma > 0
        return gaussian.denoise(x, level)

    x = solver(denoise, gaussian.exact(z, levels.at(0)), levels)
    assert bool(x.isfinite().all())
    if steps == 40:
        # the exact end is mean + std z; what 40 equal steps in t leave is checked by the orders
        assert_close(x, 0.3 + 0.7 * z, rtol=0, atol=0.1)


@pytest.mark.parametrize("name", ORDERS)
@pytest.mark.parametrize("steps", [1, 2, 20])
def test_inversion_between_the_ends_is_finite(
    name: str, steps: int, gaussian: Any, flow_to_zero: Any, z: Tensor
) -> None:
    """From sigma = 0, asked for twice, up to alpha = 0."""
    up = flow_to_zero(steps).reversed()
    t = torch.cat([up.t[:1], up.t])
    up = replace(up, t=t, alpha=1 - t, sigma=t)
    x = ORDERS[name][0](gaussian.denoise, gaussian.exact(z, up.at(0)), up)
    assert bool(x.isfinite().all())
    if steps == 20:
        # at alpha = 0 the exact solution is z; 0.3 is what LMS-4 makes of so uneven steps
        assert_close(x, z, rtol=0, atol=0.4)


@pytest.mark.parametrize("name", ORDERS)
def test_a_constant_belief_is_solved_exactly_in_any_steps(
    name: str, uniform_in_lambda: Any
) -> None:
    solver, _ = ORDERS[name]
    x0, eps = torch.tensor([0.5, -1.0]).double(), torch.tensor([1.5, 0.2]).double()
    levels = uniform_in_lambda(7)
    first, last = levels.at(0), levels.at(7)
    got = solver(lambda x, level: Denoised(x0, eps), first.alpha * x0 + first.sigma * eps, levels)
    assert_close(got, last.alpha * x0 + last.sigma * eps, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", ORDERS)
def test_every_step_is_reported_and_nothing_is_changed(
    name: str, gaussian: Any, uniform_in_lambda: Any, z: Tensor
) -> None:
    solver, _ = ORDERS[name]
    levels = uniform_in_lambda(6)
    x = gaussian.exact(z, levels.at(0))
    before = x.clone(), levels.alpha.clone(), levels.sigma.clone()
    steps: list[int] = []
    watched = solver(gaussian.denoise, x, levels, on_step=lambda i, belief: steps.append(i))
    assert steps == list(range(6))
    assert torch.equal(watched, solver(gaussian.denoise, x, levels))
    after = x, levels.alpha, levels.sigma
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


@pytest.mark.parametrize("name", ORDERS)
def test_no_steps_return_x(name: str, uniform_in_lambda: Any, z: Tensor) -> None:
    solver, _ = ORDERS[name]

    def denoise(x: Tensor, level: Level) -> Denoised:
        raise AssertionError("no step, no evaluation")

    assert torch.equal(solver(denoise, z, uniform_in_lambda(5).truncate(0.0)), z)


EVALUATIONS = {"ddim": 50, "plms": 51, "heun": 99, "dpm2": 99, "dpmpp_2m": 50, "unipc": 50}


@pytest.mark.parametrize(("name", "evaluations"), EVALUATIONS.items())
def test_evaluations(name: str, evaluations: int, gaussian: Any, z: Tensor) -> None:
    """Into sigma = 0: PLMS pays one more evaluation; Heun and DPM2 two a step but the last."""
    levels = karras(ScaledLinear(), steps=50)
    asked = []

    def denoise(x: Tensor, level: Level) -> Denoised:
        asked.append(float(level.t))
        return gaussian.denoise(x, level)

    ORDERS[name][0](denoise, z, levels)
    assert len(asked) == evaluations
    if name == "plms":
        assert asked == [*levels.t[:2].tolist(), *levels.t[1:-1].tolist()]
