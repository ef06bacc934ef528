"""Which samples are there, and what are their bytes?"""

from __future__ import annotations

import logging
import os
import time
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ldm.data import table as tables
from ldm.data.cache import ShardCache, default_cache_dir
from ldm.data.captions import BadSampleError, Captions
from ldm.data.filters import Rule, Tally
from ldm.data.locate import expand, is_remote
from ldm.data.picture_size import PICTURE_EXTS
from ldm.data.table import Stamp, Table
from ldm.types import Skipped

__all__ = ["ShardIndex", "build_index", "expand", "first_samples", "read", "split_validation"]

log = logging.getLogger(__name__)

_OPEN_FILES = 256
_OPEN_TRIES = 5
_PROBED = 16
_LISTED = 1000
Rows = NDArray[np.int32]


@dataclass(frozen=True)
class ShardIndex:
    """The usable samples of some shards.

    tables: the index file of each shard, stamps: the version of the shard it describes; rows: which
    of its samples are used (None = all), sizes: how many. dropped: what was left out and why (the
    first of each kind). Small to pickle: the tables are loaded where they are needed.
    """

    shards: tuple[str, ...]
    tables: tuple[Path, ...]
    stamps: tuple[Stamp, ...]
    rows: tuple[Rows | None, ...]
    sizes: tuple[int, ...]
    cache: ShardCache
    dropped: tuple[Skipped, ...] = field(default=())

    def __len__(self) -> int:
        return sum(self.sizes)

    @property
    def remote(self) -> bool:
        """Whether any shard has to be fetched before it can be read."""
        return any(is_remote(shard) for shard in self.shards)

    def place(self, shard: int, n: int) -> tuple[Table, int]:
        """The table of a shard and the row in it of its n-th used sample."""
        rows = self.rows[shard]
        table = tables.loaded(self.tables[shard], self.stamps[shard])
        return table, n if rows is None else int(rows[n])

    def used_rows(self, shard: int) -> Rows:
        """The rows in its table of the used samples of a shard. [sizes[shard]]"""
        rows = self.rows[shard]
        size = self.sizes[shard]
        return np.arange(size, dtype=np.int32) if rows is None else rows[:size]

    def key(self, shard: int, n: int) -> str:
        """The key of a sample."""
        table, row = self.place(shard, n)
        return table.key(row)


def build_index(
    shards: Sequence[str],
    *,
    holding: Sequence[str] = PICTURE_EXTS,
    captions: Captions = Captions(),
    rules: Sequence[Rule] = (),
    columns: Sequence[str] = (),
    cache: ShardCache | None = None,
) -> ShardIndex:
    """Count and locate the samples that have a picture and a caption and pass `rules`.

    holding: extensions of which a sample has one (pictures, or cached latents instead). columns:
    what the index files are to hold beside the json fields of the rules.
    """
    started = time.monotonic()
    cache = cache or ShardCache(folder=default_cache_dir())
    fields = sorted({*columns, *(name for rule in rules for name in rule.fields)})

    found = _index_files(shards, fields, cache)
    what = "picture" if tuple(holding) == PICTURE_EXTS else "latent"
    needs = {what: tuple(holding)}
    if not captions.optional:
        needs["caption"] = captions.exts
    dropped: list[Skipped] = []
    tally = Tally(rules)
    rows = []
    sizes = []
    for shard, (path, stamp) in zip(shards, found, strict=True):
        table = tables.load(path, stamp)
        kept = _complete(shard, table, needs, dropped)
        if rules:
            kept &= tally.keep(table.columns(), len(table))
        rows.append(None if kept.all() else np.flatnonzero(kept).astype(np.int32))
        sizes.append(int(kept.sum()))
    index = ShardIndex(
        shards=tuple(shards),
        tables=tuple(path for path, _ in found),
        stamps=tuple(stamp for _, stamp in found),
        rows=tuple(rows),
        sizes=tuple(sizes),
        cache=cache,
        dropped=tuple(dropped[:_LISTED]),
    )
    _check_filtered(index, tally)
    _check_captions(index, captions)
    took = time.monotonic() - started
    log.info("%d samples in %d shards, indexed in %.1f s", len(index), len(shards), took)
    return index


