"""Where in a tar file are the members?

A walk over the 512-byte headers (ten times faster than tarfile). No member is ever written to disk
and no name is ever used as a path: names are only grouped into samples.
"""

from __future__ import annotations

import re
import tarfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

_BLOCK = 512
_KEY = re.compile(r"^((?:.*/|)[^.]+)[.]([^/]*)$", re.DOTALL)  # webdataset's base_plus_ext
_META = re.compile(r"__[^/]*__($|/)")  # webdataset's own metadata members


class BadTarError(ValueError):
    """The bytes are no tar archive, or stop being one."""


@dataclass(frozen=True)
class Member:
    """One regular file of the archive: its name and where its bytes are."""

    name: str
    offset: int
    length: int


@dataclass(frozen=True)
class Sample:
    """The members that share a key; members: extension (lower case) -> place."""

    key: str
    members: dict[str, Member]


class _NotPlain(Exception):
    """A header that only tarfile understands: pax or GNU long names, links, folders."""


def walk(path: Path) -> tuple[list[Member], str]:
    """The regular files of a tar in order, and what is wrong with it ("" = nothing).

    A broken archive gives the members before the break.
    """
    for reader in (_walk_headers, _walk_tarfile):
        found: list[Member] = []
        try:
            found.extend(reader(path))
        except _NotPlain:
            continue
        except BadTarError as error:
            return found, str(error)
        return found, ""
    raise AssertionError("unreachable: _walk_tarfile takes every header")


def samples(members: Iterable[Member]) -> Iterator[Sample]:
    """Consecutive members with one key, as webdataset groups them.

    The key is the path up to the first dot of the file name. An extension that comes twice under
    one key begins a new sample (webdataset stops with an error there).
    """
    current: Sample | None = None
    for member in members:
        match = _KEY.match(member.name)
        if match is None or _META.match(member.name):
            continue
        key, ext = match.group(1), match.group(2).lower()
        if current is None or key != current.key or ext in current.members:
            if current is not None:
                yield current
            current = Sample(key, {})
        current.members[ext] = member
    if current is not None:
        yield current


def _walk_headers(path: Path) -> Iterator[Member]:
    size = path.stat().st_size
    with path.open("rb") as file:
        position = 0
        while position < size:
            file.seek(position)
            header = file.read(_BLOCK)
            if len(header) < _BLOCK:
                raise BadTarError(f"ends inside a header at byte {position}")
            if not any(header):  # the end-of-archive mark
                return
            member = _member(header, position)
            if member.offset + member.length > size:
                raise BadTarError(f"is cut off: it ends at byte {size}, inside {member.name!r}")
            yield member
            position = member.offset + -(-member.length // _BLOCK) * _BLOCK
        raise BadTarError(f"has no end mark: it may be cut off after byte {size}")


def _walk_tarfile(path: Path) -> Iterator[Member]:
    size = path.stat().st_size
    try:
        with tarfile.open(path, "r:") as archive:
            for info in archive:
                if not info.isreg() or info.issparse():
                    continue
                if info.offset_data + info.size > size:
                    raise BadTarError(f"is cut off: it ends at byte {size}, inside {info.name!r}")
                yield Member(info.name, info.offset_data, info.size)
    except tarfile.TarError as error:
        raise BadTarError(f"cannot be read: {error}") from error


def _member(header: bytes, position: int) -> Member:
    # the header's own checksum: the sum of its bytes, that field itself counted as spaces
    expected = _number(header[148:156], position)
    if sum(header) - sum(header[148:156]) + 8 * 32 != expected:
        raise BadTarError(f"has no valid header at byte {position} (wrong checksum)")
    if header[156:157] not in (b"0", b"\0"):
        raise _NotPlain
    return Member(_name(header), position + _BLOCK, _number(header[124:136], position))


def _name(header: bytes) -> str:
    name = header[:100].split(b"\0", 1)[0]
    prefix = header[345:500].split(b"\0", 1)[0] if header[257:263] == b"ustar\0" else b""
    return (prefix + b"/" + name if prefix else name).decode("utf-8", "surrogateescape")


def _number(field: bytes, position: int) -> int:
    """An octal number, or base 256 where the first bit is set (files above 8 GiB)."""
    if field[0] & 0x80:
        return int.from_bytes(bytes([field[0] & 0x7F]) + field[1:], "big")
    text = field.split(b"\0", 1)[0].strip(b" ")
    try:
        return int(text or b"0", 8)
    except ValueError:
        raise BadTarError(f"has no valid header at byte {position}: number {field!r}") from None
