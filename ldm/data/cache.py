"""How does a remote shard become a local file?"""

from __future__ import annotations

import fcntl
import hashlib
import logging
import os
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO
from urllib.parse import urlsplit

import fsspec
from webdataset.gopen import gopen, gopen_schemes

from ldm.data import table as tables
from ldm.data.locate import is_remote
from ldm.data.table import Stamp

log = logging.getLogger(__name__)

_TRIES = 4
_FIRST_WAIT_S = 0.5
_TIMEOUT_S = 60.0
_CHUNK = 1 << 20
_STALE_S = 24 * 3600.0  # a temporary file this old belongs to a process that is gone


def default_cache_dir() -> Path:
    """XDG_CACHE_HOME/ldm, or ~/.cache/ldm."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ldm"


@dataclass(frozen=True, kw_only=True)
class ShardCache:
    """A folder of fetched shards, least recently used deleted first, and of index files.

    limit_bytes: of the shards; a shard that is needed is fetched whatever the limit. Ranks and
    workers of one machine may share the folder: a shard is fetched by one of them.
    """

    folder: Path
    limit_bytes: int = 50_000_000_000

    def index_of(self, shard: str, fields: Sequence[str] = ()) -> tuple[Path, Stamp]:
        """The index file of a shard with these json columns, and the version it describes.

        A remote shard is not fetched when its index is known from before, or lies beside it.
        """
        if not is_remote(shard):
            path = Path(shard)
            return tables.table_of(path, fields=fields, cache=self.folder), tables.stamp_of(path)
        name = self.folder / "index" / f"{_local_name(shard)}.index"
        stamp = tables.stored(name, fields) or self._index_beside(shard, name, fields)
        if stamp is None:
            log.info("no index beside %s: the shard is fetched to be counted", shard)
            copy = self.local(shard)
            stamp = (copy.stat().st_size, 0)
            tables.save(tables.scan(copy, fields=fields, stamp=stamp), name)
        return name, stamp

    def local(self, shard: str, stamp: Stamp | None = None) -> Path:
        """The shard as a local file; stamp: the version that was indexed."""
        if not is_remote(shard):
            path = Path(shard)
            if stamp is not None and tables.stamp_of(path) != stamp:
                raise OSError(f"{shard} changed after it was indexed; restart to index it again")
            return path
        copy = self.folder / "shards" / _local_name(shard)
        copy.parent.mkdir(parents=True, exist_ok=True)
        with _locked(copy.with_name(f".{copy.name}.lock")):
            if not copy.is_file():
                self._make_room(0 if stamp is None else stamp[0], keep=copy)
                _fetch(shard, copy)
                self._make_room(0, keep=copy)
            os.utime(copy)  # the time of last use, which decides who is deleted first
        size = copy.stat().st_size
        if stamp is not None and size != stamp[0]:
            copy.unlink(missing_ok=True)
            index = self.folder / "index" / f"{copy.name}.index"
            raise OSError(
                f"{shard} has {size} bytes, its index says {stamp[0]}: the shard changed; "
                f"delete {index} to count it again"
            )
        return copy

    def file_beside(self, shard: str, name: str) -> Path | None:
        """The file of this name in the folder of a shard, fetched anew if remote; None: none."""
        if not is_remote(shard):
            path = Path(shard).with_name(name)
            return path if path.is_file() else None
        if "://" not in shard:  # the output of a command has no folder
            return None
        parts = urlsplit(shard)
        url = parts._replace(path=f"{parts.path.rpartition('/')[0]}/{name}").geturl()
        copy = self.folder / "beside" / _local_name(url)
        copy.parent.mkdir(parents=True, exist_ok=True)
        try:
            _fetch(url, copy)
        except FileNotFoundError:
            return None
        return copy

    def _index_beside(self, shard: str, name: Path, fields: Sequence[str]) -> Stamp | None:
        """Take over the index file that lies beside a remote shard, if there is a usable one."""
        parts = urlsplit(shard)
        if parts.scheme not in ("http", "https"):
            return None
        url = parts._replace(path=f"{parts.path}.index").geturl()
        name.parent.mkdir(parents=True, exist_ok=True)
        try:
            _fetch(url, name)
        except FileNotFoundError:
            return None
        stamp = tables.stored(name, fields)
        if stamp is None:
            name.unlink(missing_ok=True)
        return stamp

    def _make_room(self, size: int, *, keep: Path) -> None:
        """Delete the shards not used for longest until `size` bytes more fit the limit."""
        with _locked(keep.parent / ".room.lock"):
            files = []
            for path in keep.parent.iterdir():
                status = _status(path)
                if status is None or path.suffix == ".lock":
                    continue
                if path.name.startswith(".") and time.time() - status.st_mtime > _STALE_S:
                    path.unlink(missing_ok=True)
                else:
                    files.append((status.st_mtime_ns, status.st_size, path))
            total = size + sum(length for _, length, _ in files)
            for _, length, path in sorted(files):
                if total <= self.limit_bytes:
                    return
                if path != keep and not path.name.startswith("."):
                    path.unlink(missing_ok=True)  # readers that have it open go on reading it
                    total -= length


def _local_name(shard: str) -> str:
    digest = hashlib.blake2b(shard.encode(), digest_size=12).hexdigest()
    base = urlsplit(shard).path.rsplit("/", 1)[-1] if "://" in shard else "pipe"
    return f"{digest}-{''.join(c for c in base if c.isalnum() or c in '-_.')[-40:]}"


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold a lock that other processes and threads wait for; it ends with the process."""
    with path.open("wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _status(path: Path) -> os.stat_result | None:
    try:
        return path.stat()
    except FileNotFoundError:  # another process was faster
        return None


def _fetch(source: str, target: Path) -> None:
    """Fetch a URL or the output of a command to a file that is whole or not there.

    FileNotFoundError when a server says there is no such thing, otherwise OSError after some tries.
    """
    wait_s = _FIRST_WAIT_S
    for attempt in range(1, _TRIES + 1):
        try:
            _fetch_once(source, target)
        except (FileNotFoundError, ImportError, ValueError) as error:  # another try cannot help
            raise FileNotFoundError(f"{source} could not be fetched: {error}") from error
        except Exception as error:  # a server's or a tool's fault: whatever its library raises
            if attempt == _TRIES:
                raise OSError(
                    f"{source} could not be fetched, {_TRIES} tries: {error}; "
                    "check the address, access rights and free space"
                ) from error
            log.warning("%s: %s; trying again in %.0f s", source, error, wait_s)
            time.sleep(wait_s)
            wait_s *= 4
        else:
            return


def _fetch_once(source: str, target: Path) -> None:
    handle, temporary = tempfile.mkstemp(dir=target.parent, prefix=".fetch-")
    try:
        with os.fdopen(handle, "wb") as file:
            if source.startswith(("http://", "https://")):
                _copy_http(source, file)
            elif source.split(":", 1)[0] in gopen_schemes:  # pipe, gs, hf, sftp, …
                with closing(gopen(source, "rb")) as stream:  # closing: raises if a command failed
                    _copy(stream, file)
            else:  # s3, abfs, …: fsspec names the package to install
                with fsspec.open(source, "rb") as stream:
                    _copy(stream, file)
            if not file.tell():
                raise OSError("nothing came")
        os.replace(temporary, target)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def _copy_http(url: str, file: BinaryIO) -> None:
    try:
        with urllib.request.urlopen(url, timeout=_TIMEOUT_S) as answer:
            _copy(answer, file)
            expected = answer.headers.get("Content-Length")
    except urllib.error.HTTPError as error:
        if error.code in (403, 404, 410):  # buckets answer 403 for what does not exist
            raise FileNotFoundError(f"the server answers {error.code}") from error
        raise
    if expected is not None and file.tell() != int(expected):
        raise OSError(f"{file.tell()} of {expected} bytes came")


def _copy(stream: BinaryIO, file: BinaryIO) -> None:
    while chunk := stream.read(_CHUNK):
        file.write(chunk)
