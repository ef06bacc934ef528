"""How do solvers work that follow x0 as a line in lambda = log(alpha / sigma)?"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial

from torch import Tensor

from ldm.sampling.denoiser import Denoise
from ldm.sampling.levels import Levels
from ldm.sampling.solvers.moves import Noise, OnStep, ancestral, checked, report, with_x0

FEW_STEPS = 15  # below, the last step is first order: second order overshoots on so coarse a grid


def dpmpp_2m(
    denoise: Denoise, x: Tensor, levels: Levels, *, on_step: OnStep | None = None
) -> Tensor:
    """Lu et al. 2022 (DPM-Solver++), alg. 2: x0 as a line in lambda through this and the last step.

    First order: the first step, into sigma = 0 or alpha = 0, and the last of less than 15 steps.
    """
    return dpmpp_2m_sde(denoise, x, levels, eta=0.0, on_step=on_step)


def dpmpp_2m_sde(
    denoise: Denoise,
    x: Tensor,
    levels: Levels,
    *,
    eta: float = 1.0,
    noise: Noise | None = None,
    on_step: OnStep | None = None,
) -> Tensor:
    """DPM-Solver++ (2M) for the SDE, as k-diffusion's "midpoint": `dpmpp_2m` with new noise.

    eta means what it means in `ddim`; k-diffusion's own agrees at 0 and 1 only.
    """
    draw = checked(noise, eta)
    lambdas = (levels.alpha.double() / levels.sigma.double()).log().tolist()
    last: Tensor | None = None
    for i in range(levels.steps):
        level, to = levels.at(i), levels.at(i + 1)
        belief = better = denoise(x, level)
        at_end = i == levels.steps - 1 and levels.steps < FEW_STEPS
        growth = 0.0 if at_end else _growth(lambdas, i)
        if last is not None and growth != 0:
            better = with_x0(belief, belief.x0 + growth / 2 * (belief.x0 - last), level)
        x = ancestral(better, level, to, eta, partial(draw, i))
        last = belief.x0
        report(on_step, i, belief)
    return x


def _growth(lambdas: Sequence[float], i: int) -> float:
    """Step i over step i - 1 in lambda; 0 (first order) into or out of an end, after no step."""
    before, step = lambdas[i] - lambdas[i - 1], lambdas[i + 1] - lambdas[i]
    return step / before if before != 0 and math.isfinite(step) else 0.0
