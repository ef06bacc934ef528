"""How do solvers work that reuse the eps of earlier steps?"""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor

from ldm.sampling.denoiser import Denoise
from ldm.sampling.levels import Levels
from ldm.sampling.solvers.moves import OnStep, move, report, weighted, with_eps

ADAMS_BASHFORTH = {  # newest first
    2: (3 / 2, -1 / 2),
    3: (23 / 12, -16 / 12, 5 / 12),
    4: (55 / 24, -59 / 24, 37 / 24, -9 / 24),
}


def plms(denoise: Denoise, x: Tensor, levels: Levels, *, on_step: OnStep | None = None) -> Tensor:
    """Liu et al. 2022 (PNDM), eqs. 12-13: Adams-Bashforth for equal steps, one Heun step to start.

    steps + 1 evaluations. The step out of alpha = 0 is first order, and the start comes after it.
    """
    past: list[Tensor] = []  # eps, newest first
    for i in range(levels.steps):
        level, to = levels.at(i), levels.at(i + 1)
        belief = denoise(x, level)
        if level.alpha == 0:
            x = move(belief, to)
        else:
            past = [belief.eps, *past[:3]]
            eps = belief.eps
            if len(past) > 1:
                eps = weighted(ADAMS_BASHFORTH[len(past)], past)
            elif to.sigma > 0:
                eps = (belief.eps + denoise(move(belief, to), to).eps) / 2
            x = move(with_eps(belief, eps, level), to)
        report(on_step, i, belief)
    return x


def lms(
    denoise: Denoise,
    x: Tensor,
    levels: Levels,
    *,
    order: int = 4,
    on_step: OnStep | None = None,
) -> Tensor:
    """k-diffusion's linear multistep: eps a polynomial in sigma/alpha, integrated exactly.

    Out of and into alpha = 0, where sigma/alpha is infinite, the step is first order.
    """
    ratios = (levels.sigma.double() / levels.alpha.double()).tolist()
    past: list[Tensor] = []  # eps, newest first
    for i in range(levels.steps):
        level, to = levels.at(i), levels.at(i + 1)
        belief = denoise(x, level)
        length = ratios[i + 1] - ratios[i]
        if length == 0 or not math.isfinite(length):
            x = move(belief, to)
        else:
            past = [belief.eps, *past[: order - 1]]
            nodes = [ratios[i - k] for k in range(len(past))]
            weights = lms_weights(nodes, ratios[i + 1])
            eps = weighted([w / length for w in weights], past)
            x = move(with_eps(belief, eps, level), to)
        report(on_step, i, belief)
    return x


def lms_weights(nodes: Sequence[float], end: float) -> list[float]:
    """Integrals from nodes[0] to end of the Lagrange polynomials on nodes (newest first)."""
    middle, half = (nodes[0] + end) / 2, (end - nodes[0]) / 2
    gauss = (0.6**0.5, 5 / 9), (0.0, 8 / 9), (-(0.6**0.5), 5 / 9)  # exact up to degree 5
    weights = []
    for j, node in enumerate(nodes):
        total = 0.0
        for place, weight in gauss:
            product = weight * half
            for k, other in enumerate(nodes):
                if k != j:
                    product *= (middle + half * place - other) / (node - other)
            total += product
        weights.append(total)
    return weights
