"""How far apart are two sets of pictures, compared pair by pair (KID, CMMD)?

Both are the squared maximum mean discrepancy (Gretton et al. 2012), under two kernels.
n, m rows of two sets, D feature width; float64.
"""

from __future__ import annotations

from dataclasses import dataclass
from statistics import NormalDist

import torch
from torch import Tensor

from ldm import rng
from ldm.evaluation.bootstrap import Interval
from ldm.evaluation.statistics import Features, check_pair

SIGMA = 10.0  # Jayasumana et al. 2024, section 4: bandwidth on CLIP vectors of unit length
SCALE = 1000.0  # the same: so that numbers are easy to read
_ROWS = 1024


@dataclass(frozen=True)
class Kid:
    """interval: of the mean over subsets; std: of one subset (what papers print after ±)."""

    interval: Interval
    std: float
    n_reference: int
    n_samples: int
    subsets: int
    subset_size: int

    @property
    def value(self) -> float:
        return self.interval.value

    def __str__(self) -> str:
        return (
            f"KID {self.value:.4g} ± {self.interval.half_width:.2g} ({self.interval.level:.0%}; "
            f"{self.n_samples} samples, {self.n_reference} references)"
        )


@dataclass(frozen=True)
class Cmmd:
    """Comparable with published values when the features are those of CLIP ViT-L/14 at 336 px."""

    value: float
    n_reference: int
    n_samples: int

    def __str__(self) -> str:
        return f"CMMD {self.value:.4g} ({self.n_samples} samples, {self.n_reference} references)"


def kid(
    reference: Features,
    samples: Features,
    *,
    seed: int,
    subsets: int = 100,
    subset_size: int = 1000,
    level: float = 0.95,
) -> Kid:
    """Bińkowski et al. 2018, section 4: unbiased MMD² with (x·y/D + 1)³, mean over subsets.

    Its expectation depends neither on n nor on subset_size. The interval is that of the delete-d
    jackknife (Shao and Wu 1989): subsets of m out of n pictures vary by n/m - 1 times the variance
    of the whole, so it is about the pictures, not about how many subsets were drawn. Of two
    different n the smaller counts. Subsets are keyed by (seed, subset).
    """
    fewest = min(reference.count, samples.count)
    _check_subsets(subsets, subset_size, fewest, level)
    check_pair(reference, samples, least=2 * subset_size, why=f"KID of subset_size={subset_size}")
    first, second = reference.values.double(), samples.values.double()
    values = torch.stack(
        [
            _polynomial_mmd2(
                first[_subset(seed, "reference", k, len(first), subset_size)],
                second[_subset(seed, "samples", k, len(second), subset_size)],
            )
            for k in range(subsets)
        ]
    )
    value, std = float(values.mean()), float(values.std())
    error = std * (subset_size / (fewest - subset_size) + 1 / subsets) ** 0.5
    reach = NormalDist().inv_cdf((1 + level) / 2) * error
    interval = Interval(value, value - reach, value + reach, level, fewest)
    return Kid(interval, std, reference.count, samples.count, subsets, subset_size)


def cmmd(reference: Features, samples: Features) -> Cmmd:
    """Jayasumana et al. 2024, section 4: 1000 MMD² with exp(-|x-y|²/200) on unit vectors.

    As published the biased form (pairs of a picture with itself count), so it is never below 0.
    """
    check_pair(reference, samples, least=2, why="CMMD")
    first, second = _unit(reference), _unit(samples)
    within = _mean_kernel(first, first) + _mean_kernel(second, second)
    value = SCALE * (within - 2 * _mean_kernel(first, second))
    return Cmmd(max(value, 0.0), reference.count, samples.count)


def _polynomial_mmd2(first: Tensor, second: Tensor) -> Tensor:
    """Gretton et al. 2012, eq. 3, without bias. [m,D], [m,D] -> scalar."""
    m, dim = first.shape

    def kernel(one: Tensor, other: Tensor) -> Tensor:
        cubed: Tensor = (one @ other.T / dim + 1).pow(3)
        return cubed

    within = [kernel(rows, rows) for rows in (first, second)]
    others = torch.stack([(k.sum() - k.trace()) / (m * (m - 1)) for k in within]).sum()
    value: Tensor = others - 2 * kernel(first, second).mean()
    return value


def _subset(seed: int, which: str, number: int, n: int, size: int) -> Tensor:
    return rng.permutation(seed, f"kid/{which}", number, n)[:size]


def _mean_kernel(first: Tensor, second: Tensor) -> float:
    """The mean of kernel - 1 over all pairs: the ones cancel, and with them no digits are lost."""
    total = 0.0
    for rows in torch.split(first, _ROWS):
        squared = (2 - 2 * rows @ second.T).clamp(min=0)  # unit vectors
        total += float(torch.expm1(-squared / (2 * SIGMA**2)).sum())
    return total / (len(first) * len(second))


def _unit(features: Features) -> Tensor:
    values = features.values.double()
    length = values.norm(dim=1, keepdim=True)
    if bool((length == 0).any()):
        zero = features.index[length[:, 0] == 0]
        raise ValueError(f"{len(zero)} pictures have all-zero features (the first: {zero[0]})")
    unit: Tensor = values / length
    return unit


def _check_subsets(subsets: int, size: int, fewest: int, level: float) -> None:
    problems = []
    if subsets < 2:
        problems.append(f"subsets={subsets}: use 2 or more (100 is usual)")
    if size < 2 or size > fewest // 2:
        allowed = f"2 … {fewest // 2}" if fewest >= 4 else "2 or more of 4 or more pictures"
        problems.append(
            f"subset_size={size} with {fewest} pictures in the smaller set: use {allowed} "
            "(at most half, or the interval is unknown), or draw more pictures"
        )
    if not 0 < level < 1:
        problems.append(f"level={level} is not between 0 and 1; use for example 0.95")
    if problems:
        raise ValueError("; ".join(problems))
