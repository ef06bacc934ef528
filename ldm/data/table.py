"""Where in one shard is every sample?

The table of a shard is made once by a header walk, kept as a `.index` file (safetensors)
beside the shard, or in a cache folder where the shard's folder is read only.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import tempfile
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors import numpy as safetensors

from ldm.data import tarwalk
from ldm.data.picture_size import LATENT_SIZE, PICTURE_SIZE, latent_size, picture_size

log = logging.getLogger(__name__)

Stamp = tuple[int, int]  # size in bytes, modification time in ns
_FORMAT = 2
_HELD_BYTES = 128 << 20  # of tables, in every process that reads samples
_ARRAYS = ("first", "ext", "offset", "length", "key_end", "keys", "columns_json")


@dataclass(frozen=True)
class Table:
    """The n samples and m members of one shard.

    first: [n+1], the members of sample i are first[i]:first[i+1]; ext: [m] number of the extension
    in `exts`; offset, length: [m] bytes; keys: UTF-8 bytes of all keys, key_end: [n].
    columns_json: the bytes of {json field: [n] values, None where a sample has none} for `fields`,
    those asked for so far; PICTURE_SIZE and LATENT_SIZE among them are
    [width, height].
    """

    stamp: Stamp
    problem: str
    exts: tuple[str, ...]
    first: NDArray[np.int32]
    ext: NDArray[np.int32]
    offset: NDArray[np.int64]
    length: NDArray[np.int64]
    key_end: NDArray[np.int32]
    keys: NDArray[np.uint8]
    fields: tuple[str, ...]
    columns_json: NDArray[np.uint8]

    def __len__(self) -> int:
        return len(self.first) - 1

    @property
    def nbytes(self) -> int:
        """Memory of the arrays."""
        return sum(getattr(self, name).nbytes for name in _ARRAYS)

    def key(self, n: int) -> str:
        """The key of sample n."""
        start = int(self.key_end[n - 1]) if n else 0
        return bytes(self.keys[start : int(self.key_end[n])]).decode("utf-8", "replace")

    def members(self, n: int) -> dict[str, tuple[int, int]]:
        """Extension -> (offset, length) of sample n."""
        rows = range(int(self.first[n]), int(self.first[n + 1]))
        return {self.exts[self.ext[m]]: (int(self.offset[m]), int(self.length[m])) for m in rows}

    def columns(self) -> dict[str, list[object]]:
        """The json fields read so far; parsed here, as reading samples does not need them."""
        return dict(json.loads(self.columns_json.tobytes()))

    def having(self, exts: Sequence[str]) -> NDArray[np.bool_]:
        """Which samples have a member of one of these extensions. [n]"""
        numbers = [number for number, ext in enumerate(self.exts) if ext in exts]
        owner = np.repeat(np.arange(len(self)), np.diff(self.first))
        found = np.zeros(len(self), dtype=np.bool_)
        found[owner[np.isin(self.ext, numbers)]] = True
        return found


def table_of(shard: Path, *, fields: Sequence[str] = (), cache: Path) -> Path:
    """The valid index file of a local shard with these json columns: found, or made and written."""
    stamp = stamp_of(shard)
    known: Table | None = None
    for place in (beside(shard), in_cache(shard, cache)):
        table = _load_valid(place, stamp)
        if table is not None and set(fields) <= set(table.fields):
            return place
        known = known or table
    table = scan(shard) if known is None else known
    return _write(_with_columns(table, shard, fields), shard, cache)


def stored(path: Path, fields: Sequence[str] = ()) -> Stamp | None:
    """The version of the shard that an index file describes; None without it or these columns."""
    table = _load_valid(path, None)
    return table.stamp if table is not None and set(fields) <= set(table.fields) else None


def scan(shard: Path, *, fields: Sequence[str] = (), stamp: Stamp | None = None) -> Table:
    """A table by walking the headers of a shard; stamp: the version to write into it."""
    members, problem = tarwalk.walk(shard)
    samples = list(tarwalk.samples(members))
    flat = [(ext, place) for sample in samples for ext, place in sample.members.items()]
    exts = tuple(sorted({ext for ext, _ in flat}))
    number = {ext: n for n, ext in enumerate(exts)}
    keys = [sample.key.encode("utf-8", "surrogateescape") for sample in samples]
    table = Table(
        stamp=stamp or stamp_of(shard),
        problem=problem,
        exts=exts,
        fields=(),
        columns_json=_as_bytes({}),
        first=np.cumsum([0] + [len(sample.members) for sample in samples], dtype=np.int32),
        ext=np.array([number[ext] for ext, _ in flat], dtype=np.int32),
        offset=np.array([place.offset for _, place in flat], dtype=np.int64),
        length=np.array([place.length for _, place in flat], dtype=np.int64),
        key_end=np.cumsum([len(key) for key in keys], dtype=np.int32),
        keys=np.frombuffer(b"".join(keys), dtype=np.uint8),
    )
    return _with_columns(table, shard, fields)


def beside(shard: Path) -> Path:
    """The name of the index file next to its shard."""
    return shard.with_name(shard.name + ".index")


def in_cache(shard: Path, cache: Path) -> Path:
    """The name of the index file of a shard whose folder cannot be written."""
    digest = hashlib.blake2b(os.fsencode(shard.absolute()), digest_size=12).hexdigest()
    return cache / "index" / f"{shard.stem[:40]}-{digest}.index"


def stamp_of(shard: Path) -> Stamp:
    status = shard.stat()
    return status.st_size, status.st_mtime_ns


def load(path: Path, stamp: Stamp | None) -> Table:
    """The table in an index file; stamp: the version of the shard (None = any).

    Read, not memory-mapped: another node may replace the file, and a map over NFS then ends in a
    bus error.
    """
    arrays = safetensors.load(path.read_bytes())
    meta = json.loads(arrays["meta"].tobytes())
    table = Table(
        stamp=(int(meta["size"]), int(meta["mtime_ns"])),
        problem=str(meta["problem"]),
        exts=tuple(meta["exts"]),
        fields=tuple(meta["fields"]),
        **{name: arrays[name] for name in _ARRAYS},
    )
    if meta["format"] != _FORMAT or stamp not in (None, table.stamp) or not _consistent(table):
        raise ValueError(f"{path} is not the index of this version of its shard; delete it")
    return table


class _Loaded:
    """The tables read of late, as many as fit `limit` bytes."""

    def __init__(self, limit: int) -> None:
        self._left = limit
        self._tables: OrderedDict[tuple[Path, Stamp], Table] = OrderedDict()

    def __call__(self, path: Path, stamp: Stamp) -> Table:
        """The table of this version of a shard, from memory where it still is."""
        table = self._tables.get((path, stamp))
        if table is not None:
            self._tables.move_to_end((path, stamp))
            return table
        table = load(path, stamp)
        self._tables[path, stamp] = table
        self._left -= table.nbytes
        while self._left < 0 and len(self._tables) > 1:
            self._left += self._tables.popitem(last=False)[1].nbytes
        return table


loaded = _Loaded(_HELD_BYTES)


def _load_valid(path: Path, stamp: Stamp | None) -> Table | None:
    """The table in an index file, or None where there is none or it is another version's."""
    if not path.is_file():
        return None
    try:
        return load(path, stamp)
    except (ValueError, KeyError, TypeError, OSError, SafetensorError) as error:
        log.info("%s is made again: %s", path, error)
        return None


