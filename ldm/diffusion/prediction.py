"""What does the network predict?

F = a x0 + b eps; with x = alpha x0 + sigma eps and det = alpha b - sigma a that gives
x0 = (b x - sigma F) / det and eps = (alpha F - a x) / det.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor

from ldm.diffusion.spec import Named, Plain, from_spec, table
from ldm.types import Denoised, Level


class Prediction(Protocol):
    """The pair (a, b) per level, shaped as the level's fields."""

    name: ClassVar[str]

    def coefficients(self, level: Level) -> tuple[Tensor, Tensor]: ...

    def scaled_input(self, x: Tensor, level: Level) -> Tensor:
        """x as the network is fed it; level already expanded to x."""

    def spec(self) -> dict[str, Plain]: ...


class Unscaled(Named):
    """Predictions whose network is fed x as it is."""

    @abstractmethod
    def coefficients(self, level: Level) -> tuple[Tensor, Tensor]: ...

    def scaled_input(self, x: Tensor, level: Level) -> Tensor:
        return x


@dataclass(frozen=True)
class Eps(Unscaled):
    """Ho et al. 2020: the noise."""

    name: ClassVar[str] = "eps"

    def coefficients(self, level: Level) -> tuple[Tensor, Tensor]:
        return torch.zeros_like(level.alpha), torch.ones_like(level.alpha)


@dataclass(frozen=True)
class X0(Unscaled):
    """The clean latents."""

    name: ClassVar[str] = "x0"

    def coefficients(self, level: Level) -> tuple[Tensor, Tensor]:
        return torch.ones_like(level.alpha), torch.zeros_like(level.alpha)


@dataclass(frozen=True)
class V(Unscaled):
    """Salimans & Ho 2022: alpha eps - sigma x0."""

    name: ClassVar[str] = "v"

    def coefficients(self, level: Level) -> tuple[Tensor, Tensor]:
        return -level.sigma, level.alpha


@dataclass(frozen=True)
class FlowVelocity(Unscaled):
    """Liu et al. 2022: eps - x0, the derivative of x along t."""

    name: ClassVar[str] = "flow"

    def coefficients(self, level: Level) -> tuple[Tensor, Tensor]:
        return -torch.ones_like(level.alpha), torch.ones_like(level.alpha)


@dataclass(frozen=True, kw_only=True)
class Edm(Named):
    """Karras et al. 2022, table 1: x0 = c_skip x + c_out F, the network is fed c_in x.

    sigma_data: standard deviation of the latents.
    """

    name: ClassVar[str] = "edm"
    sigma_data: float = 1.0

    def __post_init__(self) -> None:
        if self.sigma_data <= 0:
            raise ValueError(f"sigma_data={self.sigma_data}; use the latents' standard deviation")

    def coefficients(self, level: Level) -> tuple[Tensor, Tensor]:
        # (1 - c_skip) / c_out and -c_skip sigma / c_out, written so that sigma = 0 is finite.
        c_in = self._c_in(level)
        return c_in * level.sigma / self.sigma_data, -c_in * level.alpha * self.sigma_data

    def scaled_input(self, x: Tensor, level: Level) -> Tensor:
        return x * self._c_in(level)

    def _c_in(self, level: Level) -> Tensor:
        return (level.alpha**2 * self.sigma_data**2 + level.sigma**2).rsqrt()


eps, x0, v, flow, edm = Eps(), X0(), V(), FlowVelocity(), Edm()

PREDICTIONS: dict[str, type[Unscaled] | type[Edm]] = {
    **table(Eps, X0, V, FlowVelocity),
    **table(Edm),
}


def prediction_from_spec(spec: Mapping[str, Any]) -> Prediction:
    """The prediction whose `spec()` this is."""
    return from_spec(PREDICTIONS, spec, "prediction")


def determinant(level: Level, prediction: Prediction) -> Tensor:
    """alpha b - sigma a; 0 where x and F together do not tell x0 and eps."""
    a, b = prediction.coefficients(level)
    return level.alpha * b - level.sigma * a


def target(x0: Tensor, eps: Tensor, level: Level, prediction: Prediction) -> Tensor:
    """F = a x0 + b eps. x0, eps and result: [B,...]; level: [B] or scalar."""
    a, b = prediction.coefficients(level.expand(x0))
    return a * x0 + b * eps


def recover(x: Tensor, out: Tensor, level: Level, prediction: Prediction) -> Denoised:
    """x0 and eps from the network's output F at x, both [B,...]; level: [B] or scalar."""
    level = level.expand(x)
    a, b = prediction.coefficients(level)
    det = determinant(level, prediction)
    return Denoised(
        x0=(b * x - level.sigma * out) / det,
        eps=(level.alpha * out - a * x) / det,
    )
