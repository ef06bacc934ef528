"""How do samples become webdataset shards that are complete or not there at all?

Every shard is written under a temporary name and renamed when finished; index.json is replaced
after each one, so that a run that was interrupted goes on where the last finished shard ends.
The same source gives the same bytes: no clock, no user name, fixed order.
"""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from webdataset.writer import TarWriter

from ldm.data.make.encode import Encoding, UnusablePicture
from ldm.data.make.sample import LeftOut, Plain, Sample, Source
from ldm.images import safe_name

log = logging.getLogger(__name__)

INDEX = "index.json"
LEFT_OUT = "left_out.jsonl"
VERSION = 1
_TEMPORARY = ".tmp"
_KEY_NAME_BYTES = 48  # a ustar member name has at most 100 bytes
_SHOWN = 5


@dataclass
class Index:
    """What a folder of shards holds: index.json.

    cursor: items of the source used so far; shards: name -> samples.
    """

    version: int
    source: dict[str, Plain]
    writer: dict[str, Plain]
    complete: bool = False
    cursor: int = 0
    samples: int = 0
    left_out: int = 0
    shards: list[dict[str, str | int]] = field(default_factory=list)


class ShardWriter:
    """Writes a source into a folder as <prefix>-00000.tar, … with index.json."""

    def __init__(
        self,
        *,
        out: str | Path | None,
        prefix: str = "shard",
        samples_per_shard: int = 1000,
        shard_mb: float = 500.0,
        encoding: Encoding | None = None,
        overwrite: bool = False,
        progress: bool = True,
    ) -> None:
        problems = ["out is not given; write out=FOLDER"] if out is None else []
        if not re.fullmatch(r"[\w-]+", prefix, re.ASCII):
            problems.append(f"prefix={prefix!r}: use letters, digits, - and _")
        if samples_per_shard < 1:
            problems.append(f"samples_per_shard={samples_per_shard}: use 1 or more")
        if not shard_mb > 0:
            problems.append(f"shard_mb={shard_mb}: use more than 0")
        if problems or out is None:
            raise ValueError("shard writer: " + "; ".join(problems))
        self.out = Path(out)
        self.prefix = prefix
        self.samples_per_shard, self.shard_mb = samples_per_shard, shard_mb
        self.encoding = Encoding() if encoding is None else encoding
        self.overwrite, self.progress = overwrite, progress

    def write(self, source: Source) -> Index:
        """Writes all samples, or the rest of them, and returns what the folder holds."""
        index = self._begin(source)
        if index.complete:
            log.info("%s is complete already: %s", self.out, _summary(index))
            return index
        if index.cursor:
            log.info("%s: going on after %d of %d items", self.out, index.cursor, len(source))
        with self._bar() as bar:
            task = bar.add_task(f"{self.out.name}", total=len(source), completed=index.cursor)
            shard = _Shard.begin(self.out, self._name(len(index.shards)))
            try:
                for item in self._encoded(source, index.cursor):
                    if isinstance(item, _Members) and shard.full(item, self._limits):
                        self._finish(index, shard)
                        shard = _Shard.begin(self.out, self._name(len(index.shards)))
                    shard.add(item)
                    bar.advance(task)
                self._finish(index, shard)
            finally:
                shard.abandon()
        if index.samples == 0:
            raise ValueError(
                f"{self.out}: nothing to write, all {index.left_out} items were left out, "
                f"see {self.out / LEFT_OUT}"
            )
        index.complete = True
        self._save(index)
        log.info("wrote %s: %s", self.out, _summary(index))
        self._say_left_out(index)
        return index

    @property
    def _limits(self) -> tuple[int, int]:
        return self.samples_per_shard, int(self.shard_mb * 1e6)

    def _name(self, number: int) -> str:
        return f"{self.prefix}-{number:05d}.tar"

    def _bar(self) -> Progress:
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
        return Progress(*columns, TimeRemainingColumn(), disable=not self.progress)

    def _encoded(self, source: Source, start: int) -> Iterator[_Members | LeftOut]:
        for number, item in enumerate(source.items(start), start):
            if isinstance(item, LeftOut):
                yield item
                continue
            try:
                extension, data, (width, height) = self.encoding(item.image)
            except UnusablePicture as error:
                yield LeftOut(item.name, str(error))
                continue
            yield _members(number, item, extension, data, (width, height))

    def _begin(self, source: Source) -> Index:
        """The index to go on with: a new one, or that of an interrupted run with the same plan."""
        fresh = Index(VERSION, dict(source.spec()), self._spec())
        self.out.mkdir(parents=True, exist_ok=True)
        present = sorted(path.name for path in self.out.iterdir())
        if self.overwrite:
            self._clear()
            return fresh
        if INDEX not in present:
            others = [name for name in present if not self._ours(name)]
            if others or any(name.endswith(".tar") for name in present):
                raise FileExistsError(
                    f"{self.out} is not empty ({', '.join(present[:_SHOWN])}); choose another "
                    "folder, or overwrite=true to replace the shards in it"
                )
            self._clear()  # only temporary files of an interrupted first shard
            return fresh
        found = _load(self.out / INDEX)
        different = [
            f"{name}: {before.get(name)!r} there, {now.get(name)!r} asked for"
            for before, now in ((found.source, fresh.source), (found.writer, fresh.writer))
            for name in sorted(before.keys() | now.keys())
            if before.get(name) != now.get(name)
        ]
        if different:
            raise FileExistsError(
                f"{self.out} holds other shards ({'; '.join(different)}); choose another folder, "
                "or overwrite=true to replace them"
            )
        missing = [s["name"] for s in found.shards if not (self.out / str(s["name"])).is_file()]
        if missing:
            raise FileNotFoundError(
                f"{self.out}: {', '.join(map(str, missing))} listed in {INDEX} but gone; "
                "overwrite=true makes all again"
            )
        self._forget_left_out(found)
        return found

    def _spec(self) -> dict[str, Plain]:
        return {
            "prefix": self.prefix,
            "samples_per_shard": self.samples_per_shard,
            "shard_mb": self.shard_mb,
            **asdict(self.encoding),
        }

    def _ours(self, name: str) -> bool:
        pattern = rf"{self.prefix}-\d{{5,6}}\.tar(\.index)?({re.escape(_TEMPORARY)})?"
        return name in (INDEX, LEFT_OUT, INDEX + _TEMPORARY) or bool(re.fullmatch(pattern, name))

    def _clear(self) -> None:
        for path in list(self.out.iterdir()):
            if self._ours(path.name):
                path.unlink()

    def _finish(self, index: Index, shard: _Shard) -> None:
        """The shard gets its name first, then the index says so."""
        index.cursor += shard.items
        index.left_out += len(shard.left_out)
        if shard.samples:
            shard.close()
            index.samples += shard.samples
            index.shards.append(
                {"name": shard.name, "samples": shard.samples, "bytes": shard.path.stat().st_size}
            )
        if shard.left_out:
            with (self.out / LEFT_OUT).open("a", encoding="utf-8") as file:
                for item in shard.left_out:
                    file.write(json.dumps(asdict(item), ensure_ascii=False) + "\n")
        self._save(index)

    def _save(self, index: Index) -> None:
        text = json.dumps(asdict(index), indent=1, ensure_ascii=False) + "\n"
        temporary = self.out / (INDEX + _TEMPORARY)
        temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, self.out / INDEX)

    def _forget_left_out(self, index: Index) -> None:
        """Drops what an interrupted run listed after its last finished shard."""
        path = self.out / LEFT_OUT
        if path.is_file():
            lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
            path.write_text("".join(lines[: index.left_out]), encoding="utf-8")

    def _say_left_out(self, index: Index) -> None:
        if not index.left_out:
            return
        lines = (self.out / LEFT_OUT).read_text(encoding="utf-8").splitlines()
        items = [json.loads(line) for line in lines[:_SHOWN]]
        shown = "; ".join(f"{item['name']}: {item['reason']}" for item in items)
        more = "; …" if len(lines) > _SHOWN else ""
        log.warning("left out %d items (%s%s), all in %s", index.left_out, shown, more, LEFT_OUT)


