"""How do solvers work that are exact in lambda = log(alpha / sigma)?"""

from __future__ import annotations

from torch import Tensor

from ldm.sampling.denoiser import Denoise
from ldm.sampling.levels import Levels
from ldm.sampling.solvers.moves import OnStep, move, report, with_x0

FEW_STEPS = 15  # below, the last step is first order: second order overshoots on so coarse a grid


def dpmpp_2m(
    denoise: Denoise, x: Tensor, levels: Levels, *, on_step: OnStep | None = None
) -> Tensor:
    """Lu et al. 2022 (DPM-Solver++), alg. 2: x0 as a line in lambda through this and the last step.

    First order: the first step, the step into sigma = 0 and, below 15 steps, the last step.
    """
    lambdas = (levels.alpha.double() / levels.sigma.double()).log().tolist()
    last: Tensor | None = None
    for i in range(levels.steps):
        level, to = levels.at(i), levels.at(i + 1)
        belief = denoise(x, level)
        at_end = i == levels.steps - 1 and levels.steps < FEW_STEPS
        if last is None or at_end or to.sigma == 0:
            x = move(belief, to)
        else:
            slope = (lambdas[i + 1] - lambdas[i]) / (lambdas[i] - lambdas[i - 1])
            x0 = belief.x0 + slope / 2 * (belief.x0 - last)
            x = move(with_x0(belief, x0, level), to)
        last = belief.x0
        report(on_step, i, belief)
    return x
