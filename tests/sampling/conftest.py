"""A world where the perfect denoiser and the exact solution are known: Gaussian data."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

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


@pytest.fixture
def gaussian() -> Gaussian:
    return Gaussian()


@pytest.fixture
def uniform_in_lambda() -> object:
    """(steps, low, high) -> float64 Levels with alpha^2 + sigma^2 = 1, equal steps in lambda."""

    def make(steps: int, low: float = -4.0, high: float = 4.0) -> Levels:
        lam = torch.linspace(low, high, steps + 1, dtype=torch.float64)
        return Levels(lam, (2 * lam).sigmoid().sqrt(), (-2 * lam).sigmoid().sqrt())

    return make


@pytest.fixture
def z() -> Tensor:
    """Places in the Gaussian, in deviations, float64 [4]."""
    return torch.tensor([-1.5, -0.3, 0.4, 2.0], dtype=torch.float64)
