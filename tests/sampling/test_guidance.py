"""Is guidance the published formula, and the same under every prediction?"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from ldm.diffusion.objective import Objective
from ldm.diffusion.prediction import X0, Eps, FlowVelocity, V
from ldm.diffusion.schedules import Flow, ScaledLinear
from ldm.sampling.denoiser import Denoiser, Network
from ldm.sampling.guidance import Guidance, cfg, guided, rescaled, thresholded, within
from ldm.sampling.levels import linspace
from ldm.sampling.solvers import ddim
from ldm.types import Conditioning, Denoised, Level

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


def counting(rows: list[int]) -> Denoiser:
    """A v denoiser that says how many rows the network was asked for."""

    def network(x: Tensor, t: Tensor, context: Tensor | None, mask: Tensor | None) -> Tensor:
        rows.append(len(x))
        return eps_network(x, t, context, mask)

    return Denoiser(network, Objective(schedule=SCHEDULE, prediction=V()))


def test_guided_with_nothing_more_is_cfg() -> None:
    denoiser = counting([])
    got = guided(denoiser, COND, UNCOND, Guidance(scale=4.0, rescale=0.7))(X, LEVEL)
    want = cfg(denoiser, COND, UNCOND, 4.0, 0.7)(X, LEVEL)
    assert torch.equal(got.x0, want.x0)
    assert torch.equal(got.eps, want.eps)


def test_interval_guides_within_and_asks_once_outside() -> None:
    """Kynkäänniemi et al. 2024, eq. 5: the scale where low < sigma/alpha <= high, else 1."""
    rows: list[int] = []
    denoiser, guidance = counting(rows), Guidance(scale=4.0, interval=(0.28, 5.42))
    denoise = guided(denoiser, COND, UNCOND, guidance)
    plain, full = (cfg(denoiser, COND, UNCOND, scale) for scale in (1.0, 4.0))
    for ratio, inside in ((0.1, False), (0.3, True), (5.4, True), (5.5, False), (14.0, False)):
        wanted = torch.tensor(ratio, dtype=torch.float64)
        level = SCHEDULE.at(SCHEDULE.time_at_sigma_ratio(wanted))
        rows.clear()
        got = denoise(X, level)
        assert rows == [4 if inside else 2]
        assert torch.equal(got.x0, (full if inside else plain)(X, level).x0)


def test_interval_is_open_below_and_closed_above() -> None:
    one, other = (lambda x, level, v=v: Denoised(x + v, x + v) for v in (1.0, 0.0))
    denoise = within((0.5, 2.0), one, otherwise=other)
    for sigma, inside in ((0.5, 0.0), (0.5001, 1.0), (2.0, 1.0), (2.0001, 0.0), (math.inf, 0.0)):
        level = Level(*(torch.tensor(v) for v in (0.0, 1.0, sigma)))
        assert float(denoise(torch.zeros(1), level).x0) == inside
    level = Level(*(torch.tensor(v) for v in (1.0, 0.0, 1.0)))  # no signal at all
    assert float(within((0.5, math.inf), one, otherwise=other)(torch.zeros(1), level).x0) == 1.0


def test_interval_chooses_by_row() -> None:
    denoiser = counting([])
    denoise = guided(denoiser, COND, UNCOND, Guidance(scale=4.0, interval=(0.28, 5.42)))
    t = torch.tensor([990.0, 400.0], dtype=torch.float64)
    both = denoise(X, SCHEDULE.at(t))
    for row in range(2):
        alone = denoise(X, SCHEDULE.at(t[row]))
        assert_close(both.x0[row], alone.x0[row], rtol=0, atol=1e-14)
        assert_close(both.eps[row], alone.eps[row], rtol=0, atol=1e-14)


def test_interval_saves_passes_of_a_whole_sampling() -> None:
    rows: list[int] = []
    levels = linspace(SCHEDULE, steps=20)
    guidance = Guidance(scale=4.0, interval=(0.28, 5.42))
    ddim(guided(counting(rows), COND, UNCOND, guidance), X, levels)
    ratio = (levels.sigma / levels.alpha)[:-1]
    inside = int(((ratio > 0.28) & (ratio <= 5.42)).sum())
    assert 8 < inside < 18
    assert sum(rows) == 2 * 20 + 2 * inside


def belief_of(x0: Tensor) -> Any:
    """A denoiser that always believes x0, and the eps that goes with it."""
    return lambda x, level: Denoised(x0, (x - level.alpha * x0) / level.sigma)


def test_threshold_is_the_published_formula() -> None:
    """Saharia et al. 2022: s = max(percentile of |x0|, 1) per picture; clip to [-s, s], over s."""
    x0 = 3 * X
    got = thresholded(belief_of(x0), 0.9)(X, LEVEL)
    for row in range(2):
        s = torch.quantile(x0[row].abs().flatten(), 0.9)
        assert_close(got.x0[row], x0[row].clamp(-s, s) / s, rtol=0, atol=1e-14)
    assert_close(LEVEL.alpha * got.x0 + LEVEL.sigma * got.eps, X, rtol=0, atol=1e-14)


def test_threshold_leaves_what_is_below_its_floor() -> None:
    small = X / X.abs().max()
    got = thresholded(belief_of(small), 0.9)(X, LEVEL)
    assert_close(got.x0, small.clamp(-1, 1), rtol=0, atol=1e-15)
    # of latents: the floor is their usual range, and what is beyond is brought back to it
    wide = thresholded(belief_of(3 * X), 0.9, floor=4.0)(X, LEVEL)
    assert float(wide.x0.abs().max()) <= 4.0 + 1e-12
    untouched = thresholded(belief_of(X), 0.9, floor=20.0)(X, LEVEL)
    assert torch.equal(untouched.x0, X)


@pytest.mark.parametrize("scale", [1.0, 6.0])
def test_threshold_is_used_at_any_scale(scale: float) -> None:
    guidance = Guidance(scale=scale, threshold=0.9, threshold_floor=0.1)
    got = guided(counting([]), COND, UNCOND, guidance)(X, LEVEL)
    assert float(got.x0.abs().max()) <= 0.1 + 1e-12
    assert_close(LEVEL.alpha * got.x0 + LEVEL.sigma * got.eps, X, rtol=0, atol=1e-14)


def test_threshold_is_finite_at_both_ends() -> None:
    """No noise: x is x0 itself and stays; no signal: eps is x itself and stays."""
    for t in (0.0, 1.0):
        level = Flow().at(torch.tensor(t, dtype=torch.float64))
        got = thresholded(lambda x, level: Denoised(3 * X, X), 0.9)(X, level)
        assert bool(got.x0.isfinite().all() & got.eps.isfinite().all())
        assert torch.equal(got.eps, X)
        assert torch.equal(got.x0, 3 * X) == (t == 0)


def test_all_of_it_samples_with_levels_of_float32() -> None:
    guidance = Guidance(scale=6.0, rescale=0.5, interval=(0.2, 9.0), threshold=0.99)
    levels = linspace(SCHEDULE, steps=10)
    x = X.float()
    halves = [replace(c, context=c.context.float()) for c in (COND, UNCOND)]  # type: ignore
    got = ddim(guided(counting([]), *halves, guidance), x, levels)
    assert got.dtype == torch.float32
    assert float(got.abs().max()) <= 1 + 1e-6  # the last step ends at x0


def test_every_wrong_value_is_told_at_once() -> None:
    with pytest.raises(ValueError, match="use 1") as caught:
        Guidance(scale=-1.0, rescale=2.0, interval=(3.0, 1.0), threshold=99.5, threshold_floor=0.0)
    told = str(caught.value)
    assert len(told.splitlines()) == 5
    assert all(
        part in told
        for part in ("guidance=-1.0", "rescale=2.0", "(3.0, 1.0)", "threshold=99.5", "floor=0.0")
    )
    wrong: dict[str, list[Any]] = {
        "scale": [math.nan, math.inf],
        "rescale": [-0.1, math.nan],
        "interval": [(0.5,), (0.5, 0.5), (-1.0, 2.0), (math.nan, 2.0), (0.1, 1.0, 2.0), ()],
        "threshold": [0.0, -1.0, 1.5, math.nan],
        "threshold_floor": [-1.0, math.nan, math.inf],
    }
    for name, values in wrong.items():
        for value in values:
            with pytest.raises(ValueError, match="guidance" if name == "scale" else name):
                Guidance(**{name: value})
    Guidance(scale=0.0, interval=(0.0, math.inf), threshold=1.0)


def test_contexts_that_do_not_fit_are_refused() -> None:
    denoiser = counting([])
    longer = Conditioning(context=torch.zeros(2, 3, 1, dtype=torch.float64))
    with pytest.raises(ValueError, match=r"context is \[2, 1, 1\].*\[2, 3, 1\].*as many tokens"):
        cfg(denoiser, longer, UNCOND, scale=2.0)
    with pytest.raises(ValueError, match="context is"):
        cfg(denoiser, COND, UNCOND.rows(slice(1)), scale=2.0)
    with pytest.raises(ValueError, match="the negative side has no mask") as caught:
        cfg(denoiser, replace(longer, mask=torch.ones(2, 3).bool()), UNCOND, scale=2.0)
    assert len(str(caught.value).splitlines()) == 2
    cfg(denoiser, longer, UNCOND, scale=1.0)  # the other side plays no part
