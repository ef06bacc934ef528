"""How are noise levels spaced for sampling?

A grid's steps are counted from the most noise; its last level is the schedule's first step or, with
final_to_zero, no noise at all. Nothing is rounded to whole training steps but what is defined so.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Protocol

import torch
from torch import Tensor

from ldm.diffusion.schedules import Schedule
from ldm.types import Level

MAX_STEPS = 2000
# Sabour et al. 2024 (Align Your Steps), Stable Diffusion 1.5, 10 steps: sigma/alpha
AYS_SD15 = (14.615, 6.475, 3.861, 2.697, 1.886, 1.396, 0.963, 0.652, 0.399, 0.152, 0.029)


@dataclass(frozen=True)
class Levels:
    """A grid from much noise to little: steps + 1 levels. t, alpha, sigma: float32 [steps+1].

    Leave it on the CPU: solvers look at single values, and on an accelerator each look would wait.
    schedule: where the levels come from; only solvers that look between them need it.
    """

    t: Tensor
    alpha: Tensor
    sigma: Tensor
    schedule: Schedule | None = None

    @property
    def steps(self) -> int:
        return len(self.t) - 1

    def __len__(self) -> int:
        return len(self.t)

    def at(self, i: int) -> Level:
        """Level i as scalars, which broadcast against any batch on any device."""
        return Level(self.t[i], self.alpha[i], self.sigma[i])

    def at_ratio(self, ratio: float) -> Level:
        """The schedule's level where sigma/alpha = ratio, as scalars; clamped to its range."""
        if self.schedule is None:
            raise ValueError("this solver looks between the levels; give Levels(..., schedule=...)")
        wanted = torch.tensor(ratio, dtype=torch.float64)
        level = self.schedule.at(self.schedule.time_at_sigma_ratio(wanted))
        return Level(level.t.to(self.t), level.alpha.to(self.t), level.sigma.to(self.t))

    def between(self, one: Level, other: Level) -> Level:
        """The schedule's level half way in log(sigma/alpha); both need signal and noise."""
        return self.at_ratio(math.sqrt(one.sigma / one.alpha * (other.sigma / other.alpha)))

    def truncate(self, strength: float) -> Levels:
        """The last int(steps * strength) steps, as diffusers' img2img; 0 leaves none, 1 all."""
        if not 0 <= strength <= 1:
            raise ValueError(f"strength={strength}; allowed: 0 (keep the image) to 1 (ignore it)")
        kept = int(self.steps * strength + 1e-9)  # 0.29 * 100 is 28.999999999999996
        start = self.steps - kept
        return replace(self, t=self.t[start:], alpha=self.alpha[start:], sigma=self.sigma[start:])

    def reversed(self) -> Levels:
        """The same levels from little noise to much, for inversion."""
        return replace(self, t=self.t.flip(0), alpha=self.alpha.flip(0), sigma=self.sigma.flip(0))

    def to(self, device: torch.device | str) -> Levels:
        return replace(
            self, t=self.t.to(device), alpha=self.alpha.to(device), sigma=self.sigma.to(device)
        )


class Grid(Protocol):
    """A spacing whose parameters are set."""

    def __call__(self, schedule: Schedule, *, steps: int, final_to_zero: bool = ...) -> Levels: ...


def leading(
    schedule: Schedule, *, steps: int, steps_offset: int = 1, final_to_zero: bool = False
) -> Levels:
    """diffusers' "leading": every (T // steps)-th step. T=1000, 50 steps: 981,961,...,1.

    The offset shrinks where step T would be asked for (steps = T). The last level is the schedule's
    first step, or (final_to_zero) no noise at all.
    """
    count = schedule.num_train_steps
    if _beyond(schedule, steps):
        return _all_and_between(schedule, steps, final_to_zero)
    stride = count // steps
    offset = min(steps_offset, count - 1 - (steps - 1) * stride)
    index = torch.arange(steps - 1, -1, -1, dtype=torch.float64) * stride + offset
    return _levels(schedule, schedule.time_at_index(index), final_to_zero)


def trailing(schedule: Schedule, *, steps: int, final_to_zero: bool = False) -> Levels:
    """diffusers' "trailing": starts at the last step, T - 1. T=1000, 50 steps: 999,979,...,19."""
    if _beyond(schedule, steps):
        return _all_and_between(schedule, steps, final_to_zero)
    left = 1 - torch.arange(steps, dtype=torch.float64) / steps
    index = (left * schedule.num_train_steps).round() - 1
    return _levels(schedule, schedule.time_at_index(index), final_to_zero)


def linspace(schedule: Schedule, *, steps: int, final_to_zero: bool = True) -> Levels:
    """k-diffusion's spacing: equal in t from T - 1 to 0 with fractional t, then no noise."""
    index = torch.linspace(schedule.num_train_steps - 1, 0, _checked(steps), dtype=torch.float64)
    return _levels(schedule, schedule.time_at_index(index), final_to_zero)


def karras(
    schedule: Schedule,
    *,
    steps: int,
    rho: float = 7.0,
    sigma_max: float = 80.0,
    final_to_zero: bool = True,
) -> Levels:
    """Karras et al. 2022, eq. 5: (sigma/alpha)^(1/rho) is equally spaced.

    sigma_max: upper limit where the schedule goes higher, to infinity at zero terminal SNR.
    """
    low, high = (end ** (1 / rho) for end in _ratio_range(schedule, sigma_max))
    ratio = torch.linspace(high, low, _checked(steps), dtype=torch.float64) ** rho
    return _levels(schedule, schedule.time_at_sigma_ratio(ratio), final_to_zero)


