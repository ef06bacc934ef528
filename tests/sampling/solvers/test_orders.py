"""Does every solver converge to the exact solution at its order?"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from ldm.sampling.levels import Levels
from ldm.sampling.solvers import ddim, dpmpp_2m, euler, heun, lms, plms
from ldm.types import Denoised, Level

ORDERS = {
    "ddim": (ddim, 0.95),
    "euler": (euler, 0.95),
    "heun": (heun, 1.9),
    "plms": (plms, 1.9),
    "dpmpp_2m": (dpmpp_2m, 1.9),
    "lms-2": (partial(lms, order=2), 1.9),
    "lms-3": (partial(lms, order=3), 2.7),
    "lms-4": (lms, 3.0),
}
Solver = Callable[..., Tensor]


def error(solver: Solver, gaussian: Any, levels: Levels, z: Tensor) -> float:
    x = solver(gaussian.denoise, gaussian.exact(z, levels.at(0)), levels)
    return float((x - gaussian.exact(z, levels.at(levels.steps))).abs().max())


@pytest.mark.parametrize("name", ORDERS)
def test_order(name: str, gaussian: Any, uniform_in_lambda: Any, z: Tensor) -> None:
    """Twice the steps divide the error by 2^order; 80 -> 160 -> 320 steps, float64."""
    solver, order = ORDERS[name]
    errors = [error(solver, gaussian, uniform_in_lambda(n), z) for n in (80, 160, 320)]
    assert math.log2(errors[0] / errors[1]) >= order
    assert math.log2(errors[1] / errors[2]) >= order


@pytest.mark.parametrize("name", ORDERS)
def test_order_on_flow(name: str, gaussian: Any, uniform_in_lambda: Any, z: Tensor) -> None:
    """The same on alpha = 1 - t, sigma = t: solvers know only pairs."""
    solver, order = ORDERS[name]

    def flow(steps: int) -> Levels:
        lam = uniform_in_lambda(steps).t
        return Levels(lam, lam.sigmoid(), (-lam).sigmoid())

    errors = [error(solver, gaussian, flow(n), z) for n in (80, 160, 320)]
    assert math.log2(errors[1] / errors[2]) >= order


@pytest.mark.parametrize("name", ORDERS)
def test_inversion_returns(name: str, gaussian: Any, uniform_in_lambda: Any, z: Tensor) -> None:
    """Up the reversed grid and down again is the identity in the limit of many steps."""
    solver, _ = ORDERS[name]
    levels = uniform_in_lambda(400)
    clean = gaussian.exact(z, levels.at(400))
    noisy = solver(gaussian.denoise, clean, levels.reversed())
    back = solver(gaussian.denoise, noisy, levels)
    # twice the global error of the first-order solver at 400 steps, 7e-3
    assert_close(back, clean, rtol=0, atol=2e-2 if ORDERS[name][1] < 1 else 1e-3)


@pytest.mark.parametrize("name", ORDERS)
@pytest.mark.parametrize("steps", [1, 2, 3, 20, 40])
def test_ends_without_signal_and_without_noise_are_finite(
    name: str, steps: int, gaussian: Any, z: Tensor
) -> None:
    """From alpha = 0 to sigma = 0; the denoiser is never asked at sigma = 0."""
    solver, _ = ORDERS[name]
    t = torch.linspace(1, 0, steps + 1, dtype=torch.float64)
    levels = Levels(t, 1 - t, t)

    def denoise(x: Tensor, level: Level) -> Denoised:
        assert level.sigma > 0
        belief = gaussian.denoise(x, level)
        return Denoised(belief.x0, belief.eps)

    x = solver(denoise, gaussian.exact(z, levels.at(0)), levels)
    assert bool(x.isfinite().all())
    if steps == 40:
        # the exact end is mean + std z; what 40 equal steps in t leave is checked by the orders
        assert_close(x, 0.3 + 0.7 * z, rtol=0, atol=0.1)


@pytest.mark.parametrize("name", ORDERS)
@pytest.mark.parametrize("steps", [1, 2, 20])
def test_inversion_between_the_ends_is_finite(
    name: str, steps: int, gaussian: Any, z: Tensor
) -> None:
    """From sigma = 0, asked for twice, up to alpha = 0."""
    t = torch.cat([torch.zeros(1), torch.linspace(0, 1, steps + 1)]).double()
    up = Levels(t, 1 - t, t)
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


@pytest.mark.parametrize(("name", "evaluations"), [("ddim", 50), ("plms", 51), ("heun", 99)])
def test_evaluations(name: str, evaluations: int, gaussian: Any, z: Tensor) -> None:
    """Into sigma = 0: PLMS pays one more evaluation, Heun two a step but the last."""
    t = torch.linspace(0.99, 0, 51, dtype=torch.float64)
    asked = []

    def denoise(x: Tensor, level: Level) -> Denoised:
        asked.append(float(level.t))
        return gaussian.denoise(x, level)

    ORDERS[name][0](denoise, z, Levels(t, 1 - t, t))
    assert len(asked) == evaluations
    if name == "plms":
        assert asked == [*t[:2].tolist(), *t[1:-1].tolist()]
