"""How does x move to another level, given what the denoiser believes?

A belief holds at x: x = alpha x0 + sigma eps. Solvers improve one of the two and keep that true,
then move: x' = alpha' x0 + sigma' eps. Everything is finite at alpha = 0 and at sigma = 0.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

from ldm.types import Denoised, Level

Noise = Callable[[int], Tensor]  # step -> normals [B,C,h,w], keyed by the caller
OnStep = Callable[[int, Denoised], None]  # step, what was believed there


def move(belief: Denoised, to: Level) -> Tensor:
    """x' = alpha' x0 + sigma' eps: the exact solution when the belief stays constant."""
    return to.alpha * belief.x0 + to.sigma * belief.eps


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