def exponential(
    schedule: Schedule, *, steps: int, sigma_max: float = 80.0, final_to_zero: bool = True
) -> Levels:
    """log(sigma/alpha) is equally spaced; sigma_max as in `karras`."""
    low, high = (math.log(end) for end in _ratio_range(schedule, sigma_max))
    ratio = torch.linspace(high, low, _checked(steps), dtype=torch.float64).exp()
    return _levels(schedule, schedule.time_at_sigma_ratio(ratio), final_to_zero)


def flow_shift(
    schedule: Schedule, *, steps: int, shift: float = 3.0, final_to_zero: bool = True
) -> Levels:
    """Esser et al. 2024, eq. 23: equal steps in t with sigma/alpha `shift` times as large.

    On the flow schedule t' = shift t / (1 + (shift - 1) t); shift 1 is equal spacing from 1 to 0.
    """
    if shift <= 0:
        raise ValueError(f"shift={shift}; use 1 (none) or more for larger images, 3 at 1024 px")
    left = 1 - torch.arange(_checked(steps), dtype=torch.float64) / steps
    index = (left * schedule.num_train_steps - 1).clamp(min=0)
    level = schedule.at(schedule.time_at_index(index))
    times = schedule.time_at_sigma_ratio(shift * level.sigma / level.alpha)
    return _levels(schedule, times, final_to_zero)


def ays(
    schedule: Schedule,
    *,
    steps: int,
    ratios: Sequence[float] = AYS_SD15,
    final_to_zero: bool = True,
) -> Levels:
    """Sabour et al. 2024: a list of sigma/alpha, log-linear between its entries for other steps.

    ratios: falling, one more than the steps they were found for; the end replaces the last.
    """
    listed = torch.tensor(ratios, dtype=torch.float64)
    if not (len(ratios) > 1 and bool((listed.diff() < 0).all()) and bool((listed > 0).all())):
        raise ValueError(f"ratios={list(ratios)}; use two or more falling values above 0")
    place = torch.arange(_checked(steps), dtype=torch.float64) * ((len(ratios) - 1) / steps)
    lower = place.long()
    logs = listed.log()
    ratio = (logs[lower] + (place - lower) * (logs[lower + 1] - logs[lower])).exp()
    return _levels(schedule, schedule.time_at_sigma_ratio(ratio), final_to_zero)


def explicit(schedule: Schedule, *, times: Sequence[float], final_to_zero: bool = True) -> Levels:
    """The given times, from much noise to little, then the last level."""
    values = torch.tensor(times, dtype=torch.float64)
    low, high = schedule.time_range
    falling = bool((values.diff() < 0).all())
    inside = bool(((values >= low) & (values <= high)).all())
    if not (len(times) > 0 and falling and inside):
        raise ValueError(f"times={list(times)}; use falling times between {low} and {high}")
    return _levels(schedule, values, final_to_zero)


# by name; flow is the flow schedule's own equal spacing, flow_shift that of large images
GRIDS: dict[str, Grid] = {
    "leading": leading,
    "trailing": trailing,
    "linspace": linspace,
    "karras": karras,
    "exponential": exponential,
    "ays": ays,
    "flow": partial(flow_shift, shift=1.0),
    "flow_shift": flow_shift,
}


def _levels(schedule: Schedule, times: Tensor, final_to_zero: bool) -> Levels:
    level = schedule.at(times)
    first = torch.tensor([schedule.time_range[0]], dtype=torch.float64)
    last = schedule.at(first)
    if final_to_zero:
        last = Level(first, torch.ones_like(first), torch.zeros_like(first))
    pairs = ((level.t, last.t), (level.alpha, last.alpha), (level.sigma, last.sigma))
    t, alpha, sigma = (torch.cat(pair).float() for pair in pairs)
    return Levels(t, alpha, sigma, schedule)


def _beyond(schedule: Schedule, steps: int) -> bool:
    return _checked(steps) > schedule.num_train_steps


def _all_and_between(schedule: Schedule, steps: int, final_to_zero: bool) -> Levels:
    """More levels than training steps: equally spaced over all of them, the first left out."""
    index = torch.linspace(schedule.num_train_steps - 1, 0, steps + 1, dtype=torch.float64)[:-1]
    return _levels(schedule, schedule.time_at_index(index), final_to_zero)


def _ratio_range(schedule: Schedule, sigma_max: float) -> tuple[float, float]:
    ends = torch.tensor([0, schedule.num_train_steps - 1], dtype=torch.float64)
    level = schedule.at(schedule.time_at_index(ends))
    low, high = (level.sigma / level.alpha).tolist()
    if not low < sigma_max:
        raise ValueError(f"sigma_max={sigma_max} is below the least noise, sigma/alpha={low:.4g}")
    return low, min(high, sigma_max)


def _checked(steps: int) -> int:
    if not 1 <= steps <= MAX_STEPS:
        raise ValueError(f"steps={steps}; use 1 to {MAX_STEPS}")
    return steps
