"""Which of two checkpoints has the lower loss, and is the difference more than chance?

Both are measured on the same images, times and noises: most of a diffusion loss is about these
three, and in the difference it cancels. N losses of fewer images, each at several times.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from ldm.evaluation.bootstrap import Interval, bootstrap_ratio


@dataclass(frozen=True, eq=False)
class LossTable:
    """image [N] int64, t [N], loss [N] float64, sorted; noise: what keys ε. Made by `of`."""

    image: Tensor
    t: Tensor
    loss: Tensor
    noise: str

    @classmethod
    def of(cls, image: Tensor, t: Tensor, loss: Tensor, *, noise: str) -> LossTable:
        """Sorted by (image, t) and checked. noise: for example "seed 7, validation"."""
        if image.dtype != torch.int64 or not image.ndim == t.ndim == loss.ndim == 1:
            raise ValueError(f"image is {image.dtype} {tuple(image.shape)}; give int64 [N]")
        if not len(image) == len(t) == len(loss) or not len(image):
            raise ValueError(
                f"{len(image)} images, {len(t)} times, {len(loss)} losses: give N each"
            )
        broken = image[~torch.isfinite(loss) | ~torch.isfinite(t)]
        if len(broken):
            raise ValueError(
                f"{len(broken)} losses or times are NaN or infinite (the first: image {broken[0]})"
            )
        by_time = torch.argsort(t, stable=True)
        order = by_time[torch.argsort(image[by_time], stable=True)]
        return cls(image[order], t[order].double(), loss[order].double(), noise)

    def merge(self, *others: LossTable) -> LossTable:
        """The losses of all of them, for example of all batches and ranks."""
        parts = (self, *others)
        noises = sorted({part.noise for part in parts})
        if len(noises) > 1:
            raise ValueError(f"tables are of noises {' and '.join(noises)}: not one measurement")
        image, t, loss = (
            torch.cat([getattr(part, name) for part in parts]) for name in ("image", "t", "loss")
        )
        return LossTable.of(image, t, loss, noise=self.noise)


@dataclass(frozen=True)
class Bin:
    """t in [start, stop), the last bin's stop included. interval: over `interval.n` images."""

    start: float
    stop: float
    interval: Interval
    losses: int


def loss_by_bin(
    table: LossTable, *, edges: Sequence[float], seed: int, level: float = 0.95
) -> list[Bin]:
    """The mean loss in each bin of t. Intervals are over images, whose times hang together."""
    return _by_bin(table, table.loss, edges, seed, level)


def compare(
    a: LossTable, b: LossTable, *, edges: Sequence[float], seed: int, level: float = 0.95
) -> list[Bin]:
    """In each bin of t, the mean of loss_b - loss_a: by how much a is better (positive) than b.

    One bin over all of t: edges=(first, last). Raises ValueError unless both tables are of the
    same images, times and noise.
    """
    same = torch.equal(a.image, b.image) and torch.equal(a.t, b.t)
    if not same or a.noise != b.noise:
        raise ValueError(
            f"tables are not paired: {len(a.image)} losses of noise {a.noise!r} and "
            f"{len(b.image)} of {b.noise!r}, {'the same' if same else 'other'} images and times; "
            "measure both checkpoints with the same data, seed and times"
        )
    return _by_bin(a, b.loss - a.loss, edges, seed, level)


def _by_bin(
    table: LossTable, values: Tensor, edges: Sequence[float], seed: int, level: float
) -> list[Bin]:
    first, last = float(table.t.min()), float(table.t.max())
    if len(edges) < 2 or list(edges) != sorted(set(edges)):
        raise ValueError(f"edges={list(edges)}: give 2 or more, ascending")
    if first < edges[0] or last > edges[-1]:
        raise ValueError(f"times are {first:g} … {last:g}, edges {edges[0]:g} … {edges[-1]:g}")
    inner = torch.tensor(edges[1:-1], dtype=torch.float64)
    number = torch.bucketize(table.t, inner, right=True)
    found = []
    for k, (start, stop) in enumerate(pairwise(edges)):
        chosen = number == k
        _, row, counts = torch.unique(table.image[chosen], return_inverse=True, return_counts=True)
        if len(counts) < 2:
            raise ValueError(
                f"{len(counts)} images have a time in [{start:g}, {stop:g}): use wider bins or "
                "more images (2 or more a bin)"
            )
        totals = torch.zeros(len(counts), dtype=torch.float64).index_add_(0, row, values[chosen])
        interval = bootstrap_ratio(totals, counts, seed=seed, purpose=f"t bin {k}", level=level)
        found.append(Bin(start, stop, interval, int(chosen.sum())))
    return found
