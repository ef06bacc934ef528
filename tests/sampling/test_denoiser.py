"""Does a perfect network become the perfect denoiser under every objective?"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from ldm.diffusion.objective import Objective
from ldm.diffusion.prediction import X0, Edm, Eps, FlowVelocity, V
from ldm.diffusion.schedules import EDM, Cosine, Flow, ScaledLinear, Schedule
from ldm.sampling.denoiser import Denoiser, Network
from ldm.sampling.guidance import cfg
from ldm.sampling.presets import SAMPLERS
from ldm.types import Conditioning, Level

OBJECTIVES = [
    Objective(schedule=ScaledLinear(), prediction=Eps()),
    Objective(schedule=ScaledLinear(), prediction=X0()),
    Objective(schedule=ScaledLinear(zero_terminal_snr=True), prediction=V()),
    Objective(schedule=Cosine(), prediction=V()),
    Objective(schedule=Flow(), prediction=FlowVelocity()),
    Objective(schedule=Flow(), prediction=V()),
    Objective(schedule=EDM(), prediction=Edm(sigma_data=0.7)),
]
NAMES = [f"{type(o.schedule).__name__}-{o.prediction.name}" for o in OBJECTIVES]
TIME_OF: dict[type, Callable[[Tensor], Tensor]] = {  # back from what the network is fed
    Flow: lambda fed: fed / 1000,
    EDM: lambda fed: (4 * fed).exp(),
}


def level_of(schedule: Schedule, fed: Tensor) -> Level:
    return schedule.at(TIME_OF.get(type(schedule), lambda t: t)(fed))


def perfect_network(objective: Objective, gaussian: Any) -> Network:
    """What training would converge to; it sees only its input and the time."""

    def network(x: Tensor, t: Tensor, context: Tensor | None, mask: Tensor | None) -> Tensor:
        level = level_of(objective.schedule, t)
        rows = level.expand(x)
        unscaled = x / objective.prediction.scaled_input(torch.ones_like(x), rows)
        belief = gaussian.denoise(unscaled, rows)
        return objective.target(belief.x0, belief.eps, level)

    return network


@pytest.mark.parametrize("objective", OBJECTIVES, ids=NAMES)
def test_denoiser_of_a_perfect_network(objective: Objective, gaussian: Any) -> None:
    denoiser = Denoiser(perfect_network(objective, gaussian), objective)
    low, high = objective.schedule.time_range
    level = objective.schedule.at(torch.tensor([low + 0.3 * (high - low)], dtype=torch.float64))
    x = torch.randn(1, 2, 3, 3, generator=torch.Generator().manual_seed(0)).double()
    got = denoiser(x, level, Conditioning())
    want = gaussian.denoise(x, level.expand(x))
    assert_close(got.x0, want.x0, rtol=0, atol=1e-9)
    assert_close(got.eps, want.eps, rtol=0, atol=1e-9)


@pytest.mark.parametrize("objective", OBJECTIVES, ids=NAMES)
@pytest.mark.parametrize("name", SAMPLERS)
def test_every_sampler_samples_every_model(name: str, objective: Objective, gaussian: Any) -> None:
    """From normals to the data's mean and spread, with no case for zero SNR, flow or EDM."""
    sampler = SAMPLERS[name]
    levels = sampler.grid(objective.schedule, steps=100)
    denoiser, none = Denoiser(perfect_network(objective, gaussian), objective), Conditioning()
    denoise = cfg(denoiser, none, none, scale=1.0)

    def noise(step: int) -> Tensor:
        return torch.randn(16, 4, 8, 8, generator=torch.Generator().manual_seed(step))

    x = sampler.start(noise(-1), levels)
    x = sampler.solve(denoise, x, levels, eta=sampler.eta, noise=noise)
    assert x.dtype == torch.float32
    # 4096 values: standard errors 0.011 and 0.008. 100 first-order steps are short in spread, by
    # 0.03 to 0.09 (shifted); a start from N(0, 1) where alpha is 0.068 leaves 0.02 of the mean
    assert math.isclose(float(x.mean()), gaussian.mean, abs_tol=0.04)
    assert math.isclose(float(x.std()), gaussian.std, abs_tol=0.1)


def recording(out_channels: int, calls: list[Any]) -> Network:
    def network(x: Tensor, t: Tensor, context: Tensor | None, mask: Tensor | None) -> Tensor:
        calls.append((x, t, context, mask))
        return x[:, :out_channels].bfloat16()

    return network


def test_network_is_fed_rows_of_time_and_joined_channels() -> None:
    calls: list[Any] = []
    objective = Objective(schedule=ScaledLinear(), prediction=Eps())
    cond = Conditioning(
        context=torch.ones(2, 7, 5), mask=torch.ones(2, 7).bool(), concat=torch.ones(2, 5, 4, 4)
    )
    x = torch.randn(2, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    scalar = Level(*(torch.tensor(v) for v in (981.0, 0.1, 0.99)))
    out = Denoiser(recording(4, calls), objective).output(x, scalar, cond)
    ((fed, t, context, mask),) = calls
    assert torch.equal(fed, torch.cat([x, cond.concat], dim=1))  # noisy latents first
    assert t.tolist() == [981, 981]
    assert context is cond.context
    assert mask is cond.mask
    assert out.dtype == torch.float32  # a half-precision network does not lower the sampler's


def test_float64_levels_do_not_raise_float32_latents() -> None:
    calls: list[Any] = []
    objective = Objective(schedule=EDM(), prediction=Edm())
    level = EDM().at(torch.tensor(2.0, dtype=torch.float64))
    got = Denoiser(recording(4, calls), objective)(torch.ones(3, 4, 2, 2), level, Conditioning())
    assert got.x0.dtype == got.eps.dtype == calls[0][0].dtype == calls[0][1].dtype == torch.float32
