"""How do solvers work that look ahead within a step?"""

from __future__ import annotations

from torch import Tensor

from ldm.sampling.denoiser import Denoise
from ldm.sampling.levels import Levels
from ldm.sampling.solvers.moves import OnStep, move, report, with_eps


def heun(denoise: Denoise, x: Tensor, levels: Levels, *, on_step: OnStep | None = None) -> Tensor:
    """Karras et al. 2022, alg. 1: the mean of eps at both ends of an Euler step.

    2 steps - 1 evaluations into sigma = 0; that step and the one out of alpha = 0 are Euler steps.
    """
    for i in range(levels.steps):
        level, to = levels.at(i), levels.at(i + 1)
        belief = denoise(x, level)
        x = move(belief, to)
        if level.alpha > 0 and to.sigma > 0:
            eps = (belief.eps + denoise(x, to).eps) / 2
            x = move(with_eps(belief, eps, level), to)
        report(on_step, i, belief)
    return x