def read(
    index: ShardIndex, shard: int, n: int, exts: Sequence[str] | None = None
) -> dict[str, bytes]:
    """The members of the n-th used sample of a shard, by extension; exts: only these."""
    table, row = index.place(shard, n)
    handle = _FILES.open(index, shard)
    members = table.members(row)
    return {
        ext: _pread(handle, length, offset, index.shards[shard])
        for ext, (offset, length) in members.items()
        if exts is None or ext in exts
    }


def split_validation(index: ShardIndex, most: int = 512) -> tuple[ShardIndex, ShardIndex]:
    """(train, validation): the last 1 % of the samples, 1 … `most` of them, are kept out."""
    total = len(index)
    if total < 2:
        raise ValueError(f"{total} samples cannot be split into train and validation; add shards")
    held_out = max(1, min(total // 100, most))
    train_rows, val_rows = list(index.rows), list(index.rows)
    train_sizes, val_sizes = list(index.sizes), [0] * len(index.sizes)
    left = held_out
    for shard in reversed(range(len(index.shards))):
        size = index.sizes[shard]
        taken = min(left, size)
        rows = index.rows[shard]
        every = np.arange(size, dtype=np.int32) if rows is None else rows
        val_rows[shard] = every[size - taken :]
        val_sizes[shard] = taken
        train_sizes[shard] = size - taken  # the first ones: the row numbers stay right
        train_rows[shard] = rows
        left -= taken
    log.info("no validation shards given: the last %d of %d samples are kept out", held_out, total)
    return (
        replace(index, rows=tuple(train_rows), sizes=tuple(train_sizes)),
        replace(index, rows=tuple(val_rows), sizes=tuple(val_sizes)),
    )


def first_samples(index: ShardIndex, count: int) -> ShardIndex:
    """Only the first `count` samples."""
    ends = np.minimum(np.cumsum(index.sizes), count)
    return replace(index, sizes=tuple(np.diff(ends, prepend=0).tolist()))


def _index_files(
    shards: Sequence[str], fields: Sequence[str], cache: ShardCache
) -> list[tuple[Path, Stamp]]:
    with ThreadPoolExecutor(max_workers=8) as pool:  # they wait for disks and networks, mostly
        waiting = [pool.submit(cache.index_of, shard, fields) for shard in shards]
        try:
            return [future.result() for future in waiting]
        except BaseException:
            pool.shutdown(cancel_futures=True)  # or the error would wait for all other shards
            raise


def _check_filtered(index: ShardIndex, tally: Tally) -> None:
    """Say what each filter did; an error when nothing is left or a field does not exist."""
    for line in tally.lines():
        log.info("%s", line)
    if unknown := tally.never_found():
        whole = replace(index, rows=(None,) * len(index.rows))
        fields = sorted(tables.record(read(whole, 0, 0, ("json",)).get("json", b"")))
        raise ValueError(
            f"filter {', '.join(unknown)}: no sample has this; the .json of the first sample has "
            f"{', '.join(fields) or 'no fields'}"
        )
    if not len(index):
        raise ValueError("the filters leave no sample: " + "; ".join(tally.lines()))


def _check_captions(index: ShardIndex, captions: Captions) -> None:
    """An error when none of the first captions can be used: a wrong field name, most likely."""
    shard = next(shard for shard, size in enumerate(index.sizes) if size)
    if is_remote(index.shards[shard]):
        return  # it would be fetched for this alone
    problems = []
    for n in range(min(_PROBED, index.sizes[shard])):
        try:
            captions.choose(read(index, shard, n), 0.0)
        except BadSampleError as error:
            problems.append(error)
        else:
            return
    raise ValueError(
        f"{index.shards[shard]}: the first {len(problems)} samples have no usable caption: "
        f"{index.key(shard, 0)}: {problems[0]}. data.caption_key=FIELD names a field of .json, "
        "null means .txt, data.uncaptioned=true takes samples without caption"
    )


def _complete(
    shard: str, table: Table, needs: Mapping[str, tuple[str, ...]], dropped: list[Skipped]
) -> NDArray[np.bool_]:
    """Which samples of a shard have every member that is needed. [n]"""
    if table.problem:
        log.warning("%s %s; its first %d samples are used", shard, table.problem, len(table))
        dropped.append(Skipped(shard, "", f"the shard {table.problem}"))
    whole = np.ones(len(table), dtype=np.bool_)
    for what, exts in needs.items():
        has = table.having(exts)
        if not has.any():
            raise ValueError(_nothing_message(shard, table, what, exts))
        for row in np.flatnonzero(~has)[:_LISTED]:
            dropped.append(Skipped(shard, table.key(int(row)), f"no {what} ({_dotted(exts)})"))
        if not has.all():
            first = table.key(int(np.flatnonzero(~has)[0]))
            lacking = f"{int((~has).sum())} of {len(table)} samples"
            log.warning("%s: %s have no %s, first %s; left out", shard, lacking, what, first)
        whole &= has
    return whole


def _nothing_message(shard: str, table: Table, what: str, exts: tuple[str, ...]) -> str:
    if not len(table):
        return f"{shard} holds no samples{': it ' + table.problem if table.problem else ''}"
    found = ", ".join(f".{ext}" for ext in table.exts)
    advice = {
        "caption": "put the text there, or say data.caption_key=FIELD for a field of .json",
        "picture": "webdataset shards hold one picture a sample (data/README.md); for cached "
        "latents say data.format=latents",
        "latent": "data.format=latents reads cached latents (data/README.md), images pictures",
    }
    return (
        f"{shard}: none of its {len(table)} samples has a {what} ({_dotted(exts)}); "
        f"they have {found} (first key {table.key(0)!r}): {advice[what]}"
    )


def _dotted(exts: Sequence[str]) -> str:
    return " or ".join(f".{ext}" for ext in exts)


class _Files:
    """The shards that are open, least recently used closed first. Positional reads only, so a
    forked worker may share them."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._open: OrderedDict[tuple[str, Stamp], int] = OrderedDict()

    def open(self, index: ShardIndex, shard: int) -> int:
        """A file descriptor of a shard in the version that was indexed."""
        key = (index.shards[shard], index.stamps[shard])
        if key in self._open:
            self._open.move_to_end(key)
            _check_unchanged(index, shard, self._open[key])
            return self._open[key]
        if is_remote(index.shards[shard]):
            self._close_deleted()
        handle = _opened(index, shard)
        self._open[key] = handle
        if len(self._open) > self._limit:
            os.close(self._open.popitem(last=False)[1])
        return handle

    def _close_deleted(self) -> None:
        """Let go of shards that the cache has deleted: until then their space is not free."""
        for key, handle in list(self._open.items()):
            if os.fstat(handle).st_nlink == 0:
                os.close(self._open.pop(key))


_FILES = _Files(_OPEN_FILES)


def _check_unchanged(index: ShardIndex, shard: int, handle: int) -> None:
    """A local shard that was written over in place would be read at wrong offsets."""
    status = os.fstat(handle)
    now = (status.st_size, status.st_mtime_ns)
    if now != index.stamps[shard] and not is_remote(index.shards[shard]):
        raise OSError(f"{index.shards[shard]} changed after it was indexed; restart")


def _opened(index: ShardIndex, shard: int) -> int:
    for _ in range(_OPEN_TRIES):
        path = index.cache.local(index.shards[shard], index.stamps[shard])
        try:
            return os.open(path, os.O_RDONLY)
        except FileNotFoundError:  # deleted by another process since: the cache is very small
            log.info("%s was deleted from the cache before it was opened", index.shards[shard])
    raise OSError(f"{index.shards[shard]} does not stay in the cache; raise data.cache_gb")


def _pread(handle: int, length: int, offset: int, shard: str) -> bytes:
    data = os.pread(handle, length, offset)
    while len(data) < length:
        more = os.pread(handle, length - len(data), offset + len(data))
        if not more:
            raise OSError(
                f"{shard} became shorter while it was being read; restart to index it again"
            )
        data += more
    return data
