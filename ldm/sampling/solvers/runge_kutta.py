"""How do solvers work that look at both ends of a step?"""

from __future__ import annotations

import math

from torch import Tensor

from ldm.sampling.denoiser import Denoise
from ldm.sampling.levels import Levels
from ldm.sampling.solvers.moves import Noise, OnStep, move, report, with_eps
from ldm.types import Denoised, Level


def heun(denoise: Denoise, x: Tensor, levels: Levels, *, on_step: OnStep | None = None) -> Tensor:
    """Karras et al. 2022, alg. 1: the mean of eps at both ends of an Euler step.

    2 steps - 1 evaluations into sigma = 0; that step and the one out of alpha = 0 are Euler steps.
    """
    for i in range(levels.steps):
        x, belief = _step(denoise, x, levels.at(i), levels.at(i + 1))
        report(on_step, i, belief)
    return x


def heun_churn(
    denoise: Denoise,
    x: Tensor,
    levels: Levels,
    *,
    noise: Noise,
    s_churn: float = 40.0,
    s_tmin: float = 0.05,
    s_tmax: float = 50.0,
    s_noise: float = 1.003,
    on_step: OnStep | None = None,
) -> Tensor:
    """Karras et al. 2022, alg. 2: noise is added before each Heun step; settings of ImageNet-64.

    s_tmin, s_tmax: where, in sigma/alpha. Not beyond the schedule's most noise, nor at alpha = 0.
    """
    if s_churn < 0 or s_noise < 0 or not 0 < s_tmin <= s_tmax:
        raise ValueError(
            f"{s_churn=}, {s_noise=}, {s_tmin=}, {s_tmax=}; use 0 or more, and 0 < s_tmin <= s_tmax"
        )
    gamma = min(s_churn / max(levels.steps, 1), math.sqrt(2) - 1)
    for i in range(levels.steps):
        level, to = levels.at(i), levels.at(i + 1)
        ratio = float(level.sigma / level.alpha)
        if gamma > 0 and s_tmin <= ratio <= s_tmax:
            up = levels.at_ratio((1 + gamma) * ratio)
            grown = up.alpha / level.alpha
            added = up.sigma**2 - (grown * level.sigma) ** 2
            if added > 0:
                x, level = grown * x + added.sqrt() * s_noise * noise(i), up
        x, belief = _step(denoise, x, level, to)
        report(on_step, i, belief)
    return x


def _step(denoise: Denoise, x: Tensor, level: Level, to: Level) -> tuple[Tensor, Denoised]:
    """x at `to` by Heun's method, and what was believed at `level`."""
    belief = denoise(x, level)
    x = move(belief, to)
    if level.alpha > 0 and to.sigma > 0:
        eps = (belief.eps + denoise(x, to).eps) / 2
        x = move(with_eps(belief, eps, level), to)
    return x, belief
