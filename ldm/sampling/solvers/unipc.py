"""How do solvers work that correct a step once they know where it led?"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ldm.sampling.denoiser import Denoise
from ldm.sampling.levels import Levels
from ldm.sampling.solvers.moves import OnStep, move, report, with_x0
from ldm.types import Denoised

Seen = tuple[float, Tensor]  # lambda, x0 believed there


def unipc(
    denoise: Denoise,
    x: Tensor,
    levels: Levels,
    *,
    order: int = 2,
    on_step: OnStep | None = None,
) -> Tensor:
    """Zhao et al. 2023 (UniPC), multistep, predicting x0, with B(h) = e^h - 1 ("bh2").

    UniP-p goes a step by the last p x0; UniC-p then repeats the step with the x0 found at its end,
    which is not evaluated again: one evaluation a step. As in the paper the order grows at the
    start and falls at the end; steps out of alpha = 0 and into sigma = 0 are first order.
    """
    if order not in (1, 2, 3):
        raise ValueError(f"order={order}; allowed: 1, 2 or 3")
    lambdas = (levels.alpha.double() / levels.sigma.double()).log().tolist()
    past: list[Seen] = []  # newest first
    before = Denoised(x, x)  # what was believed at the start of the last step
    used = 0  # the order of the last step; 0 is none to correct
    for i in range(levels.steps):
        level, to, now = levels.at(i), levels.at(i + 1), lambdas[i]
        belief = denoise(x, level)
        report(on_step, i, belief)
        if used > 0:
            x0 = mean_x0(past[0], [*past[1:used], (now, belief.x0)], now)
            corrected = move(with_x0(before, x0, levels.at(i - 1)), level)
            belief = Denoised(belief.x0, belief.eps + (corrected - x) / level.sigma)
        length = lambdas[i + 1] - now
        if length == 0 or not math.isfinite(length):
            x, used = move(belief, to), 0
            continue
        before, past = belief, [(now, belief.x0), *past[: order - 1]]
        used = min(len(past), levels.steps - i)
        x0 = mean_x0(past[0], past[1:used], lambdas[i + 1])
        x = move(with_x0(belief, x0, level), to)
    return x


def mean_x0(here: Seen, others: Sequence[Seen], end: float) -> Tensor:
    """The constant x0 that leads from `here` to lambda = end as the polynomial through all does.

    The polynomial is in lambda, through `here` and `others`. With one other, the paper takes half
    of the slope instead ("bh2").
    """
    at, x0 = here
    length = end - at
    places = [(other - at) / length for other, _ in others]
    shares = [0.5] if len(others) == 1 else polynomial_shares(places, length)
    for share, place, (_, other) in zip(shares, places, others, strict=True):
        x0 = x0 + share / place * (other - here[1])
    return x0


def polynomial_shares(places: Sequence[float], length: float) -> list[float]:
    """Weights of the slopes (f(place) - f(0)) / place that give the mean of a polynomial f, f(0)=0.

    The mean is over u in [0,1] weighted by e^(length u), as x0 counts in the exact solution.
    """
    moments, integral = [], math.expm1(length) * math.exp(-length)  # of e^(length (u - 1)) length
    whole = integral
    for power in range(1, len(places) + 1):
        integral = 1 - power / length * integral  # by parts
        moments.append(integral / whole)
    if not places:
        return []
    rows = [[place**power for place in places] for power in range(len(places))]
    powers, wanted = (torch.tensor(values, dtype=torch.float64) for values in (rows, moments))
    solved: list[float] = torch.linalg.solve(powers, wanted).tolist()
    return solved
