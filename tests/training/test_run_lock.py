"""Can two runs write into one folder, and does a lock that nobody holds stand in the way?"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ldm import app
from ldm.cli import ConfigError
from ldm.io import checkpoint as files
from ldm.training import run_lock


def lock_of(run_dir: Path, holder: run_lock.Holder) -> Path:
    run_dir.mkdir(parents=True, exist_ok=True)
    run_lock._create(run_dir / run_lock.NAME, holder)
    return run_dir / run_lock.NAME


@pytest.fixture
def other() -> run_lock.Holder:
    """A living process that is not this one: the one that started it."""
    pid = os.getppid()
    return run_lock.Holder(pid, socket.gethostname(), run_lock._started(pid) or 0)


def test_a_folder_in_use_is_refused_with_the_holder(
    tiny_cfg: Callable[..., Any], tmp_path: Path, other: run_lock.Holder
) -> None:
    path = lock_of(tmp_path, other)
    before = path.read_bytes()
    with pytest.raises(ConfigError, match=rf"process {other.pid} on {other.host}"):
        app.train(tiny_cfg(tmp_path))
    assert path.read_bytes() == before
    assert not files.list_checkpoints(tmp_path / "checkpoints")


def test_a_run_holds_its_folder_and_gives_it_back(
    tiny_cfg: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At its end, and when it dies of an error; it can take its own again."""
    held: list[bool] = []
    original = files.write

    def write(document: dict[str, Any], path: Path) -> None:
        held.append((tmp_path / run_lock.NAME).is_file())
        if len(held) == 3:
            raise TypeError("broken")
        original(document, path)

    monkeypatch.setattr(files, "write", write)
    assert app.train(tiny_cfg(tmp_path)) == 0
    assert not (tmp_path / run_lock.NAME).exists()
    with pytest.raises(TypeError, match="broken"):
        app.train(tiny_cfg(tmp_path, "resume=auto", "training.max_samples=40"))
    assert not (tmp_path / run_lock.NAME).exists()
    assert held == [True] * 3


def test_a_dead_process_holds_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    lock_of(tmp_path, run_lock.Holder(process.pid, socket.gethostname(), 1))
    run_lock.acquire(tmp_path)
    assert json.loads((tmp_path / run_lock.NAME).read_text())["pid"] == os.getpid()
    assert "its process is gone" in caplog.text


def test_a_pid_that_was_given_anew_holds_nothing(tmp_path: Path, other: run_lock.Holder) -> None:
    if not other.started:
        pytest.skip("no /proc: the start of a process is unknown here")
    lock_of(tmp_path, replace(other, started=other.started - 1))
    run_lock.acquire(tmp_path)


@pytest.mark.parametrize("text", ["", "{", "[1]", '{"pid": "x"}'])
def test_an_unreadable_lock_holds_nothing(tmp_path: Path, text: str) -> None:
    (tmp_path / run_lock.NAME).write_text(text)
    run_lock.acquire(tmp_path)
    run_lock.release(tmp_path)
    assert not (tmp_path / run_lock.NAME).exists()


def test_another_machine_cannot_be_asked(tmp_path: Path) -> None:
    """So its lock stands, and the message says which file to remove."""
    path = lock_of(tmp_path, run_lock.Holder(1, "elsewhere", 1))
    with pytest.raises(run_lock.RunLockedError, match=rf"elsewhere is gone, remove {path}"):
        run_lock.acquire(tmp_path)
    run_lock.release(tmp_path)
    assert path.exists()
