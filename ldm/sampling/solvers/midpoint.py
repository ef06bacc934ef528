"""How do solvers work that look at the middle of a step, half way in log(sigma/alpha)?

All take one Euler step there and then the whole step with what they saw. Out of and into a level
without signal or without noise there is no middle: these steps are first order.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, partial

from torch import Tensor

from ldm.sampling.denoiser import Denoise
from ldm.sampling.levels import Levels
from ldm.sampling.solvers.moves import (
    Noise,
    OnStep,
    ancestral,
    checked,
    move,
    report,
    split,
    with_eps,
    with_x0,
)
from ldm.types import Denoised, Level

Improve = Callable[[Denoised, Denoised, Level], Denoised]  # belief, seen in the middle, level


def dpm2(denoise: Denoise, x: Tensor, levels: Levels, *, on_step: OnStep | None = None) -> Tensor:
    """Karras et al. 2022, alg. 3 with the middle in log(sigma): the eps seen there is used."""
    return dpm2_ancestral(denoise, x, levels, eta=0.0, on_step=on_step)


def dpm2_ancestral(
    denoise: Denoise,
    x: Tensor,
    levels: Levels,
    *,
    eta: float = 1.0,
    noise: Noise | None = None,
    on_step: OnStep | None = None,
) -> Tensor:
    """k-diffusion's ancestral DPM2: `dpm2` down to what `moves.split` keeps, then new noise."""
    improve: Improve = lambda belief, seen, level: with_eps(belief, seen.eps, level)  # noqa: E731
    return _by_the_middle(denoise, x, levels, improve, eta, checked(noise, eta), on_step)


def dpmpp_2s_ancestral(
    denoise: Denoise,
    x: Tensor,
    levels: Levels,
    *,
    eta: float = 1.0,
    noise: Noise | None = None,
    on_step: OnStep | None = None,
) -> Tensor:
    """Lu et al. 2022 (DPM-Solver++), alg. 1 (2S) with r = 1/2, made ancestral as by k-diffusion."""
    improve: Improve = lambda belief, seen, level: with_x0(belief, seen.x0, level)  # noqa: E731
    return _by_the_middle(denoise, x, levels, improve, eta, checked(noise, eta), on_step)


def dpmpp_sde(
    denoise: Denoise,
    x: Tensor,
    levels: Levels,
    *,
    eta: float = 1.0,
    noise: Noise | None = None,
    on_step: OnStep | None = None,
) -> Tensor:
    """k-diffusion's DPM-Solver++ (SDE), r = 1/2: x0 from a middle that has noise of its own.

    Draws 2i and 2i + 1 at step i: the increments, up to the middle and from there, of one Brownian
    motion in sigma/alpha, whose sum is the noise of the whole step.
    """
    draw: Noise = lru_cache(maxsize=1)(checked(noise, eta))  # a half is drawn once and used twice
    for i in range(levels.steps):
        level, to = levels.at(i), levels.at(i + 1)
        belief = better = denoise(x, level)
        whole: Callable[[], Tensor] = partial(draw, 2 * i)
        if _has_middle(level, to):
            middle = levels.between(level, to)
            half = ancestral(belief, level, middle, eta, partial(draw, 2 * i))
            better = with_x0(belief, denoise(half, middle).x0, level)
            whole = partial(_joined, draw, i, (level, middle, to))
        x = ancestral(better, level, to, eta, whole)
        report(on_step, i, belief)
    return x


def _by_the_middle(
    denoise: Denoise,
    x: Tensor,
    levels: Levels,
    improve: Improve,
    eta: float,
    draw: Noise,
    on_step: OnStep | None,
) -> Tensor:
    for i in range(levels.steps):
        level, to = levels.at(i), levels.at(i + 1)
        belief = better = denoise(x, level)
        down, _ = split(level, to, eta)
        if _has_middle(level, down):
            middle = levels.between(level, down)
            better = improve(belief, denoise(move(belief, middle), middle), level)
        x = ancestral(better, level, to, eta, partial(draw, i))
        report(on_step, i, belief)
    return x


def _has_middle(level: Level, to: Level) -> bool:
    return bool(level.alpha * level.sigma * to.alpha * to.sigma > 0)


def _joined(draw: Noise, i: int, path: tuple[Level, Level, Level]) -> Tensor:
    """Normals of the whole step from those of its halves, by their lengths in sigma/alpha."""
    start, middle, end = (level.sigma / level.alpha for level in path)
    share = ((start - middle) / (start - end)).clamp(0, 1)
    return share.sqrt() * draw(2 * i) + (1 - share).sqrt() * draw(2 * i + 1)
