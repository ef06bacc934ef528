"""How much signal and noise is there at time t?

x = alpha x0 + sigma eps, ratio = sigma / alpha. Tables are built in float64 and cached per device.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar, NamedTuple, Protocol

import torch
from torch import Tensor

from ldm.diffusion.spec import Named, Plain, from_spec, table
from ldm.types import Level


class Schedule(Protocol):
    """What objective and samplers ask of a schedule; t, u, index, ratio and results: [B] or [].

    "Index" counts num_train_steps levels from 0 (least noise), for schedules without steps too:
    grids for sampling are stated in it.
    """

    @property
    def num_train_steps(self) -> int: ...

    @property
    def time_range(self) -> tuple[float, float]:
        """The times with the least and the most noise."""

    def at(self, t: Tensor) -> Level:
        """The level at t, which may lie between two steps; t outside the range is clamped."""

    def net_time(self, t: Tensor) -> Tensor:
        """What the network is fed for t."""

    def training_time(self, u: Tensor) -> Tensor:
        """The time that has the share u in [0,1] of the range below it."""

    def time_at_index(self, index: Tensor) -> Tensor:
        """The time of a (fractional) step."""

    def time_at_sigma_ratio(self, ratio: Tensor) -> Tensor:
        """The time where sigma / alpha = ratio, the inverse of `at`; clamped to the range."""

    def spec(self) -> dict[str, Plain]: ...


class Tables(NamedTuple):
    """By step, [T]; log_ratio = log(sigma / alpha), inf at zero terminal SNR."""

    alpha: Tensor
    sigma: Tensor
    log_ratio: Tensor


@dataclass(frozen=True, kw_only=True)
class Discrete(Named):
    """Ho et al. 2020: T steps given by betas; between steps log(sigma / alpha) is linear in t.

    zero_terminal_snr: Lin et al. 2023, alg. 1: the last step carries no signal at all.
    """

    num_train_steps: int = 1000
    zero_terminal_snr: bool = False

    def __post_init__(self) -> None:
        if self.num_train_steps < 2:
            raise ValueError(f"num_train_steps={self.num_train_steps}; use 2 or more")

    @abstractmethod
    def betas(self) -> Tensor:
        """Variance added by each step before any rescaling, float64 [T]."""

    def alphas_cumprod(self) -> Tensor:
        """alpha^2 of each step, float64 [T]."""
        cumprod = (1 - self.betas()).cumprod(0)
        return _zero_terminal_snr(cumprod) if self.zero_terminal_snr else cumprod

    @property
    def time_range(self) -> tuple[float, float]:
        return 0.0, float(self.num_train_steps - 1)

    def at(self, t: Tensor) -> Level:
        t = _floating(t)
        tables = _tables(self, t.device, t.dtype)
        t = t.clamp(0, self.num_train_steps - 1)
        lower = t.long()
        share = t - lower  # 0 at a step
        upper = (lower + 1).clamp(max=self.num_train_steps - 1)
        low, high = tables.log_ratio[lower], tables.log_ratio[upper]
        # Towards alpha = 0 the log is infinite: there alpha / sigma is linear in t instead.
        between = torch.where(high.isinf(), low - (-share).log1p(), low + share * (high - low))
        at_step = share == 0
        alpha = torch.where(at_step, tables.alpha[lower], (-2 * between).sigmoid().sqrt())
        sigma = torch.where(at_step, tables.sigma[lower], (2 * between).sigmoid().sqrt())
        return Level(t, alpha, sigma)

    def net_time(self, t: Tensor) -> Tensor:
        return t

    def training_time(self, u: Tensor) -> Tensor:
        return (u * self.num_train_steps).floor().clamp(max=self.num_train_steps - 1)

    def time_at_index(self, index: Tensor) -> Tensor:
        return index

    def time_at_sigma_ratio(self, ratio: Tensor) -> Tensor:
        log_ratio = _floating(ratio).log()
        grid = _tables(self, log_ratio.device, log_ratio.dtype).log_ratio
        upper = torch.searchsorted(grid, log_ratio.contiguous()).clamp(1, len(grid) - 1)
        low, high = grid[upper - 1], grid[upper]
        to_zero = 1 - (low - log_ratio).exp()  # as in `at`
        share = torch.where(high.isinf(), to_zero, (log_ratio - low) / (high - low))
        return upper - 1 + share.clamp(0, 1)


@dataclass(frozen=True, kw_only=True)
class ScaledLinear(Discrete):
    """Rombach et al. 2022: sqrt(beta) is linear in t. The schedule of Stable Diffusion 1 and 2."""

    name: ClassVar[str] = "scaled_linear"
    beta_start: float = 0.00085
    beta_end: float = 0.012

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_betas(self.beta_start, self.beta_end)

    def betas(self) -> Tensor:
        start, end = math.sqrt(self.beta_start), math.sqrt(self.beta_end)
        return torch.linspace(start, end, self.num_train_steps, dtype=torch.float64) ** 2


@dataclass(frozen=True, kw_only=True)
class Linear(Discrete):
    """Ho et al. 2020, section 4: beta is linear in t."""

    name: ClassVar[str] = "linear"
    beta_start: float = 0.0001
    beta_end: float = 0.02

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_betas(self.beta_start, self.beta_end)

    def betas(self) -> Tensor:
        start, end = self.beta_start, self.beta_end
        return torch.linspace(start, end, self.num_train_steps, dtype=torch.float64)


@dataclass(frozen=True, kw_only=True)
class Cosine(Discrete):
    """Nichol & Dhariwal 2021, eq. 17: alpha^2 is a squared cosine; beta <= max_beta."""

    name: ClassVar[str] = "cosine"
    offset: float = 0.008
    max_beta: float = 0.999

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.offset < 0 or not 0 < self.max_beta < 1:
            raise ValueError(
                f"offset={self.offset}, max_beta={self.max_beta}; use offset >= 0, 0 < max_beta < 1"
            )

    def betas(self) -> Tensor:
        share = torch.linspace(0, 1, self.num_train_steps + 1, dtype=torch.float64)
        signal = torch.cos((share + self.offset) / (1 + self.offset) * math.pi / 2) ** 2
        return (1 - signal[1:] / signal[:-1]).clamp(max=self.max_beta)


@dataclass(frozen=True, kw_only=True)
class Flow(Named):
    """Liu et al. 2022, Lipman et al. 2022: alpha = 1 - t, sigma = t, t in [0,1].

    num_train_steps: the network is fed num_train_steps * t.
    """

    name: ClassVar[str] = "flow"
    num_train_steps: int = 1000

    def __post_init__(self) -> None:
        if self.num_train_steps < 2:
            raise ValueError(f"num_train_steps={self.num_train_steps}; use 2 or more")

    @property
    def time_range(self) -> tuple[float, float]:
        return 0.0, 1.0

    def at(self, t: Tensor) -> Level:
        t = _floating(t).clamp(0, 1)
        return Level(t, 1 - t, t)

    def net_time(self, t: Tensor) -> Tensor:
        return t * self.num_train_steps

    def training_time(self, u: Tensor) -> Tensor:
        # Never 0: at sigma = 0 there is no noise to learn from, and x0-prediction has no eps.
        return u.clamp(min=2.0**-24)

    def time_at_index(self, index: Tensor) -> Tensor:
        return (index + 1) / self.num_train_steps

    def time_at_sigma_ratio(self, ratio: Tensor) -> Tensor:
        return 1 / (1 + 1 / _floating(ratio))  # right at 0 and at inf too


@dataclass(frozen=True, kw_only=True)
class EDM(Named):
    """Karras et al. 2022: alpha = 1, sigma = t; the network is fed ln(sigma) / 4."""

    name: ClassVar[str] = "edm"
    sigma_min: float = 0.002
    sigma_max: float = 80.0
    num_train_steps: int = 1000

    def __post_init__(self) -> None:
        if not 0 < self.sigma_min < self.sigma_max < math.inf or self.num_train_steps < 2:
            raise ValueError(
                f"sigma_min={self.sigma_min}, sigma_max={self.sigma_max}, num_train_steps="
                f"{self.num_train_steps}; use 0 < sigma_min < sigma_max and 2 steps or more"
            )

    @property
    def time_range(self) -> tuple[float, float]:
        return self.sigma_min, self.sigma_max

    def at(self, t: Tensor) -> Level:
        t = _floating(t).clamp(self.sigma_min, self.sigma_max)
        return Level(t, torch.ones_like(t), t)

    def net_time(self, t: Tensor) -> Tensor:
        return t.clamp(min=self.sigma_min).log() / 4

    def training_time(self, u: Tensor) -> Tensor:
        return (u * math.log(self.sigma_max / self.sigma_min)).exp() * self.sigma_min

    def time_at_index(self, index: Tensor) -> Tensor:
        return self.training_time(index / (self.num_train_steps - 1))

    def time_at_sigma_ratio(self, ratio: Tensor) -> Tensor:
        return _floating(ratio).clamp(self.sigma_min, self.sigma_max)


SCHEDULES: dict[str, type[Discrete] | type[Flow] | type[EDM]] = {
    **table(ScaledLinear, Linear, Cosine),
    **table(Flow),
    **table(EDM),
}


def schedule_from_spec(spec: Mapping[str, Any]) -> Schedule:
    """The schedule whose `spec()` this is."""
    return from_spec(SCHEDULES, spec, "schedule")


@lru_cache(maxsize=64)
def _tables(schedule: Discrete, device: torch.device, dtype: torch.dtype) -> Tables:
    # Made under inference_mode they cannot be saved for backward: `at` only gathers from them.
    squared = schedule.alphas_cumprod()
    values = (squared.sqrt(), (1 - squared).sqrt(), ((1 - squared).log() - squared.log()) / 2)
    return Tables(*(value.to(device, dtype) for value in values))


def _zero_terminal_snr(alphas_cumprod: Tensor) -> Tensor:
    """Lin et al. 2023, alg. 1: shift alpha to end at 0, then scale it to start where it did."""
    alpha = alphas_cumprod.sqrt()
    first, last = alpha[0], alpha[-1]
    return ((alpha - last) * first / (first - last)) ** 2


def _check_betas(start: float, end: float) -> None:
    if not 0 < start <= end < 1:
        raise ValueError(f"beta_start={start}, beta_end={end}; use 0 < beta_start <= beta_end < 1")


def _floating(value: Tensor) -> Tensor:
    return value.to(torch.promote_types(value.dtype, torch.float32))
