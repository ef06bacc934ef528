"""What becomes of samples that could not be used?"""

from __future__ import annotations

import errno
import fcntl
import json
import logging
import os
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path

from ldm.types import Skipped

log = logging.getLogger(__name__)

_FREE = 16  # so many bad samples never stop a run: a ratio of few samples says nothing


class TooManyBadSamplesError(RuntimeError):
    """So much of the data is unusable that the run would not be the one that was asked for."""


class Quarantine:
    """Counts, logs and writes down (shard, key, reason); nothing is ever deleted.

    path: a `quarantine.jsonl`, one line per sample however often it is met, also over restarts;
    None writes nothing. A disk that takes no line is no reason to stop: a warning says so once, and
    the lines are written as soon as there is room. max_ratio: of the samples seen.
    """

    def __init__(self, path: Path | None = None, *, max_ratio: float = 0.01) -> None:
        if not 0.0 <= max_ratio <= 1.0:
            raise ValueError(f"max_bad_ratio={max_ratio} is not a ratio; use 0 … 1")
        self.path = path
        self.max_ratio = max_ratio
        self.count = 0  # meetings since this process started
        self.reasons: Counter[str] = Counter()
        self._known = _read(path)
        self._waiting: list[Skipped] = []
        self._failing = False

    def add(self, skipped: Iterable[Skipped]) -> int:
        """Take up the skipped samples of a batch; gives how many there were."""
        met = list(skipped)
        self.reasons.update(bad.reason.split(":")[0] for bad in met)
        self.count += len(met)
        self.list(met)
        return len(met)

    def list(self, skipped: Iterable[Skipped]) -> None:
        """Write down samples without counting them: those that the index leaves out already."""
        for bad in skipped:
            if (bad.shard, bad.key) not in self._known:
                self._known.add((bad.shard, bad.key))
                self._waiting.append(bad)
                log.warning("sample left out: %s %s: %s", bad.shard, bad.key, bad.reason)
        if self._waiting and self.path is not None:
            self._write(self.path)

    def check(self, samples: int) -> None:
        """Stop the run when more than max_ratio of the `samples` read by this process were bad."""
        if self.count <= max(_FREE, self.max_ratio * samples):
            return
        most = ", ".join(f"{count} × {reason}" for reason, count in self.reasons.most_common(3))
        where = f" (listed in {self.path})" if self.path is not None else ""
        raise TooManyBadSamplesError(
            f"{self.count} of {samples} samples could not be used, above "
            f"data.max_bad_ratio={self.max_ratio}: {most}{where}. Repair the shards, "
            "or raise data.max_bad_ratio"
        )

    def _write(self, path: Path) -> None:
        """The lines that wait, now or at the next batch."""
        try:
            _append(path, self._waiting)
        except OSError as error:
            if not self._failing:
                log.warning("%s: %s; lines are kept in memory until there is room", path, error)
            self._failing = True
            return
        if self._failing:
            log.info("%s is complete again: %d lines had waited", path, len(self._waiting))
        self._failing, self._waiting = False, []


def _append(path: Path, fresh: Iterable[Skipped]) -> None:
    """Add those samples that no other rank has written meanwhile; all of them, or OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+b", buffering=0) as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # until it is closed
        file.seek(0)
        written = file.readall()
        known = _listed(written)
        lines = [json.dumps(asdict(b)) for b in fresh if (b.shard, b.key) not in known]
        if written and not written.endswith(b"\n"):  # cut short by a crash: do not write on in it
            lines = ["", *lines]
        data = "".join(f"{line}\n" for line in lines).encode()
        try:
            if file.write(data) != len(data):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError:
            file.truncate(len(written))
            raise


def _read(path: Path | None) -> set[tuple[str, str]]:
    """The samples that a file lists already."""
    return _listed(path.read_bytes()) if path is not None and path.is_file() else set()


def _listed(data: bytes) -> set[tuple[str, str]]:
    """The samples in the lines of a file; one cut short by a crash is passed over."""
    known = set()
    for line in data.decode("utf-8", "replace").splitlines():
        try:
            entry = json.loads(line)
            known.add((str(entry["shard"]), str(entry["key"])))
        except (ValueError, KeyError, TypeError):
            continue
    return known
