"""What do the tests of the fault campaign share? Runs that break at a given place."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent
Fault = dict[str, Any]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.faults)


@pytest.fixture(scope="session")
def forked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., int]]:
    """forked(cfg, kind=…, …): the exit status of a run with that fault, -9 when it was killed."""
    log = tmp_path_factory.mktemp("forks") / "log"
    server = subprocess.Popen(
        [sys.executable, str(HERE / "forks.py")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert server.stdin is not None
    assert server.stdout is not None

    def run(cfg: dict[str, Any], *, kind: str = "none", **fault: Any) -> int:
        order = {"cfg": cfg, "fault": {"kind": kind, **fault}, "log": str(log)}
        order |= {"world": 1, "notes": None}
        log.write_text("")
        server.stdin.write(json.dumps(order) + "\n")
        server.stdin.flush()
        (status,) = json.loads(server.stdout.readline())
        if status == 1:
            print(log.read_text()[-4000:])  # pytest shows it when the test fails
        return status

    run.log = log  # type: ignore[attr-defined]
    yield run
    server.stdin.close()
    server.wait(timeout=60)


@dataclass(frozen=True)
class Ended:
    """A run of several processes. seconds: from the fault to the end of the last of them."""

    returncode: int
    stderr: str
    seconds: float
    codes: dict[int, str]


@pytest.fixture
def broken_run(tiny_line: Callable[..., list[str]], tmp_path: Path) -> Callable[..., Ended]:
    """broken_run("key=value", …, kind=…, …): tests/faults/train.py to the end of all processes."""

    def run(*changes: str, kind: str, **fault: Any) -> Ended:
        folder = tmp_path / "notes"
        folder.mkdir()
        fault = {"kind": kind, **fault}
        if kind in ("sigterm", "sigterm_to_all", "raise_in_sampling"):
            fault["folder"] = str(folder)
        with (tmp_path / "stderr").open("w+") as stderr:
            process = subprocess.Popen(
                [sys.executable, str(HERE / "train.py"), *tiny_line(*changes)],
                env={**os.environ, "LDM_FAULT": json.dumps(fault), "LDM_NOTES": str(folder)},
                cwd=tmp_path,
                stdout=subprocess.DEVNULL,
                stderr=stderr,
                start_new_session=True,
            )
            try:
                returncode = process.wait(timeout=400)
                _wait_for_session(process.pid, timeout_s=70)
                ended = time.time()
            finally:
                for pid in _session(process.pid):
                    os.kill(pid, signal.SIGKILL)
            stderr.seek(0)
            text = stderr.read()
        times = [json.loads(path.read_text()) for path in folder.glob("fault-*")]
        codes = {int(p.name.split("-")[1]): p.read_text() for p in folder.glob("exit-*")}
        return Ended(returncode, text, ended - max(times, default=ended), codes)

    return run


def _wait_for_session(leader: int, *, timeout_s: float) -> None:
    deadline = time.monotonic() + timeout_s
    while _session(leader):
        assert time.monotonic() < deadline, f"still there: {_session(leader)}"
        time.sleep(0.2)


def _session(leader: int) -> list[int]:
    """The living processes of a session; proc(5), field 6."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[3]) == leader and fields[0] != "Z":
            found.append(int(path.parent.name))
    return found
