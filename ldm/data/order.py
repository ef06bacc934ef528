"""Which sample is number i of the run?

A pure function of the seed and the shard sizes, so the whole data state is one integer, and neither
the number of ranks nor of workers changes what global batch k holds.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from ldm import rng

Place = tuple[int, int, int]  # epoch, shard, n
K = TypeVar("K")
V = TypeVar("V")


@dataclass(frozen=True)
class _Layout:
    """One epoch: its shards [S] in order, where each ends [S], where each group starts [G+1]."""

    shards: NDArray[np.int64]
    ends: NDArray[np.int64]
    start: NDArray[np.int64]

    def group_at(self, position: int) -> tuple[int, int, int]:
        """The group that holds a position of the epoch, its start and its end."""
        group = int(np.searchsorted(self.start, position, side="right")) - 1
        return group, int(self.start[group]), int(self.start[group + 1])


class Order:
    """Epoch e permutes the shards and cuts them into groups of `group` shards (0 = one group).

    The samples of a group, laid out shard by shard, are cut into `lanes` lanes (the first n mod L
    lanes one sample longer), each shuffled; position p of the group comes from lane p mod L.
    sizes: samples per shard.
    """

    def __init__(self, sizes: Sequence[int], *, seed: int, group: int = 0, lanes: int = 1) -> None:
        self.sizes = np.asarray(sizes, dtype=np.int64)
        if self.sizes.ndim != 1 or self.sizes.sum() <= 0 or (self.sizes < 0).any():
            raise ValueError(f"shard sizes {list(sizes)[:8]} hold no samples; check the filters")
        if group < 0 or lanes < 1:
            raise ValueError(f"group={group}, lanes={lanes}; use group >= 0 (0 = all), lanes >= 1")
        self.seed = seed
        self.group = group or len(self.sizes)
        self.lanes = lanes
        self._total = int(self.sizes.sum())
        self._layouts: OrderedDict[int, _Layout] = OrderedDict()
        self._lanes: OrderedDict[tuple[int, int, int], NDArray[np.int64]] = OrderedDict()

    def __len__(self) -> int:
        """Samples an epoch."""
        return self._total

    def at(self, i: int, attempt: int = 0) -> Place:
        """The place of sample i. attempt > 0: its stand-in, the next samples of its own lane."""
        epoch, position = divmod(i, self._total)
        layout = self._layout(epoch)
        group, start, end = layout.group_at(position)
        slot, lane = divmod(position - start, self.lanes)
        first, length = self._lane_span(end - start, lane)
        shuffled = self._lane(epoch, group, lane, length)
        laid_out = start + first + int(shuffled[(slot + attempt) % length])
        which = int(np.searchsorted(layout.ends, laid_out, side="right"))
        shard = int(layout.shards[which])
        return epoch, shard, laid_out - int(layout.ends[which]) + int(self.sizes[shard])

    def spec(self) -> dict[str, object]:
        """What fixes the order, beside the seed: for the card, to be compared on resume."""
        digest = hashlib.blake2b(self.sizes.tobytes(), digest_size=8).hexdigest()
        return {"group": self.group, "lanes": self.lanes, "sizes": digest}

    def group_end(self, i: int) -> int:
        """The first position after the group of sample i."""
        epoch, position = divmod(i, self._total)
        return epoch * self._total + self._layout(epoch).group_at(position)[2]

    def shards_of_group(self, i: int, rank: int, world: int) -> list[int]:
        """The shards that a rank, which takes positions rank::world, reads in the group of i."""
        epoch, position = divmod(i, self._total)
        layout = self._layout(epoch)
        _, start, end = layout.group_at(position)
        step = int(np.gcd(world, self.lanes))
        found: dict[int, None] = {}
        for lane in range(self.lanes):
            if (epoch * self._total + start + lane - rank) % step:
                continue  # this lane belongs to other ranks
            first, length = self._lane_span(end - start, lane)
            if length:
                low, high = start + first, start + first + length - 1
                span = np.searchsorted(layout.ends, [low, high], side="right")
                found.update(dict.fromkeys(layout.shards[span[0] : span[1] + 1].tolist()))
        return [shard for shard in found if self.sizes[shard]]

    def _lane_span(self, total: int, lane: int) -> tuple[int, int]:
        """Where a lane begins in the layout of its group, and its length."""
        base, extra = divmod(total, self.lanes)
        return lane * base + min(lane, extra), base + (lane < extra)

    def _layout(self, epoch: int) -> _Layout:
        if epoch not in self._layouts:
            shards = rng.permutation(self.seed, "shard order", epoch, len(self.sizes)).numpy()
            ends = np.cumsum(self.sizes[shards])
            last = np.append(np.arange(self.group - 1, len(shards) - 1, self.group), -1)
            start = np.concatenate([[0], ends[last]])
            remember(self._layouts, epoch, _Layout(shards, ends, start), keep=2)
        return self._layouts[epoch]

    def _lane(self, epoch: int, group: int, lane: int, length: int) -> NDArray[np.int64]:
        key = (epoch, group, lane)
        if key not in self._lanes:
            groups = -(-len(self.sizes) // self.group)
            number = (epoch * groups + group) * self.lanes + lane
            shuffled = rng.permutation(self.seed, "sample order", number, length).numpy()
            remember(self._lanes, key, shuffled, keep=2 * self.lanes)
        return self._lanes[key]

    def __getstate__(self) -> dict[str, object]:
        """Without the permutations: a spawned worker makes its own."""
        return {**self.__dict__, "_layouts": OrderedDict(), "_lanes": OrderedDict()}


class Sequential:
    """Every sample once in the order of the index, then again from the start: for validation."""

    def __init__(self, sizes: Sequence[int]) -> None:
        self._ends = np.cumsum(np.asarray(sizes, dtype=np.int64))
        if not len(self._ends) or self._ends[-1] <= 0:
            raise ValueError(f"shard sizes {list(sizes)[:8]} hold no samples; check the filters")

    def __len__(self) -> int:
        return int(self._ends[-1])

    def at(self, i: int, attempt: int = 0) -> Place:
        """The place of sample i; a stand-in is the next sample."""
        epoch, position = divmod(i + attempt, len(self))
        shard = int(np.searchsorted(self._ends, position, side="right"))
        before = int(self._ends[shard - 1]) if shard else 0
        return epoch, shard, position - before


def remember(memory: OrderedDict[K, V], key: K, value: V, *, keep: int) -> None:
    memory[key] = value
    if len(memory) > keep:
        memory.popitem(last=False)
