"""Which numbers stand at an axis, and where on it does a value lie?"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from ldm.page.numbers import compact

TARGET = 5  # ticks


@dataclass(frozen=True)
class Axis:
    """From low to high, in the values' own unit. log: each decade is as long as the others."""

    low: float
    high: float
    log: bool = False

    @classmethod
    def over(cls, values: Iterable[float], *, log: bool, margin: float) -> Axis:
        """An axis that holds all values it can show. margin: share of its length left free."""
        usable = [v for v in values if math.isfinite(v) and (v > 0 or not log)] or [1.0]
        low, high = min(usable), max(usable)
        if low == high:
            low, high = (low / 2, high * 2) if log else (low - _half(low), high + _half(high))
        if log:
            pad = (high / low) ** margin
            return cls(low / pad, high * pad, log)
        pad = margin * (high - low)
        floor = 0.0 if low >= 0 else -math.inf  # nothing negative below what cannot be
        return cls(max(low - pad, floor), high + pad, log)

    def shows(self, value: float) -> bool:
        return math.isfinite(value) and (value > 0 or not self.log)

    def place(self, value: float) -> float:
        """Where a value lies: 0 at low, 1 at high."""
        if self.log:
            return math.log(value / self.low) / math.log(self.high / self.low)
        return (value - self.low) / (self.high - self.low)

    def ticks(self) -> list[tuple[float, str]]:
        """Places in [0,1] and what is written there."""
        values = _decades(self.low, self.high) if self.log else _round(self.low, self.high)
        return [(self.place(value), compact(value)) for value in values]


def _half(value: float) -> float:
    return abs(value) / 2 or 0.5


def _round(low: float, high: float) -> list[float]:
    """Multiples of 1, 2 or 5 times a power of ten."""
    rough = (high - low) / TARGET
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= 0.75 * rough)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [float(f"{index * step:.12g}") for index in range(first, last + 1)]


def _decades(low: float, high: float) -> Sequence[float]:
    """Powers of ten; of a short axis also 2 and 5 times them."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    powers = range(first, last + 1)
    inside = [10.0**p for p in powers if low <= 10.0**p <= high]
    if len(inside) >= 3:
        stride = -(-len(inside) // (TARGET + 1))
        return inside[::stride]
    finer = [f * 10.0**p for p in powers for f in (1, 2, 5) if low <= f * 10.0**p <= high]
    return finer if len(finer) >= 2 else _round(low, high)