def _consistent(table: Table) -> bool:
    """Every place lies inside the shard: a wrong index must not make us read elsewhere."""
    end = table.offset + table.length
    inside = bool(np.all((table.offset >= 0) & (table.length >= 0) & (end <= table.stamp[0])))
    members = len(table.offset) == len(table.length) == len(table.ext) == int(table.first[-1])
    return inside and members and len(table.key_end) == len(table)


def _with_columns(table: Table, shard: Path, fields: Sequence[str]) -> Table:
    """The table with the values of these json fields, and picture sizes where asked for."""
    names = tuple(sorted({*fields, *table.fields}))
    if names == table.fields:
        return table
    columns: dict[str, list[object]] = {name: [] for name in names}
    with shard.open("rb") as file:
        for n in range(len(table)):
            members = table.members(n)
            place = members.get("json")
            values = {} if place is None else record(os.pread(file.fileno(), place[1], place[0]))
            if PICTURE_SIZE in columns:
                values[PICTURE_SIZE] = picture_size(values, members, file.fileno())
            if LATENT_SIZE in columns:
                values[LATENT_SIZE] = latent_size(members, file.fileno())
            for name in names:
                columns[name].append(values.get(name))
    return replace(table, fields=names, columns_json=_as_bytes(columns))


def record(data: bytes) -> dict[str, object]:
    """The fields of a json member; none where it is not a json object."""
    try:
        values = json.loads(data)
    except (ValueError, RecursionError):
        return {}
    return values if isinstance(values, dict) else {}


def _write(table: Table, shard: Path, cache: Path) -> Path:
    """Write an index file beside the shard, or in the cache folder where that cannot be done."""
    for place in (beside(shard), in_cache(shard, cache)):
        try:
            save(table, place)
        except OSError as error:
            log.debug("%s cannot be written: %s", place, error)
        else:
            return place
    raise OSError(
        f"the index of {shard} can be written neither beside it nor in {cache}; "
        "set data.cache_dir to a folder that can be written"
    )


def save(table: Table, path: Path) -> None:
    """Write an index file."""
    meta = {
        "format": _FORMAT,
        "size": table.stamp[0],
        "mtime_ns": table.stamp[1],
        "problem": table.problem,
        "exts": table.exts,
        "fields": table.fields,
    }
    arrays = {name: getattr(table, name) for name in _ARRAYS}
    path.parent.mkdir(parents=True, exist_ok=True)
    _replace_file(path, safetensors.save({"meta": _as_bytes(meta), **arrays}))


def _replace_file(path: Path, data: bytes) -> None:
    """Write a file so that others see the old one or the whole new one."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=".index-", suffix=".tmp")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def _as_bytes(value: object) -> NDArray[np.uint8]:
    return np.frombuffer(json.dumps(value).encode(), dtype=np.uint8)
