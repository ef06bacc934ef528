"""How do solvers work that are exact in lambda = log(alpha / sigma)?"""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor

from ldm.sampling.denoiser import Denoise
from ldm.sampling.levels import Levels
from ldm.sampling.solvers.moves import OnStep, move, report, with_x0

FEW_STEPS = 15  # below, the last step is first order: second order overshoots on so coarse a grid


def dpmpp_2m(
    denoise: Denoise, x: Tensor, levels: Levels, *, on_step: OnStep | None = None
) -> Tensor:
    """Lu et al. 2022 (DPM-Solver++), alg. 2: x0 as a line in lambda through this and the last step.

    First order: the first step, into sigma = 0 or alpha = 0, and the last of less than 15 steps.
    """
    lambdas = (levels.alpha.double() / levels.sigma.double()).log().tolist()
    last: Tensor | None = None
    for i in range(levels.steps):
        level, to = levels.at(i), levels.at(i + 1)
        belief = denoise(x, level)
        at_end = i == levels.steps - 1 and levels.steps < FEW_STEPS
        growth = 0.0 if at_end else _growth(lambdas, i)
        if last is None or growth == 0:
            x = move(belief, to)
        else:
            x0 = belief.x0 + growth / 2 * (belief.x0 - last)
            x = move(with_x0(belief, x0, level), to)
        last = belief.x0
        report(on_step, i, belief)
    return x


def _growth(lambdas: Sequence[float], i: int) -> float:
    """Step i over step i - 1 in lambda; 0 (first order) into or out of an end, after no step."""
    before, step = lambdas[i] - lambdas[i - 1], lambdas[i + 1] - lambdas[i]
    return step / before if before != 0 and math.isfinite(step) else 0.0
