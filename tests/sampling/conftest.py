"""Worlds where the perfect denoiser is known: Gaussian data, and a mixture of Gaussians."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from ldm.diffusion.schedules import Flow
from ldm.sampling.levels import Levels
from ldm.types import Denoised, Level


@dataclass(frozen=True)
class Gaussian:
    """x0 ~ N(mean, std^2), every element alone."""

    mean: float = 0.3
    std: float = 0.7

    def spread(self, level: Level) -> Tensor:
        """Standard deviation of x at the level."""
        return (level.alpha**2 * self.std**2 + level.sigma**2).sqrt()

    def denoise(self, x: Tensor, level: Level) -> Denoised:
        """E[x0|x] and E[eps|x]; level broadcasts against x."""
        away = (x - level.alpha * self.mean) / self.spread(level) ** 2
        return Denoised(self.mean + level.alpha * self.std**2 * away, level.sigma * away)

    def exact(self, z: Tensor, level: Level) -> Tensor:
        """The solution of the probability-flow ODE: z deviations from the mean throughout."""
        return level.alpha * self.mean + self.spread(level) * z


@dataclass(frozen=True)
class Mixture:
    """x0 ~ N(m, std^2) with one of two means at a time, every element alone."""

    means: tuple[float, float] = (-1.0, 0.8)
    shares: tuple[float, float] = (0.3, 0.7)
    std: float = 0.25

    def denoise(self, x: Tensor, level: Level) -> Denoised:
        """E[x0|x] and E[eps|x]: those of the parts, by how likely they made x."""
        parts = [Gaussian(mean, self.std) for mean in self.means]
        beliefs = [part.denoise(x, level) for part in parts]
        likely = [
            -(((x - level.alpha * part.mean) / part.spread(level)) ** 2) / 2 for part in parts
        ]
        logits = torch.stack(likely) + torch.tensor(self.shares).to(x).log().view(2, *[1] * x.ndim)
        weights = logits.softmax(0)
        return Denoised(
            sum(w * b.x0 for w, b in zip(weights, beliefs, strict=True)),
            sum(w * b.eps for w, b in zip(weights, beliefs, strict=True)),
        )


class InLambda:
    """A schedule with alpha^2 + sigma^2 = 1 whose time is lambda = log(alpha / sigma)."""

    def at(self, t: Tensor) -> Level:
        return Level(t, (2 * t).sigmoid().sqrt(), (-2 * t).sigmoid().sqrt())

    def time_at_sigma_ratio(self, ratio: Tensor) -> Tensor:
        return -ratio.log()


@pytest.fixture
def gaussian() -> Gaussian:
    return Gaussian()


@pytest.fixture
def mixture() -> Mixture:
    return Mixture()


@pytest.fixture
def uniform_in_lambda() -> Callable[..., Levels]:
    """(steps, low, high) -> float64 Levels with alpha^2 + sigma^2 = 1, equal steps in lambda."""

    def make(steps: int, low: float = -4.0, high: float = 4.0) -> Levels:
        level = InLambda().at(torch.linspace(low, high, steps + 1, dtype=torch.float64))
        return Levels(level.t, level.alpha, level.sigma, InLambda())  # type: ignore[arg-type]

    return make


@pytest.fixture
def flow_in_lambda() -> Callable[..., Levels]:
    """(steps) -> float64 Levels with alpha = 1 - t, sigma = t, equal steps in lambda."""

    def make(steps: int) -> Levels:
        lam = torch.linspace(-4, 4, steps + 1, dtype=torch.float64)
        return Levels((-lam).sigmoid(), lam.sigmoid(), (-lam).sigmoid(), Flow())

    return make


@pytest.fixture
def flow_to_zero() -> Callable[..., Levels]:
    """(steps) -> float64 Levels from alpha = 0 to sigma = 0, equal steps in t."""

    def make(steps: int) -> Levels:
        t = torch.linspace(1, 0, steps + 1, dtype=torch.float64)
        return Levels(t, 1 - t, t, Flow())

    return make


@pytest.fixture
def z() -> Tensor:
    """Places in the Gaussian, in deviations, float64 [4]."""
    return torch.tensor([-1.5, -0.3, 0.4, 2.0], dtype=torch.float64)
