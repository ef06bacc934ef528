"""Do solvers that add noise reach the data's distribution, each picture by its own noise?

On Gaussian data a solver is linear in its start and its noises, so one run on unit vectors gives
the mean and the variance of what it samples without any drawing.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from ldm.diffusion.schedules import EDM, Flow, ScaledLinear, Schedule
from ldm.sampling.levels import Levels, karras, linspace
from ldm.sampling.solvers import (
    ddim,
    dpm2,
    dpm2_ancestral,
    dpmpp_2m,
    dpmpp_2m_sde,
    dpmpp_2s_ancestral,
    dpmpp_sde,
    euler_ancestral,
    heun,
    heun_churn,
)
from ldm.types import Denoised, Level

Solver = Callable[..., Tensor]
SOLVERS: dict[str, Solver] = {
    "euler_ancestral": euler_ancestral,
    "dpm2_ancestral": dpm2_ancestral,
    "dpmpp_2s_ancestral": dpmpp_2s_ancestral,
    "dpmpp_sde": dpmpp_sde,
    "dpmpp_2m_sde": dpmpp_2m_sde,
    "heun_churn": heun_churn,
}
WITH_ETA = {name: solver for name, solver in SOLVERS.items() if name != "heun_churn"}
TWO_DRAWS = {"dpmpp_sde"}  # a step


def keyed(count: int) -> Callable[[int], Tensor]:
    """Noise [count] of a key, from that key alone."""
    return lambda key: torch.randn(count, generator=torch.Generator().manual_seed(key)).double()


def moments(solver: Solver, gaussian: Any, levels: Levels) -> tuple[float, float]:
    """The exact mean and spread of the samples: row 0 is zero, row 1 the start, the rest noises."""
    rows = 2 + 2 * levels.steps
    basis = torch.eye(rows, dtype=torch.float64)
    first = levels.at(0)
    x = first.alpha * gaussian.mean + gaussian.spread(first) * basis[1]
    x = solver(gaussian.denoise, x, levels, noise=lambda key: basis[2 + key])
    return float(x[0]), float((x[1:] - x[0]).square().sum().sqrt())


WEAK_ORDERS = {
    "euler_ancestral": 0.9,
    "dpm2_ancestral": 1.9,
    "dpmpp_2s_ancestral": 1.9,
    "dpmpp_sde": 1.9,  # 0.9 with independent halves: they must be one Brownian motion
    "dpmpp_2m_sde": 1.8,
    "heun_churn": 1.9,
}


@pytest.mark.parametrize("name", WEAK_ORDERS)
def test_order_of_the_spread(name: str, gaussian: Any, uniform_in_lambda: Any) -> None:
    """The spread is right at this order, 80 -> 160 -> 320 steps; the mean at once."""
    solver, errors = SOLVERS[name], []
    if name == "heun_churn":  # 1.003 is not neutral, and 40 is more than these steps can take
        solver = partial(heun_churn, s_churn=8.0, s_noise=1.0, s_tmin=1e-9)
    for steps in (80, 160, 320):
        levels = uniform_in_lambda(steps)
        last = levels.at(steps)
        mean, spread = moments(solver, gaussian, levels)
        assert math.isclose(mean, float(last.alpha) * gaussian.mean, abs_tol=1e-12)
        errors.append(abs(spread - float(gaussian.spread(last))))
    assert math.log2(errors[0] / errors[1]) >= WEAK_ORDERS[name]
    assert math.log2(errors[1] / errors[2]) >= WEAK_ORDERS[name]


@pytest.mark.parametrize("name", SOLVERS)
@pytest.mark.parametrize("schedule", [ScaledLinear(), Flow(), EDM(sigma_max=20.0)], ids=str)
def test_mean_and_spread_of_samples(name: str, schedule: Schedule, gaussian: Any) -> None:
    """Monte-Carlo on schedules that reach alpha = 0 and sigma = 0, 100 steps, 20,000 samples."""
    levels = karras(schedule, steps=100)
    z = torch.randn(20_000, generator=torch.Generator().manual_seed(7)).double()
    x = gaussian.exact(z, levels.at(0))
    x = SOLVERS[name](gaussian.denoise, x, levels, noise=keyed(len(z)))
    # 5 standard errors are 0.025 and 0.018; first order leaves 0.03 of the spread besides
    assert abs(float(x.mean()) - gaussian.mean) < 0.03
    assert abs(float(x.std()) - gaussian.std) < (0.05 if name == "euler_ancestral" else 0.02)


@pytest.mark.parametrize("name", SOLVERS)
def test_shares_and_spread_on_a_mixture(name: str, mixture: Any) -> None:
    """Monte-Carlo where x0 is far from Gaussian: 30 % of the samples lie at the lower mean."""
    levels = karras(ScaledLinear(), steps=100)
    normals = torch.randn(20_000, generator=torch.Generator().manual_seed(7)).double()
    x = levels.sigma[0] * normals
    x = SOLVERS[name](mixture.denoise, x, levels, noise=keyed(len(x)))
    low = x < -0.1  # between the means, 3.6 deviations from both
    # 5 standard errors: 0.016 of the share, 0.013 and 0.009 of the spreads; the rest is the steps'
    assert abs(float(low.double().mean()) - 0.3) < 0.025
    assert abs(float(x[low].std()) - 0.25) < 0.02
    assert abs(float(x[~low].std()) - 0.25) < 0.02


@pytest.mark.parametrize("name", WITH_ETA)
@pytest.mark.parametrize("eta", [0.3, 0.8])
def test_any_eta_keeps_the_distribution(
    name: str, eta: float, gaussian: Any, uniform_in_lambda: Any
) -> None:
    levels = uniform_in_lambda(320)
    mean, spread = moments(partial(SOLVERS[name], eta=eta), gaussian, levels)
    last = levels.at(320)
    assert math.isclose(mean, float(last.alpha) * gaussian.mean, abs_tol=1e-3)
    assert math.isclose(spread, float(gaussian.spread(last)), abs_tol=1e-2)


@pytest.mark.parametrize("name", WITH_ETA)
def test_eta_0_draws_nothing(name: str, gaussian: Any, uniform_in_lambda: Any, z: Tensor) -> None:
    levels = uniform_in_lambda(9)
    x = gaussian.exact(z, levels.at(0))
    got = WITH_ETA[name](gaussian.denoise, x, levels, eta=0.0, noise=None)
    alike = {"euler_ancestral": ddim, "dpm2_ancestral": dpm2, "dpmpp_2m_sde": dpmpp_2m}
    if name in alike:
        assert torch.equal(got, alike[name](gaussian.denoise, x, levels))
    else:  # the two-stage solvers are one and the same without noise
        same = partial(dpmpp_2s_ancestral, eta=0.0)
        assert_close(got, same(gaussian.denoise, x, levels), rtol=0, atol=1e-14)


def test_churn_of_nothing_is_heun(gaussian: Any, uniform_in_lambda: Any, z: Tensor) -> None:
    levels = uniform_in_lambda(9)
    x = gaussian.exact(z, levels.at(0))
    still = heun_churn(gaussian.denoise, x, levels, s_churn=0.0, noise=keyed(4))
    aside = heun_churn(gaussian.denoise, x, levels, s_tmin=500.0, s_tmax=600.0, noise=keyed(4))
    assert torch.equal(still, heun(gaussian.denoise, x, levels))
    assert torch.equal(aside, still)
    assert not torch.equal(heun_churn(gaussian.denoise, x, levels, noise=keyed(4)), still)


def test_churn_stays_within_the_schedule(gaussian: Any, z: Tensor) -> None:
    """At its most noise nothing is added: the network never saw more."""
    levels = karras(EDM(sigma_max=20.0), steps=2)
    first = replace(levels, t=levels.t[:2], alpha=levels.alpha[:2], sigma=levels.sigma[:2])

    def noise(key: int) -> Tensor:
        raise AssertionError("nothing to add")

    got = heun_churn(gaussian.denoise, 20 * z, first, noise=noise)
    assert torch.equal(got, heun(gaussian.denoise, 20 * z, first))


@pytest.mark.parametrize("name", SOLVERS)
def test_every_key_is_asked_for_once(name: str, gaussian: Any) -> None:
    """So the noises of a picture are independent; i at step i, or 2i and 2i + 1."""
    keys: list[int] = []

    def noise(key: int) -> Tensor:
        keys.append(key)
        return torch.zeros(4, dtype=torch.float64)

    levels = karras(ScaledLinear(), steps=12)
    SOLVERS[name](gaussian.denoise, torch.ones(4, dtype=torch.float64), levels, noise=noise)
    assert keys == sorted(set(keys))
    if name in TWO_DRAWS:
        assert keys == list(range(22))  # the last step, into sigma = 0, draws nothing
    else:
        assert set(keys) <= set(range(12))
        assert len(keys) >= 10


@pytest.mark.parametrize("name", SOLVERS)
def test_a_row_depends_on_its_own_noise_only(name: str, mixture: Any) -> None:
    """Two rows together are each row alone."""
    levels = linspace(ScaledLinear(), steps=8)
    x = torch.randn(2, 3, generator=torch.Generator().manual_seed(0)).double()

    def both(key: int) -> Tensor:
        return torch.randn(2, 3, generator=torch.Generator().manual_seed(key)).double()

    together = SOLVERS[name](mixture.denoise, x, levels, noise=both)
    alone = SOLVERS[name](mixture.denoise, x[1:], levels, noise=lambda key: both(key)[1:])
    assert torch.equal(together[1:], alone)


@pytest.mark.parametrize("name", SOLVERS)
@pytest.mark.parametrize("steps", [1, 2, 3, 30])
def test_ends_without_signal_and_without_noise_are_finite(
    name: str, steps: int, gaussian: Any, flow_to_zero: Any, z: Tensor
) -> None:
    """From alpha = 0 to sigma = 0, where the denoiser is never asked."""

    def denoise(x: Tensor, level: Level) -> Denoised:
        assert level.sigma > 0
        return gaussian.denoise(x, level)

    levels = flow_to_zero(steps)
    x = SOLVERS[name](denoise, gaussian.exact(z, levels.at(0)), levels, noise=keyed(4))
    assert bool(x.isfinite().all())


@pytest.mark.parametrize("name", WITH_ETA)
def test_eta_out_of_range_and_noise_not_given(
    name: str, gaussian: Any, uniform_in_lambda: Any, z: Tensor
) -> None:
    levels = uniform_in_lambda(3)
    for wrong in (-0.1, 1.5, float("nan")):
        with pytest.raises(ValueError, match=rf"eta={wrong}; allowed: 0"):
            WITH_ETA[name](gaussian.denoise, z, levels, eta=wrong, noise=keyed(4))
    with pytest.raises(ValueError, match=r"eta=0\.3 adds noise.*give noise"):
        WITH_ETA[name](gaussian.denoise, z, levels, eta=0.3, noise=None)


def test_churn_out_of_range_is_refused(gaussian: Any, uniform_in_lambda: Any, z: Tensor) -> None:
    for wrong in ({"s_churn": -1.0}, {"s_noise": -1.0}, {"s_tmin": 0.0}, {"s_tmax": 0.01}):
        with pytest.raises(ValueError, match=r"s_churn=.*use 0 or more, and 0 < s_tmin"):
            heun_churn(gaussian.denoise, z, uniform_in_lambda(3), noise=keyed(4), **wrong)
