"""Which noise levels are trained on, and how often?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor

from ldm.diffusion.schedules import Schedule
from ldm.diffusion.spec import Named, Plain, from_spec, table


class Times(Protocol):
    """Maps keyed uniforms to times, so that a draw belongs to its sample on any number of ranks."""

    def sample(self, u: Tensor, place: Tensor, batch_size: int, schedule: Schedule) -> Tensor:
        """t [B] from u [B] in [0,1); place: int64 [B], in the global batch of batch_size."""

    def spec(self) -> dict[str, Plain]: ...


@dataclass(frozen=True, kw_only=True)
class Uniform(Named):
    """Every time of the range equally often (EDM: every log(sigma))."""

    name: ClassVar[str] = "uniform"

    def sample(self, u: Tensor, place: Tensor, batch_size: int, schedule: Schedule) -> Tensor:
        return schedule.training_time(u)


@dataclass(frozen=True, kw_only=True)
class Stratified(Named):
    """Kingma et al. 2021, app. I.1: uniform, with one sample in each batch_size-th of the range."""

    name: ClassVar[str] = "stratified"

    def sample(self, u: Tensor, place: Tensor, batch_size: int, schedule: Schedule) -> Tensor:
        # float32 would round a large u up into the next stratum
        below_next = (place + 1) / batch_size * (1 - 2.0**-23)
        return schedule.training_time(torch.minimum((place + u) / batch_size, below_next))


@dataclass(frozen=True, kw_only=True)
class LogitNormal(Named):
    """Esser et al. 2024, eq. 19: logit of the share of the range ~ N(mean, std^2)."""

    name: ClassVar[str] = "logit_normal"
    mean: float = 0.0
    std: float = 1.0

    def __post_init__(self) -> None:
        _check_std(self.std)

    def sample(self, u: Tensor, place: Tensor, batch_size: int, schedule: Schedule) -> Tensor:
        return schedule.training_time((self.mean + self.std * _normal(u)).sigmoid())


@dataclass(frozen=True, kw_only=True)
class LogNormalSigma(Named):
    """Karras et al. 2022, table 1: ln(sigma / alpha) ~ N(mean, std^2), clamped to the range."""

    name: ClassVar[str] = "log_normal"
    mean: float = -1.2
    std: float = 1.2

    def __post_init__(self) -> None:
        _check_std(self.std)

    def sample(self, u: Tensor, place: Tensor, batch_size: int, schedule: Schedule) -> Tensor:
        return schedule.time_at_sigma_ratio((self.mean + self.std * _normal(u)).exp())


TIMES: dict[str, type[Uniform | Stratified | LogitNormal | LogNormalSigma]] = {
    **table(Uniform),
    **table(Stratified),
    **table(LogitNormal),
    **table(LogNormalSigma),
}


def times_from_spec(spec: Mapping[str, Any]) -> Times:
    """The times whose `spec()` this is."""
    return from_spec(TIMES, spec, "times")


def _normal(u: Tensor) -> Tensor:
    u = u.clamp(2.0**-25, 1 - 2.0**-24)  # u = 0 would be -inf
    return 2**0.5 * torch.erfinv(2 * u - 1)


def _check_std(std: float) -> None:
    if std <= 0:
        raise ValueError(f"std={std}; use a positive number")
