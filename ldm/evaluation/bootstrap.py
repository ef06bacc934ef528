"""How sure is a mean?"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ldm import rng

DRAWS = 2000
_NUMBERS = 1 << 21  # resampled rows at once: bounds the memory to some tens of MB


@dataclass(frozen=True)
class Interval:
    """A value and where it lies with probability `level`; n: what it is the mean of."""

    value: float
    low: float
    high: float
    level: float
    n: int

    @property
    def half_width(self) -> float:
        """y of "x ± y"."""
        return (self.high - self.low) / 2

    @property
    def excludes_zero(self) -> bool:
        return self.low > 0 or self.high < 0

    def __str__(self) -> str:
        return f"{self.value:.4g} ± {self.half_width:.2g} ({self.level:.0%}, n={self.n})"


def bootstrap_mean(
    values: Tensor, *, seed: int, purpose: str, level: float = 0.95, draws: int = DRAWS
) -> Interval:
    """The mean of independent values [N] with its BCa interval."""
    ones = torch.ones_like(values, dtype=torch.float64)
    return bootstrap_ratio(values, ones, seed=seed, purpose=purpose, level=level, draws=draws)


def bootstrap_ratio(
    totals: Tensor,
    counts: Tensor,
    *,
    seed: int,
    purpose: str,
    level: float = 0.95,
    draws: int = DRAWS,
) -> Interval:
    """sum(totals) / sum(counts), both [N], with a bootstrap interval over the N rows.

    A row is what is drawn independently (an image), its count how many values it gave. Bias
    corrected and accelerated: Efron 1987, sections 2 and 6 (for skewed values, as losses are).
    The draws are keyed by (seed, purpose, draw). Raises ValueError, all problems at once.
    """
    _check(totals, counts, level, draws)
    totals, counts = totals.double().cpu(), counts.double().cpu()
    n = len(totals)
    value = totals.sum() / counts.sum()
    redrawn = torch.cat(
        [
            totals[rows].sum(1) / counts[rows].sum(1)
            for part in torch.split(torch.arange(draws), max(1, _NUMBERS // n))
            for rows in (rng.integers(seed, f"bootstrap/{purpose}", part, n, (n,)),)
        ]
    )
    low, high = torch.quantile(redrawn, _places(redrawn, value, totals - value * counts, level))
    return Interval(float(value), float(low), float(high), level, n)


def _places(redrawn: Tensor, value: Tensor, influence: Tensor, level: float) -> Tensor:
    """Which quantiles of the draws bound the interval: [2]. influence: [N], of each row."""
    tails = torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=torch.float64)
    spread = influence.square().sum()
    below = (redrawn < value).double().mean() + (redrawn == value).double().mean() / 2
    if spread == 0 or below in (0, 1):
        return tails
    acceleration = influence.pow(3).sum() / (6 * spread.pow(1.5))
    bias = torch.special.ndtri(below)
    z = bias + torch.special.ndtri(tails)
    bend = (1 - acceleration * z).clamp(min=0.01)  # only the last draws are beyond
    places: Tensor = torch.special.ndtr(bias + z / bend)
    return places


def _check(totals: Tensor, counts: Tensor, level: float, draws: int) -> None:
    problems = []
    if totals.ndim != 1 or totals.shape != counts.shape or len(totals) < 2:
        problems.append(
            f"values are {tuple(totals.shape)}, counts {tuple(counts.shape)}: "
            "give both as [N] with N of 2 or more"
        )
    if not bool(torch.isfinite(totals).all()):
        problems.append(f"{int((~torch.isfinite(totals)).sum())} values are NaN or infinite")
    if not bool((counts > 0).all()):
        problems.append("some counts are not positive: leave those rows out")
    if not 0 < level < 1:
        problems.append(f"level={level} is not between 0 and 1; use for example 0.95")
    if draws < 100:
        problems.append(f"draws={draws} are too few for an interval; use 100 or more")
    if problems:
        raise ValueError("; ".join(problems))
