"""Whose turn is it, when several lines of samples make one order?

Each run of turns holds every line a fixed number of times, in a keyed permutation, so what a line
has given before is a prefix count and any turn is reached by a seek (design: mixtures, buckets).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ldm import rng
from ldm.data.order import Order, Place, remember

RUN = 1000  # positions of a mixture in which every source comes as often as its rounded weight
_Run = tuple[NDArray[np.int32], NDArray[np.int64]]


class Turns:
    """Run r holds line l quotas[l] times, in the permutation keyed by (seed, purpose, r)."""

    def __init__(self, quotas: Sequence[int], *, seed: int, purpose: str) -> None:
        self.quotas = np.asarray(quotas, dtype=np.int64)
        if self.quotas.ndim != 1 or not len(self.quotas) or (self.quotas < 1).any():
            raise ValueError(f"quotas {list(quotas)[:8]}; every line needs one turn or more a run")
        self.seed = seed
        self.purpose = purpose
        self._ends = np.cumsum(self.quotas)
        self._runs: OrderedDict[int, _Run] = OrderedDict()

    def __len__(self) -> int:
        """Turns a run."""
        return int(self._ends[-1])

    def at(self, turn: int) -> tuple[int, int]:
        """(line, which of its own turns it is) of turn number `turn` of all."""
        run, place = divmod(turn, len(self))
        lines, before = self._run(run)
        line = int(lines[place])
        return line, run * int(self.quotas[line]) + int(before[place])

    def _run(self, run: int) -> _Run:
        """The line of each turn of a run, and how often it had its turn before in it. [T], [T]"""
        if run not in self._runs:
            mixed = rng.permutation(self.seed, self.purpose, run, len(self)).numpy()
            lines = np.searchsorted(self._ends, mixed, side="right").astype(np.int32)
            by_line = np.argsort(lines, kind="stable")
            before = np.empty(len(self), dtype=np.int64)
            before[by_line] = np.arange(len(self)) - (self._ends - self.quotas)[lines[by_line]]
            remember(self._runs, run, (lines, before), keep=2)
        return self._runs[run]

    def __getstate__(self) -> dict[str, object]:
        """Without the permutations: a spawned worker makes its own."""
        return {**self.__dict__, "_runs": OrderedDict()}


class Interleaved:
    """Lines that take turns of `block` samples each.

    first_shard: where the shards of each line begin in the index that all share; length: samples
    that count as an epoch. Line l goes on by its own epochs, whoever has the turns between.
    """

    def __init__(
        self,
        lines: Sequence[Order | Interleaved],
        turns: Turns,
        *,
        first_shard: Sequence[int],
        length: int,
        block: int = 1,
    ) -> None:
        if not len(lines) == len(turns.quotas) == len(first_shard) or block < 1 or length < 1:
            raise ValueError(
                f"{len(lines)} lines, {len(turns.quotas)} quotas, {len(first_shard)} offsets, "
                f"block={block}, length={length}; use one of each a line, block and length >= 1"
            )
        self.lines = tuple(lines)
        self.turns = turns
        self.first_shard = tuple(first_shard)
        self.length = length
        self.block = block

    def __len__(self) -> int:
        """Samples an epoch."""
        return self.length

    def at(self, i: int, attempt: int = 0) -> Place:
        """The place of sample i, its epoch that of its line; a stand-in is of the same line."""
        turn, offset = divmod(i, self.block)
        line, own = self.turns.at(turn)
        epoch, shard, n = self.lines[line].at(own * self.block + offset, attempt)
        return epoch, self.first_shard[line] + shard, n

    def spec(self) -> dict[str, object]:
        """What fixes the order, beside the seed: for the card, to be compared on resume."""
        return {
            "turns": self.turns.quotas.tolist(),
            "block": self.block,
            "lines": [line.spec() for line in self.lines],
        }


def quotas(weights: Sequence[float], total: int = RUN) -> list[int]:
    """Whole numbers of sum `total` in proportion to the weights, by largest remainder, each >= 1.

    A weight too small for one turn gets one: what it stands for would never be seen otherwise.
    """
    if not 0 < len(weights) <= total or not all(0 < w < float("inf") for w in weights):
        raise ValueError(
            f"weights {list(weights)[:8]}; use 1 … {total} of them, all positive and finite"
        )
    scale = total / sum(weights)
    shares = [w * scale for w in weights]
    counts = [max(1, int(share)) for share in shares]
    by_rest = sorted(range(len(shares)), key=lambda n: (counts[n] - shares[n], n))
    for n in by_rest[: max(0, total - sum(counts))]:
        counts[n] += 1
    while sum(counts) > total:  # several were lifted to 1: the largest give
        counts[counts.index(max(counts))] -= 1
    return counts
