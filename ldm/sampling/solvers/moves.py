"""How does x move to another level, given what the denoiser believes?

A belief holds at x: x = alpha x0 + sigma eps. Solvers improve one of the two and keep that true,
then move: x' = alpha' x0 + sigma' eps. Everything is finite at alpha = 0 and at sigma = 0.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ldm.types import Denoised, Level

# key -> normals [B,C,h,w]. A solver asks for each key once: i at step i, or 2i and 2i + 1 where a
# step draws twice. The caller makes row n of every draw from the seed of picture n and the key.
Noise = Callable[[int], Tensor]
OnStep = Callable[[int, Denoised], None]  # step, what was believed there


def move(belief: Denoised, to: Level) -> Tensor:
    """x' = alpha' x0 + sigma' eps: the exact solution when the belief stays constant."""
    return to.alpha * belief.x0 + to.sigma * belief.eps


def ancestral(
    belief: Denoised, level: Level, to: Level, eta: float, draw: Callable[[], Tensor]
) -> Tensor:
    """`move` with a part of sigma' as new noise, which `draw` makes where it is asked for."""
    down, fresh = split(level, to, eta)
    x = move(belief, down)
    return x + fresh * draw() if fresh > 0 else x


def split(level: Level, to: Level, eta: float) -> tuple[Level, Tensor]:
    """`to` without its new noise, and how much of it is new: Song et al. 2021, eq. 16.

    For any (alpha, sigma); eta 0: nothing is new, 1: as in the forward process. Nothing is new on
    the way up. In sigma/alpha these are k-diffusion's sigma_down and sigma_up.
    """
    if eta == 0:
        return to, torch.zeros_like(to.sigma)
    shrink = to.sigma * level.alpha / (to.alpha * level.sigma)  # of sigma/alpha, 0 out of alpha = 0
    fresh = to.sigma * (eta * (1 - shrink**2).clamp(min=0).sqrt()).clamp(max=1)
    return Level(to.t, to.alpha, (to.sigma**2 - fresh**2).sqrt()), fresh


def checked(noise: Noise | None, eta: float) -> Noise:
    """The noise, which may be missing where eta is 0."""
    if not 0 <= eta <= 1:
        raise ValueError(f"eta={eta}; allowed: 0 (deterministic) to 1 (ancestral)")
    if noise is None and eta > 0:
        raise ValueError(f"eta={eta} adds noise at every step; give noise=..., key -> normals")
    return noise or _no_noise


def with_eps(belief: Denoised, eps: Tensor, level: Level) -> Denoised:
    """The belief with another eps at the same x; needs alpha > 0."""
    ratio = level.sigma / level.alpha
    return Denoised(belief.x0 + ratio * (belief.eps - eps), eps)


def with_x0(belief: Denoised, x0: Tensor, level: Level) -> Denoised:
    """The belief with another x0 at the same x; needs sigma > 0."""
    ratio = level.alpha / level.sigma
    return Denoised(x0, belief.eps + ratio * (belief.x0 - x0))


def weighted(weights: Sequence[float], values: Sequence[Tensor]) -> Tensor:
    """Sum of weights times values."""
    total = weights[0] * values[0]
    for weight, value in zip(weights[1:], values[1:], strict=True):
        total = total + weight * value
    return total


def report(on_step: OnStep | None, step: int, belief: Denoised) -> None:
    if on_step is not None:
        on_step(step, belief)


def _no_noise(key: int) -> Tensor:
    raise AssertionError("eta = 0 draws nothing")
