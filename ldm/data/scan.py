"""What is in the shards, sample by sample, before a run depends on it?

Nothing is changed; index files are made where they are missing, as a run would make them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from ldm.data import table as tables
from ldm.data.alike import alike
from ldm.data.cache import ShardCache
from ldm.data.filters import Tally, parse_filter
from ldm.data.locate import is_remote
from ldm.data.picture_size import LATENT_EXTS, PICTURE_EXTS, PICTURE_SIZE
from ldm.data.scan_samples import Layout, Samples, digest, read_samples
from ldm.data.settings import DataConfig
from ldm.data.table import Stamp, Table
from ldm.types import Skipped

_LISTED = 1000  # unusable samples that are named, of however many
_GROUPS = 50  # groups of copies that are named
_CHUNK = 256  # samples that a thread reads at a time
Place = tuple[str, str]  # shard, key
Rows = NDArray[np.int64]
K = TypeVar("K")


@dataclass(frozen=True, kw_only=True)
class ShardFacts:
    """samples: in the shard; filtered: that the filters leave out; usable: that a run would read.

    indexed: its index file was there before. problem: of the archive, "" for none; fatal: with it
    no run begins.
    """

    shard: str
    bytes: int = 0
    samples: int = 0
    filtered: int = 0
    usable: int = 0
    indexed: bool = False
    problem: str = ""
    fatal: bool = False


@dataclass(frozen=True)
class Copies:
    """samples: how many are a copy of an earlier one; groups: the first of them, by place."""

    samples: int = 0
    groups: tuple[tuple[Place, ...], ...] = ()


@dataclass(frozen=True, kw_only=True)
class Scan:
    """bad: the first unusable samples; reasons: of all of them, by the beginning of the reason.

    sizes: [n,2] (width, height) of the usable pictures in px, nan where unknown. captions: how
    often each comes. layouts: of cached latents; channel_mean, channel_std: [C], not scaled.
    Without full=True no member is read: there are no captions, no same_bytes, alike and layouts.
    """

    shards: tuple[ShardFacts, ...]
    full: bool
    bad: tuple[Skipped, ...]
    reasons: Counter[str]
    filters: tuple[str, ...]
    sizes: NDArray[np.float64]
    captions: Counter[str]
    same_key: Copies
    same_bytes: Copies
    alike: Copies
    layouts: Counter[Layout]
    channel_mean: tuple[float, ...]
    channel_std: tuple[float, ...]

    @property
    def usable(self) -> int:
        """Samples that a run would read."""
        return sum(shard.usable for shard in self.shards)


@dataclass
class _Shard:
    """A shard with its table (None: fatal), its version, and the rows that are to be read."""

    facts: ShardFacts
    table: Table | None = None
    stamp: Stamp = (0, 0)
    rows: Rows = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    bad: list[Skipped] = field(default_factory=list)


def scan(
    shards: Sequence[str],
    config: DataConfig,
    *,
    full: bool = True,
    threads: int = 4,
    advance: Callable[[int, int], None] = lambda done, total: None,
) -> Scan:
    """Every sample of these shards. full: read and decode them; else only what headers say.

    advance(done, total): samples read so far. Raises OSError where a shard changes meanwhile.
    """
    cache, tally = config.cache(), Tally(parse_filter(config.filter))
    with ThreadPoolExecutor(max_workers=threads) as pool:
        opened = list(pool.map(lambda shard: _open(shard, config, cache, tally, full), shards))
    for shard in opened:  # one after the other: the tally counts
        _choose(shard, config, tally)
    parts = [Samples.empty(0)]
    if full:
        parts += _read(opened, config, cache, threads, advance)
    bad = [one for shard in opened for one in shard.bad] + [b for part in parts for b in part.bad]
    lost = Counter(one.shard for part in parts for one in part.bad)
    digests = np.concatenate([part.digests for part in parts])
    looks = np.concatenate([part.looks for part in parts])
    looks[_later(digests)] = 0  # the same bytes look alike anyway
    sizes = np.concatenate([part.sizes for part in parts])[digests > 0]
    mean, std = _channels(parts)
    return Scan(
        shards=tuple(replace(s.facts, usable=s.facts.usable - lost[s.facts.shard]) for s in opened),
        full=full,
        bad=tuple(bad[:_LISTED]),
        reasons=Counter(one.reason.split(":")[0] for one in bad),
        filters=tuple(tally.lines()),
        sizes=sizes if full else _sizes_said(opened),
        captions=_counted(part.captions for part in parts),
        same_key=_copies(_keys(opened), opened),
        same_bytes=_copies(digests, opened),
        alike=_groups(alike(looks), opened),
        layouts=_counted(part.layouts for part in parts),
        channel_mean=mean,
        channel_std=std,
    )


def _open(shard: str, config: DataConfig, cache: ShardCache, tally: Tally, full: bool) -> _Shard:
    """Its table, which is made and kept where it is missing."""
    known = False
    if not is_remote(shard):
        path = Path(shard)
        known = any(p.is_file() for p in (tables.beside(path), tables.in_cache(path, cache.folder)))
    fields = {name for rule in tally.rules for name in rule.fields}
    if config.format == "images" and (config.buckets.used or not full):
        fields.add(PICTURE_SIZE)
    try:
        index, stamp = cache.index_of(shard, sorted(fields))
        table = tables.load(index, stamp)
    except (OSError, ValueError) as error:
        return _Shard(ShardFacts(shard=shard, problem=str(error), fatal=True))
    facts = ShardFacts(
        shard=shard, bytes=stamp[0], samples=len(table), indexed=known, problem=table.problem
    )
    return _Shard(facts, table, stamp)


def _choose(shard: _Shard, config: DataConfig, tally: Tally) -> None:
    """Sets the rows that a run would read: with every member it needs, and past the filters."""
    if shard.table is None:
        return
    name, table = shard.facts.shard, shard.table
    captions = config.captions()
    needs: dict[str, tuple[str, ...]] = {"picture": PICTURE_EXTS}
    if config.format == "latents":
        needs = {"latent": LATENT_EXTS}
    if not captions.optional:
        needs["caption"] = captions.exts
    kept = np.ones(len(table), dtype=np.bool_)
    for what, exts in needs.items():
        has = table.having(exts)
        reason = f"no {what} ({' or '.join(f'.{ext}' for ext in exts)})"
        if not has.any():
            problem = f"none of its {len(table)} samples has a {what}" if len(table) else "is empty"
            problem = f"{problem}; it {shard.facts.problem}" if shard.facts.problem else problem
            shard.facts = replace(shard.facts, problem=problem, fatal=True)
            return
        shard.bad += [Skipped(name, table.key(int(n)), reason) for n in np.flatnonzero(kept & ~has)]
        kept &= has
    whole = int(kept.sum())
    if tally.rules:
        kept &= tally.keep(table.columns(), len(table))
    shard.rows = np.flatnonzero(kept)
    shard.facts = replace(shard.facts, filtered=whole - len(shard.rows), usable=len(shard.rows))


def _read(
    opened: Sequence[_Shard],
    config: DataConfig,
    cache: ShardCache,
    threads: int,
    advance: Callable[[int, int], None],
) -> list[Samples]:
    """All samples in the order of the shards, some at a time in each thread."""

    def read(part: tuple[_Shard, Rows]) -> Samples:
        shard, rows = part
        assert shard.table is not None
        path = cache.local(shard.facts.shard, shard.stamp)
        return read_samples(shard.facts.shard, path, shard.table, rows.tolist(), config)

    todo = [
        (shard, shard.rows[start : start + _CHUNK])
        for shard in opened
        for start in range(0, len(shard.rows), _CHUNK)
    ]
    total, done, parts = sum(len(shard.rows) for shard in opened), 0, []
    with ThreadPoolExecutor(max_workers=threads) as pool:
        for part in pool.map(read, todo):
            parts.append(part)
            done += len(part.digests)
            advance(done, total)
    return parts


def _counted(counters: Iterable[Counter[K]]) -> Counter[K]:
    whole: Counter[K] = Counter()
    for counter in counters:
        whole.update(counter)
    return whole


def _keys(opened: Iterable[_Shard]) -> NDArray[np.uint64]:
    """A digest of the key of each row that is read. [n]"""
    found = [digest(s.table.key(n).encode()) for s in opened if s.table for n in s.rows.tolist()]
    return np.array(found, dtype=np.uint64)


def _sizes_said(opened: Iterable[_Shard]) -> NDArray[np.float64]:
    """(width, height) by json or header of each row that is read, nan where unknown. [n,2]"""
    found: list[object] = []
    for shard in opened:
        if shard.table is not None and PICTURE_SIZE in shard.table.fields:
            column = shard.table.columns()[PICTURE_SIZE]
            found += [column[row] or (np.nan, np.nan) for row in shard.rows.tolist()]
    return np.array(found, dtype=np.float64).reshape(-1, 2)


def _later(values: NDArray[np.uint64]) -> NDArray[np.bool_]:
    """Which values have come before; 0 counts as none. [n]"""
    _, first = np.unique(values, return_index=True)
    later = np.ones(len(values), dtype=np.bool_)
    later[first] = False
    return later & (values > 0)


def _copies(values: NDArray[np.uint64], opened: Sequence[_Shard]) -> Copies:
    """Equal values [n] of the rows that are read, 0 left out."""
    _, which, counts = np.unique(values, return_inverse=True, return_counts=True)
    copied = np.flatnonzero((counts[which] > 1) & (values > 0))
    groups: dict[int, list[int]] = {}
    for number in copied.tolist():
        groups.setdefault(int(which[number]), []).append(number)
    return _groups(list(groups.values()), opened)


def _groups(groups: Sequence[Sequence[int]], opened: Sequence[_Shard]) -> Copies:
    """groups: of the numbers of rows that are read."""
    ends = np.cumsum([len(shard.rows) for shard in opened])

    def place(number: int) -> Place:
        at = int(np.searchsorted(ends, number, side="right"))
        shard = opened[at]
        assert shard.table is not None
        row = int(shard.rows[number - int(ends[at]) + len(shard.rows)])
        return shard.facts.shard, shard.table.key(row)

    named = tuple(tuple(place(number) for number in group) for group in groups[:_GROUPS])
    return Copies(sum(len(group) - 1 for group in groups), named)


def _channels(parts: Iterable[Samples]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and deviation of the channels of the latents, of the number that most have. [C], [C]"""
    totals: dict[int, NDArray[np.float64]] = {}
    for part in parts:
        for channels, sums in part.sums.items():
            totals[channels] = totals.get(channels, 0) + sums
    if not totals:
        return (), ()
    count, total, squares = max(totals.values(), key=lambda sums: float(sums[0].sum()))
    mean = total / count
    return tuple(mean.tolist()), tuple(np.sqrt(squares / count - np.square(mean)).tolist())
