"""Do all processes of a run end together and with a clear word, whatever happens to one of them?"""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ldm import app
from ldm.io import checkpoint as files
from ldm.training import run_lock

TWO = ("training.trainer.devices=2", "training.micro_batch=1")  # accumulation 4


@pytest.mark.parametrize("ranks", [[0, 1], [0], [1]], ids=["both", "first", "second"])
def test_sigterm_saves_and_asks_to_be_started_again(
    broken_run: Callable[..., Any],
    tiny_cfg: Callable[..., dict[str, Any]],
    tmp_path: Path,
    document: Callable[[Path], dict[str, Any]],
    ranks: list[int],
) -> None:
    """In the second of four micro-batches; then the run goes on, in one process."""
    run_dir = tmp_path / "run"
    long = (f"run_dir={run_dir}", "training.max_samples=1e6", "training.save_every=null")
    ended = broken_run(*TWO, *long, kind="sigterm", ranks=ranks, micro=9)
    assert ended.codes == {0: "75", 1: "75"}, ended.stderr[-3000:]
    assert ended.returncode == 75
    assert ended.seconds < 30
    assert document(run_dir)["samples_seen"] == 24  # the third step is finished first
    assert [p.name for p in files.list_checkpoints(run_dir / "checkpoints")] == ["s000000024.ckpt"]
    assert not (run_dir / "run.lock").exists()
    more = ("resume=auto", "training.micro_batch=1", "training.max_samples=32")
    assert app.train(tiny_cfg(run_dir, *more)) == 0
    assert document(run_dir)["samples_seen"] == 32


@pytest.mark.parametrize("number", ["SIGTERM", "SIGUSR1"])
def test_a_signal_to_the_whole_process_group(
    broken_run: Callable[..., Any],
    tiny_cfg: Callable[..., dict[str, Any]],
    tmp_path: Path,
    document: Callable[[Path], dict[str, Any]],
    number: str,
) -> None:
    """Both ranks and their data workers get it at once: the workers leave it to the ranks."""
    run_dir = tmp_path / "run"
    long = (f"run_dir={run_dir}", "training.max_samples=1e6", "training.save_every=null")
    two = (*TWO, "data.num_workers=1")
    ended = broken_run(*two, *long, kind="sigterm_to_all", number=number, micro=9)
    assert ended.codes == {0: "75", 1: "75"}, ended.stderr[-3000:]
    assert ended.returncode == 75
    assert ended.seconds < 30
    assert "DataLoader worker" not in ended.stderr
    assert document(run_dir)["samples_seen"] == 24
    assert not (run_dir / "run.lock").exists()
    more = ("resume=auto", "training.micro_batch=1", "training.max_samples=32")
    assert app.train(tiny_cfg(run_dir, *more)) == 0
    assert document(run_dir)["samples_seen"] == 32


@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_that_cannot_draw_ends_all(
    broken_run: Callable[..., Any], tmp_path: Path, rank: int
) -> None:
    """The other waits for its pictures; the time-out of a collective is 30 minutes."""
    changes = (*TWO, f"run_dir={tmp_path / 'run'}", "training.sample_every=8")
    ended = broken_run(*changes, kind="raise_in_sampling", on=rank)
    assert ended.returncode != 0
    assert f"no picture on rank {rank}" in ended.stderr
    assert ended.seconds < 60


def test_a_step_that_is_not_finite_on_one_rank_is_dropped_on_both(
    broken_run: Callable[..., Any],
    tmp_path: Path,
    metrics: Callable[[Path], list[dict[str, float]]],
    differences: Callable[..., list[str]],
) -> None:
    """Sample 9 lies on the second rank, in the second step."""
    run_dir = tmp_path / "run"
    changes = ("training.nonfinite=skip", "training.save_every=8", "training.keep_checkpoints=9")
    ended = broken_run(*TWO, *changes, f"run_dir={run_dir}", kind="nonfinite", index=9)
    assert ended.returncode == 0, ended.stderr[-3000:]
    first, second, third = (
        files.read(files.checkpoint_path(run_dir / "checkpoints", n)) for n in (8, 16, 24)
    )
    for key in ("state_dict", "ema"):
        assert differences(first[key], second[key]) == []
        assert differences(second[key], third[key])
    assert [row["skipped_steps"] for row in metrics(run_dir)] == [0, 1, 1, 1]
    reports = [
        json.loads((run_dir / "reports" / f"nonfinite-s000000016-rank{rank}.json").read_text())
        for rank in (0, 1)
    ]
    assert [[row["i"] for row in r["samples"]] for r in reports] == [
        [8, 10, 12, 14],
        [9, 11, 13, 15],
    ]
    assert isinstance(reports[0]["loss"], float)
    assert reports[1]["loss"] == "inf"
    assert reports[0]["gradient_norm"] == reports[1]["gradient_norm"]


def test_a_folder_in_use_ends_both(broken_run: Callable[..., Any], tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    started = run_lock._started(os.getpid()) or 0
    me = run_lock.Holder(os.getpid(), socket.gethostname(), started)
    run_lock._create(run_dir / run_lock.NAME, me)
    ended = broken_run(*TWO, f"run_dir={run_dir}", kind="none")
    assert ended.returncode != 0
    assert f"is in use: process {me.pid} on {me.host} is writing to it" in ended.stderr
    assert (run_dir / "run.lock").is_file()
