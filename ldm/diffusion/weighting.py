"""How much does each noise level count in the loss?

Weights w are stated on the x0 loss. On the loss of the network's own output F that is
w (sigma / det)^2, since an error of F is det / sigma times one of x0. The one exception is Uniform.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor

from ldm.diffusion.prediction import Prediction, determinant
from ldm.diffusion.spec import Named, Plain, from_spec, table
from ldm.types import Level


class Weighting(Protocol):
    """What the objective asks of a weighting."""

    def on_output(self, level: Level, prediction: Prediction) -> Tensor:
        """The weight on the squared error of F, shaped as the level's fields."""

    def spec(self) -> dict[str, Plain]: ...


@dataclass(frozen=True, kw_only=True)
class Uniform(Named):
    """1 on the network's own output: the plain MSE of Ho et al. 2020, eq. 14."""

    name: ClassVar[str] = "uniform"

    def on_output(self, level: Level, prediction: Prediction) -> Tensor:
        return torch.ones_like(level.alpha)


class OnX0(Named):
    """A weight w on the x0 loss, given as w sigma^2: finite at alpha = 0 and at sigma = 0."""

    @abstractmethod
    def times_variance(self, level: Level) -> Tensor:
        """w sigma^2."""

    def __call__(self, level: Level) -> Tensor:
        """w, the weight on the squared error of x0."""
        return self.times_variance(level) / level.sigma**2

    def on_output(self, level: Level, prediction: Prediction) -> Tensor:
        return self.times_variance(level) / determinant(level, prediction) ** 2


@dataclass(frozen=True, kw_only=True)
class MinSNR(OnX0):
    """Hang et al. 2023, eq. 4: w = min(SNR, gamma)."""

    name: ClassVar[str] = "min_snr"
    gamma: float = 5.0

    def __post_init__(self) -> None:
        _check_positive("gamma", self.gamma)

    def times_variance(self, level: Level) -> Tensor:
        return torch.minimum(level.alpha**2, self.gamma * level.sigma**2)


@dataclass(frozen=True, kw_only=True)
class SoftMinSNR(OnX0):
    """Crowson et al. 2024: w = SNR gamma / (SNR + gamma), min-SNR without the corner."""

    name: ClassVar[str] = "soft_min_snr"
    gamma: float = 5.0

    def __post_init__(self) -> None:
        _check_positive("gamma", self.gamma)

    def times_variance(self, level: Level) -> Tensor:
        signal, cap = level.alpha**2, self.gamma * level.sigma**2
        return signal * cap / (signal + cap)


@dataclass(frozen=True, kw_only=True)
class P2(OnX0):
    """Choi et al. 2022, eq. 8 with k = 1: w = SNR / (1 + SNR)^gamma."""

    name: ClassVar[str] = "p2"
    gamma: float = 1.0

    def __post_init__(self) -> None:
        if self.gamma < 0:
            raise ValueError(f"gamma={self.gamma}; use 0 (plain eps loss) or more, 1 is usual")

    def times_variance(self, level: Level) -> Tensor:
        signal, noise = level.alpha**2, level.sigma**2
        return signal * (noise / (signal + noise)) ** self.gamma


@dataclass(frozen=True, kw_only=True)
class Debiased(OnX0):
    """Yu et al. 2023: w = SNR / sqrt(min(SNR, clip)), that is 1 / sqrt(SNR) on the eps loss."""

    name: ClassVar[str] = "debiased"
    clip: float = 1000.0

    def __post_init__(self) -> None:
        _check_positive("clip", self.clip)

    def times_variance(self, level: Level) -> Tensor:
        # SNR sigma^2 / sqrt(min(SNR, clip)), with one alpha cancelled: 0 / 0 at alpha = 0 otherwise
        return level.alpha * torch.maximum(level.sigma, level.alpha / self.clip**0.5)


WEIGHTINGS: dict[str, type[Uniform] | type[OnX0]] = {
    **table(Uniform),
    **table(MinSNR, SoftMinSNR, P2, Debiased),
}


def weighting_from_spec(spec: Mapping[str, Any]) -> Weighting:
    """The weighting whose `spec()` this is."""
    return from_spec(WEIGHTINGS, spec, "weighting")


def _check_positive(name: str, value: float) -> None:
    if value <= 0:
        raise ValueError(f"{name}={value}; use a positive number")
