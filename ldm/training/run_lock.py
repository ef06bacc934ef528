"""Who writes into a run folder, so that no two runs do?"""

from __future__ import annotations

import json
import logging
import os
import socket
from dataclasses import asdict, dataclass
from pathlib import Path

log = logging.getLogger(__name__)

NAME = "run.lock"


class RunLockedError(RuntimeError):
    """Another living process, or one of another machine, writes into the folder."""


@dataclass(frozen=True)
class Holder:
    """started: clock ticks from the machine's boot to the process's start, 0 where unknown; a pid
    is given anew after a while, and in a restarted container at once."""

    pid: int
    host: str
    started: int


def acquire(run_dir: Path) -> None:
    """Takes `run_dir` for this process. Raises RunLockedError that names the holder.

    A lock whose process is dead on this machine is taken over, and so is an unreadable one: its
    writer was killed or found the disk full. Called on the first process of a run only.
    """
    path = run_dir / NAME
    run_dir.mkdir(parents=True, exist_ok=True)
    me = _me()
    try:
        _create(path, me)
    except FileExistsError:
        holder = _read(path)
        if holder is not None and holder != me and _may_live(holder, me.host):
            raise RunLockedError(_refusal(path, holder, me.host)) from None
        if holder != me:
            log.warning("%s: its process is gone (%s); taking it over", path, holder)
        path.unlink(missing_ok=True)
        try:
            _create(path, me)
        except FileExistsError:  # somebody else took it over at the same moment
            raise RunLockedError(_refusal(path, _read(path), me.host)) from None


def release(run_dir: Path) -> None:
    """Gives it back; the lock of another process is left alone."""
    path = run_dir / NAME
    if _read(path) == _me():
        path.unlink(missing_ok=True)


def _refusal(path: Path, holder: Holder | None, host: str) -> str:
    if holder is None:
        return f"{path.parent} was taken by another run at the same moment; give another run_dir"
    where = f"process {holder.pid} on {holder.host}"
    cure = "wait for it or stop it, or give another run_dir"
    if holder.host != host:  # nobody here can tell
        cure += f"; if {holder.host} is gone, remove {path}"
    return f"{path.parent} is in use: {where} is writing to it; {cure}"


def _create(path: Path, holder: Holder) -> None:
    with path.open("x", encoding="utf-8") as file:
        file.write(json.dumps(asdict(holder)))


def _read(path: Path) -> Holder | None:
    """None when there is none or when it is unreadable."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        return Holder(int(found["pid"]), str(found["host"]), int(found["started"]))
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None


def _me() -> Holder:
    pid = os.getpid()
    return Holder(pid, socket.gethostname(), _started(pid) or 0)


def _may_live(holder: Holder, host: str) -> bool:
    if holder.host != host:
        return True
    try:
        os.kill(holder.pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # it lives, and is another user's
        return True
    started = _started(holder.pid)
    return not (started and holder.started) or started == holder.started


def _started(pid: int) -> int | None:
    """Field 22 of /proc/PID/stat (proc(5)); None where there is no such file."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    return int(text.rpartition(")")[2].split()[19])
