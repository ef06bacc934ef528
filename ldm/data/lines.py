"""How do sources and buckets become one index and one order?

A line is the part of a source that goes into one bucket, with an order of its own. The lines stand
one after the other in the joined index; the order says whose turn it is.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from ldm import rng
from ldm.data import table as tables
from ldm.data.buckets import Pair, equal_bucket, join_small, nearest_bucket
from ldm.data.interleave import Interleaved, Turns, quotas
from ldm.data.order import Order
from ldm.data.shards import ShardIndex

log = logging.getLogger(__name__)

_Ids = list[NDArray[np.int32]]  # the bucket of each used sample, by shard


@dataclass(frozen=True, kw_only=True)
class Source:
    """Samples with a weight in the mixture; group, lanes: see Order."""

    index: ShardIndex
    weight: float = 1.0
    group: int = 0
    lanes: int = 1


@dataclass(frozen=True, kw_only=True)
class Lines:
    """What is read: shapes are (height, width) of the pictures of each shard, () = squares."""

    index: ShardIndex
    order: Order | Interleaved
    shapes: tuple[Pair, ...] = ()
    described: dict[str, object] = field(default_factory=dict)

    def spec(self) -> dict[str, object]:
        """For the card: what fixes the order beside the seed."""
        return {**self.described, **self.order.spec()}


def arrange(sources: Sequence[Source], *, seed: int) -> Lines:
    """One source as it is; several as a mixture by their weights, an epoch the sum of them."""
    if len(sources) == 1:
        return Lines(index=sources[0].index, order=_order(sources[0], seed))
    index, first_shard = joined([source.index for source in sources])
    orders = [_order(source, _source_seed(seed, n)) for n, source in enumerate(sources)]
    turns = Turns(quotas([source.weight for source in sources]), seed=seed, purpose="mixture")
    order = Interleaved(orders, turns, first_shard=first_shard, length=len(index))
    for source, quota in zip(sources, turns.quotas.tolist(), strict=True):
        ends = source.index.shards[0], len(source.index)
        log.info("mixture: %s …: %d samples, %d of 1000 positions", *ends, quota)
    return Lines(index=index, order=order, described={"mixture": _described(sources)})


def arrange_buckets(
    sources: Sequence[Source],
    sizes: Sequence[Pair],
    *,
    column: str,
    seed: int,
    batch_size: int,
    exact: bool = False,
) -> Lines:
    """Batches of one size each; column: of the index files, where the samples' own sizes are.

    With n_sb samples of source s in bucket b, an epoch of N samples expects N sum_s(w_s n_sb / n_s)
    from bucket b, w_s the normalised weights. That many batches of it there are, rounded down: the
    rest stays in its line for the next epoch. Inside a bucket source s has weight w_s n_sb / n_s.
    exact: every sample has one of the sizes and is not cut, so a bucket smaller than a batch cannot
    join a neighbour and is left out.
    """
    ids = [buckets_of(source.index, sizes, column, exact=exact) for source in sources]
    held = np.array([_counts(each, len(sizes)) for each in ids])  # [S,b]
    weights = np.array([source.weight for source in sources])
    sums = held.sum(axis=1, keepdims=True)  # [S,1]
    share = held * int(sums.sum()) / sums * (weights / weights.sum())[:, None]  # [S,b] an epoch
    wanted = share.sum(axis=0)  # [b]
    into = np.array(join_small(wanted.tolist(), sizes, batch_size))  # [b]
    if exact:
        into = np.where(wanted >= batch_size, np.arange(len(sizes)), -1)

    kept = sorted(set(into[into >= 0].tolist()))
    expected = [float(share[:, into == bucket].sum()) for bucket in kept]
    batches = [int(samples // batch_size) for samples in expected]
    if not batches or min(batches) < 1:
        raise ValueError(
            f"{int(sums.sum())} training samples fill no batch of {batch_size} of one size; lower "
            "training.batch_size, or use data.buckets.max_aspect=1"
        )
    indices, lines = [], []
    for bucket in kept:
        pairs = zip(sources, ids, strict=True)
        parts = [members(source.index, each, into == bucket) for source, each in pairs]
        weight = share[:, into == bucket].sum(axis=1).tolist()
        index, line = _bucket_line(sources, parts, weight, seed=seed, bucket=bucket)
        indices.append(index)
        lines.append(line)
    index, first_shard = joined(indices)
    order = Interleaved(
        lines,
        Turns(batches, seed=seed, purpose="bucket order"),
        first_shard=first_shard,
        length=sum(batches) * batch_size,
        block=batch_size,
    )
    shapes = [sizes[bucket] for bucket in kept]
    rest = [int(n) - k * batch_size for n, k in zip(expected, batches, strict=True)]
    elsewhere = int(held[:, into != np.arange(len(into))].sum())
    _report(shapes, expected, batches, rest)
    fate = "are left out" if exact else "joined the nearest bucket"
    log.info("%d samples of sizes with less than a batch %s", elsewhere, fate)
    described: dict[str, object] = {
        "buckets": [
            {"height": h, "width": w, "rest": left}
            for (h, w), left in zip(shapes, rest, strict=True)
        ]
    }
    if len(sources) > 1:
        described["mixture"] = _described(sources)
    by_shard = [s for s, part in zip(shapes, indices, strict=True) for _ in part.shards]
    return Lines(index=index, order=order, shapes=tuple(by_shard), described=described)


def _bucket_line(
    sources: Sequence[Source],
    parts: Sequence[ShardIndex],
    weights: Sequence[float],
    *,
    seed: int,
    bucket: int,
) -> tuple[ShardIndex, Order | Interleaved]:
    """The line of one bucket: that of the only source with samples in it, or their mixture."""
    found = [n for n, part in enumerate(parts) if len(part)]
    orders = [
        _order(
            replace(sources[n], index=parts[n]),
            seed if len(sources) == 1 else _source_seed(seed, n),
        )
        for n in found
    ]
    index, first_shard = joined([parts[n] for n in found])
    if len(found) == 1:
        return index, orders[0]
    bucket_seed = rng.fold(seed, "bucket mixture", bucket)
    turns = Turns(quotas([weights[n] for n in found]), seed=bucket_seed, purpose="mixture")
    return index, Interleaved(orders, turns, first_shard=first_shard, length=len(index))


def _order(source: Source, seed: int) -> Order:
    return Order(source.index.sizes, seed=seed, group=source.group, lanes=source.lanes)


def _source_seed(seed: int, number: int) -> int:
    """Two sources with equally many samples are not shuffled alike."""
    return rng.fold(seed, "source", number)


def joined(indices: Sequence[ShardIndex]) -> tuple[ShardIndex, list[int]]:
    """The shards of all, one after the other, and where each begins."""
    first = np.cumsum([0] + [len(index.shards) for index in indices])[:-1].tolist()
    if len(indices) == 1:
        return indices[0], first

    def flat(name: str) -> tuple:  # type: ignore[type-arg]
        return tuple(value for index in indices for value in getattr(index, name))

    names = ("shards", "tables", "stamps", "rows", "sizes")
    whole = replace(indices[0], **{name: flat(name) for name in names})
    return replace(whole, dropped=tuple(dict.fromkeys(flat("dropped")))), first


def members(index: ShardIndex, ids: _Ids, wanted: NDArray[np.bool_]) -> ShardIndex:
    """The samples whose bucket is wanted [b]. Shards without any stay: every line then permutes
    its shards alike, and remote lines are in the same group at the same time."""
    chosen = [np.flatnonzero(wanted[of_shard]) for of_shard in ids]
    rows = tuple(index.used_rows(shard)[places] for shard, places in enumerate(chosen))
    return replace(index, rows=rows, sizes=tuple(len(places) for places in chosen))


def buckets_of(
    index: ShardIndex, sizes: Sequence[Pair], column: str, *, exact: bool = False
) -> _Ids:
    """The bucket of every used sample, from the index files alone."""
    choose = equal_bucket if exact else nearest_bucket
    return [choose(_sizes_of(index, shard, column), sizes) for shard in range(len(index.shards))]


def sizes_found(indices: Iterable[ShardIndex], column: str) -> list[Pair]:
    """All (height, width)s that the samples have, those of most samples first."""
    count: Counter[Pair] = Counter()
    for index in indices:
        for shard in range(len(index.shards)):
            sizes = _sizes_of(index, shard, column)
            count.update((int(h), int(w)) for w, h in sizes[np.isfinite(sizes[:, 0])].tolist())
    return sorted(count, key=lambda size: (-count[size], size))


def _sizes_of(index: ShardIndex, shard: int, column: str) -> NDArray[np.float64]:
    """(width, height) of the used samples of a shard, nan where unknown. [n,2]"""
    column_values = tables.load(index.tables[shard], index.stamps[shard]).columns()[column]
    known = [(np.nan, np.nan) if size is None else size for size in column_values]
    return np.array(known, dtype=np.float64).reshape(-1, 2)[index.used_rows(shard)]


def _counts(ids: _Ids, buckets: int) -> NDArray[np.int64]:
    return np.sum([np.bincount(of_shard, minlength=buckets) for of_shard in ids], axis=0)


def _described(sources: Iterable[Source]) -> list[dict[str, object]]:
    return [
        {"weight": s.weight, "samples": len(s.index), "shards": len(s.index.shards)}
        for s in sources
    ]


def _report(
    shapes: Sequence[Pair],
    expected: Sequence[float],
    batches: Sequence[int],
    rest: Sequence[int],
) -> None:
    for (height, width), samples, count, left in zip(shapes, expected, batches, rest, strict=True):
        numbers = width, height, int(samples), count, left
        log.info("bucket %dx%d: %d samples, %d batches an epoch, rest %d", *numbers)
    log.info("%d buckets; %d samples stay for the next epoch", len(shapes), sum(rest))