@dataclass(frozen=True)
class _Members:
    """One sample as the tar holds it."""

    key: str
    files: dict[str, bytes]

    @property
    def size(self) -> int:
        """Bytes in the tar: a header and whole blocks for each file."""
        return sum(512 + -(-len(data) // 512) * 512 for data in self.files.values())


class _Shard:
    """A shard being written under a temporary name."""

    def __init__(self, path: Path, stream: IO[bytes]) -> None:
        self.path, self.name = path, path.name
        self.stream = stream
        self.tar = TarWriter(stream, encoder=False, mtime=0, user="", group="", compress=False)
        self.samples = self.items = self.bytes = 0
        self.left_out: list[LeftOut] = []

    @classmethod
    def begin(cls, folder: Path, name: str) -> _Shard:
        path = folder / name
        return cls(path, path.with_name(name + _TEMPORARY).open("wb"))

    def full(self, item: _Members, limits: tuple[int, int]) -> bool:
        """Would the item go over a limit? A shard takes one sample, however large."""
        samples, size = limits
        return self.samples >= samples or (self.samples > 0 and self.bytes + item.size > size)

    def add(self, item: _Members | LeftOut) -> None:
        self.items += 1
        if isinstance(item, LeftOut):
            self.left_out.append(item)
            return
        self.tar.write({"__key__": item.key, **item.files})
        self.samples += 1
        self.bytes += item.size

    def close(self) -> None:
        self.tar.close()
        self.stream.flush()
        os.fsync(self.stream.fileno())
        self.stream.close()
        os.replace(self.stream.name, self.path)

    def abandon(self) -> None:
        """Removes the temporary file, if the shard was not finished."""
        if self.stream.closed:
            return
        try:
            self.tar.close()  # it would write to the closed file when it is collected
        finally:
            self.stream.close()
            Path(self.stream.name).unlink(missing_ok=True)


def _members(
    number: int, sample: Sample, extension: str, data: bytes, size: tuple[int, int]
) -> _Members:
    stem = re.sub(r"\.\w{1,5}$", "", sample.name)
    name = re.sub(r"[^A-Za-z0-9_-]+", "-", safe_name(stem)).strip("-_")
    key = f"{number:08d}-{name[:_KEY_NAME_BYTES]}".rstrip("-_")
    meta = {"caption": sample.caption, **sample.meta, "width": size[0], "height": size[1]}
    files = {
        extension: data,
        "txt": sample.caption.encode("utf-8"),
        "json": json.dumps(meta, ensure_ascii=False).encode("utf-8"),
    }
    return _Members(key, files)


def _load(path: Path) -> Index:
    try:
        return Index(**json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise ValueError(
            f"{path} is not an index of shards ({error}); overwrite=true makes all again"
        ) from error


def _summary(index: Index) -> str:
    megabytes = sum(int(shard["bytes"]) for shard in index.shards) / 1e6
    return f"{index.samples} samples in {len(index.shards)} shards, {megabytes:.1f} MB"
