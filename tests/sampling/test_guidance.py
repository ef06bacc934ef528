"""Is guidance the published formula, and the same under every prediction?"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from ldm.diffusion.objective import Objective
from ldm.diffusion.prediction import X0, Eps, FlowVelocity, V
from ldm.diffusion.schedules import ScaledLinear
from ldm.sampling.denoiser import Denoiser, Network
from ldm.sampling.guidance import cfg, rescaled
from ldm.types import Conditioning, Level

SCHEDULE = ScaledLinear()
COND = Conditioning(context=torch.full((2, 1, 1), 2.0, dtype=torch.float64))
UNCOND = Conditioning(context=torch.full((2, 1, 1), -1.0, dtype=torch.float64))
X = torch.randn(2, 4, 5, 5, generator=torch.Generator().manual_seed(0)).double()
LEVEL = SCHEDULE.at(torch.tensor(400.0, dtype=torch.float64))


def eps_network(x: Tensor, t: Tensor, context: Tensor | None, mask: Tensor | None) -> Tensor:
    assert context is not None
    return (0.7 * x.roll(1, -1) + 0.3 * context[:, :, :, None]).tanh()


def said_as(objective: Objective) -> Network:
    """The eps network, its answer said in another parameterisation."""

    def network(x: Tensor, t: Tensor, context: Tensor | None, mask: Tensor | None) -> Tensor:
        eps = eps_network(x, t, context, mask)
        level = SCHEDULE.at(t)
        rows = level.expand(x)
        return objective.target((x - rows.sigma * eps) / rows.alpha, eps, level)

    return network


@pytest.mark.parametrize("prediction", [Eps(), X0(), V(), FlowVelocity()], ids=str)
def test_guidance_is_affine_in_eps(prediction: Eps) -> None:
    objective = Objective(schedule=SCHEDULE, prediction=prediction)
    got = cfg(Denoiser(said_as(objective), objective), COND, UNCOND, scale=7.5)(X, LEVEL)
    t = LEVEL.t.expand(2)
    cond = eps_network(X, t, COND.context, None)
    uncond = eps_network(X, t, UNCOND.context, None)
    want = uncond + 7.5 * (cond - uncond)
    assert_close(got.eps, want, rtol=0, atol=1e-12)
    assert_close(got.x0, (X - LEVEL.sigma * want) / LEVEL.alpha, rtol=0, atol=1e-12)


def test_scale_1_asks_for_the_condition_only() -> None:
    objective = Objective(schedule=SCHEDULE, prediction=V())
    rows = []

    def network(x: Tensor, t: Tensor, context: Tensor | None, mask: Tensor | None) -> Tensor:
        rows.append(len(x))
        return eps_network(x, t, context, mask)

    denoiser = Denoiser(network, objective)
    got = cfg(denoiser, COND, UNCOND, scale=1.0, rescale=0.7)(X, LEVEL)
    assert torch.equal(got.eps, denoiser(X, LEVEL, COND).eps)
    assert rows == [2, 2]


def test_one_call_unconditional_rows_first() -> None:
    objective = Objective(schedule=SCHEDULE, prediction=V())
    seen: list[Tensor] = []

    def network(x: Tensor, t: Tensor, context: Tensor | None, mask: Tensor | None) -> Tensor:
        assert context is not None
        seen.extend([x, t, context])
        return x

    cfg(Denoiser(network, objective), COND, UNCOND, scale=3.0)(X, LEVEL)
    assert len(seen) == 3
    assert torch.equal(seen[0], torch.cat([X, X]))
    assert seen[1].tolist() == [400.0] * 4
    assert seen[2].flatten().tolist() == [-1, -1, 2, 2]


def test_scale_0_is_unconditional() -> None:
    objective = Objective(schedule=SCHEDULE, prediction=Eps())
    denoiser = Denoiser(eps_network, objective)
    got = cfg(denoiser, COND, UNCOND, scale=0.0)(X, LEVEL)
    assert_close(got.eps, denoiser(X, LEVEL, UNCOND).eps, rtol=0, atol=1e-15)


def test_levels_may_differ_by_row() -> None:
    objective = Objective(schedule=SCHEDULE, prediction=V())
    denoise = cfg(Denoiser(eps_network, objective), COND, UNCOND, scale=4.0)
    t = torch.tensor([100.0, 800.0], dtype=torch.float64)
    both = denoise(X, SCHEDULE.at(t))
    for row in range(2):
        alone = denoise(X, SCHEDULE.at(t[row]))
        assert_close(both.x0[row], alone.x0[row], rtol=0, atol=1e-14)


def test_rescaled_has_the_conditional_spread() -> None:
    """Lin et al. 2023, eq. 15: at share 1 the spread of every row is the conditional one's."""
    out, cond = 3 * X + 1, X.flip(0)
    full = rescaled(out, cond, 1.0)
    assert_close(full.std((1, 2, 3)), cond.std((1, 2, 3)), rtol=1e-12, atol=0)
    half = rescaled(out, cond, 0.5)
    assert_close(half, (full + out) / 2, rtol=0, atol=1e-12)
    assert bool(rescaled(torch.zeros_like(X), cond, 0.7).isfinite().all())


def test_rescale_is_used() -> None:
    objective = Objective(schedule=SCHEDULE, prediction=V())
    denoiser = Denoiser(eps_network, objective)
    got = cfg(denoiser, COND, UNCOND, scale=5.0, rescale=0.7)(X, LEVEL)
    rows = Level(*(value.expand(2) for value in (LEVEL.t, LEVEL.alpha, LEVEL.sigma)))
    cond, uncond = (denoiser.output(X, rows, c) for c in (COND, UNCOND))
    want = rescaled(uncond + 5 * (cond - uncond), cond, 0.7)
    assert_close(got.x0, objective.recover(X, want, rows).x0, rtol=0, atol=1e-12)


def test_rescale_out_of_range_is_refused() -> None:
    objective = Objective(schedule=SCHEDULE, prediction=V())
    with pytest.raises(ValueError, match=r"rescale=1\.5; allowed: 0"):
        cfg(Denoiser(eps_network, objective), COND, UNCOND, scale=5.0, rescale=1.5)
