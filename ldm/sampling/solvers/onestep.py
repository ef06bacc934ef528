"""How do solvers work that look at the present level only?"""

from __future__ import annotations

from functools import partial

from torch import Tensor

from ldm.sampling.denoiser import Denoise
from ldm.sampling.levels import Levels
from ldm.sampling.solvers.moves import Noise, OnStep, ancestral, checked, report


def ddim(
    denoise: Denoise,
    x: Tensor,
    levels: Levels,
    *,
    eta: float = 0.0,
    noise: Noise | None = None,
    on_step: OnStep | None = None,
) -> Tensor:
    """Song et al. 2021, eq. 12, in native (alpha, sigma). eta 0: deterministic, 1: ancestral."""
    draw = checked(noise, eta)
    for i in range(levels.steps):
        level, to = levels.at(i), levels.at(i + 1)
        belief = denoise(x, level)
        x = ancestral(belief, level, to, eta, partial(draw, i))
        report(on_step, i, belief)
    return x


def euler(denoise: Denoise, x: Tensor, levels: Levels, *, on_step: OnStep | None = None) -> Tensor:
    """Euler's method on d(x/alpha) / d(sigma/alpha) = eps, which is DDIM with eta 0."""
    return ddim(denoise, x, levels, on_step=on_step)


def euler_ancestral(
    denoise: Denoise,
    x: Tensor,
    levels: Levels,
    *,
    noise: Noise,
    eta: float = 1.0,
    on_step: OnStep | None = None,
) -> Tensor:
    """k-diffusion's ancestral Euler, which is DDIM with this eta."""
    return ddim(denoise, x, levels, eta=eta, noise=noise, on_step=on_step)


def ddpm(
    denoise: Denoise,
    x: Tensor,
    levels: Levels,
    *,
    noise: Noise,
    on_step: OnStep | None = None,
) -> Tensor:
    """Ho et al. 2020, alg. 2 with the posterior variance (fixed small): DDIM with eta 1."""
    return ddim(denoise, x, levels, eta=1.0, noise=noise, on_step=on_step)
