"""What is kept of many pictures' features, so that batches and ranks can be put together?

N pictures, D feature width. Features stay as the network gave them; what is computed of them is
float64. Both states are frozen: `merge` makes a new one.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import reduce

import torch
from torch import Tensor

_ROWS = 4096  # pictures taken up at once: bounds the float64 copy
_NAMED = 5  # pictures an error names


@dataclass(frozen=True, eq=False)
class Features:
    """index [N] int64: which picture a row is of, ascending; values [N,D]. Made by `of`.

    Rows are ordered by picture, so that what is computed of them (also keyed subsets) is the same,
    bit for bit, whichever batch or rank measured a picture.
    """

    index: Tensor
    values: Tensor

    @classmethod
    def of(cls, index: Tensor, values: Tensor) -> Features:
        """Sorted and checked. Raises ValueError for wrong shapes, repeats and non-finite rows."""
        _check(index, values)
        order = torch.argsort(index)
        return cls(index[order], values[order])

    @property
    def count(self) -> int:
        return len(self.index)

    @property
    def dim(self) -> int:
        return self.values.shape[1]

    def merge(self, *others: Features) -> Features:
        """All rows of all of them. Raises ValueError when a picture is in two of them."""
        parts = (self, *others)
        if len({part.dim for part in parts}) > 1:
            raise ValueError(
                f"features are {' and '.join(str(part.dim) for part in parts)} wide; "
                "put together only what one extractor made"
            )
        index = torch.cat([part.index for part in parts])
        return Features.of(index, torch.cat([part.values for part in parts]))


@dataclass(frozen=True, eq=False)
class Moments:
    """count N; mean [D] and scatter [D,D] (sum of outer products of deviations), both float64.

    Deviations from the mean, not raw products: sums of x xᵀ lose the digits in which N mean meanᵀ
    agrees with them.
    """

    count: int
    mean: Tensor
    scatter: Tensor

    @classmethod
    def of(cls, values: Tensor) -> Moments:
        """Of rows [N,D], taken up in their order."""
        _check(torch.arange(len(values), device=values.device), values)
        if not len(values):
            raise ValueError("no features given; give one picture or more")
        return merged([_of_chunk(rows) for rows in torch.split(values, _ROWS)])

    @property
    def dim(self) -> int:
        return len(self.mean)

    def covariance(self) -> Tensor:
        """[D,D], unbiased. Raises ValueError for a single picture."""
        if self.count < 2:
            raise ValueError(f"{self.count} picture has no covariance; give 2 or more")
        return self.scatter / (self.count - 1)

    def merge(self, other: Moments) -> Moments:
        """Chan, Golub and LeVeque 1983, eq. 2.1: of both sets of pictures together."""
        if self.dim != other.dim:
            raise ValueError(
                f"moments are of {self.dim} and {other.dim} features; "
                "put together only what one extractor made"
            )
        count = self.count + other.count
        step = other.mean - self.mean
        mean = self.mean + step * (other.count / count)
        between = torch.outer(step, step) * (self.count * other.count / count)
        return Moments(count, mean, self.scatter + other.scatter + between)


def merged(parts: Iterable[Moments]) -> Moments:
    """Of all parts together, in their order."""
    return reduce(Moments.merge, parts)


def check_pair(reference: Features, samples: Features, *, least: int, why: str) -> None:
    """Raises ValueError unless both sets hold `least` pictures or more, equally wide features."""
    problems = [
        f"{part.count} {name} pictures: {why} needs {least} or more"
        for name, part in (("reference", reference), ("sampled", samples))
        if part.count < least
    ]
    if reference.dim != samples.dim:
        problems.append(
            f"reference features are {reference.dim} wide, sampled ones {samples.dim}: "
            "measure both with one extractor"
        )
    if problems:
        raise ValueError("; ".join(problems))


def _of_chunk(rows: Tensor) -> Moments:
    rows = rows.double()
    mean = rows.mean(0)
    deviations = rows - mean
    return Moments(len(rows), mean, deviations.T @ deviations)


def _check(index: Tensor, values: Tensor) -> None:
    if values.ndim != 2 or not values.is_floating_point() or not values.shape[1]:
        got = f"{tuple(values.shape)} {values.dtype}"
        raise ValueError(f"features are {got}; give floats [N,D], one row a picture")
    if index.dtype != torch.int64 or index.shape != values.shape[:1]:
        got = f"{tuple(index.shape)} {index.dtype}"
        raise ValueError(f"index is {got} for {len(values)} rows; give int64 [N]")
    distinct, times = torch.unique(index, return_counts=True)
    repeated = distinct[times > 1]
    broken = index[~torch.isfinite(values).all(1)]
    problems = [
        f"{len(found)} pictures {what} (the first: {found[:_NAMED].tolist()})"
        for found, what in (
            (repeated, "are there more than once: drop what pads the last batch of a rank"),
            (broken, "have NaN or infinite features: look at these pictures and the extractor"),
        )
        if len(found)
    ]
    if problems:
        raise ValueError("; ".join(problems))
