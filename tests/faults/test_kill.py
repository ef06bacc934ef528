"""Does every killed run resume and end with the weights of the uninterrupted one, bit for bit?"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import ldm
from ldm.io import checkpoint as files
from ldm.training import run_lock

TRIALS = int(os.environ.get("LDM_FAULTS_TRIALS", "50"))
KINDS = ("operation", "bytes", "time")
CHANGES = (
    "diffusion/times=stratified",
    "models.unet.dropout=0.1",
    "data.crop=random",
    "training.micro_batch=4",
    "training.max_samples=40",
    "training.save_every=8",
    "training.optim.shape=cosine",
    "resume=auto",
)
EXACT = ("state_dict", "ema", "optimizer_states", "lr_schedulers", "samples_seen", "global_step")


@dataclass(frozen=True)
class Straight:
    """The uninterrupted run: its last document, how long it took, its writes to the folder."""

    document: dict[str, Any]
    seconds: float
    operations: int


@pytest.fixture(scope="module")
def straight(
    forked: Callable[..., int],
    tiny_cfg: Callable[..., dict[str, Any]],
    tmp_path_factory: pytest.TempPathFactory,
    document: Callable[[Path], dict[str, Any]],
) -> Straight:
    folder = tmp_path_factory.mktemp("straight")
    run_dir, out = folder / "run", folder / "count"
    begin = time.monotonic()
    cfg = tiny_cfg(run_dir, *CHANGES)
    assert forked(cfg, kind="count", run_dir=str(run_dir), out=str(out)) == 0
    found = Straight(document(run_dir), time.monotonic() - begin, int(out.read_text()))
    assert found.operations > 50  # or the hook has seen nothing
    return found


def fault_of(trial: int, straight: Straight, run_dir: Path) -> dict[str, Any]:
    """The kinds take turns; where, is drawn from the number of the trial."""
    draws = random.Random(trial)
    kind = KINDS[trial % len(KINDS)]
    if kind == "operation":
        at = draws.randint(1, straight.operations)
        return {"kind": kind, "run_dir": str(run_dir), "at": at}
    if kind == "bytes":
        return {"kind": kind, "save": draws.randint(1, 5), "fraction": draws.random()}
    return {"kind": kind, "seconds": draws.uniform(0, straight.seconds)}


@pytest.mark.parametrize("trial", range(TRIALS))
def test_a_killed_run_resumes(
    forked: Callable[..., int],
    straight: Straight,
    tiny_cfg: Callable[..., dict[str, Any]],
    tmp_path: Path,
    document: Callable[[Path], dict[str, Any]],
    metrics: Callable[[Path], list[dict[str, float]]],
    differences: Callable[..., list[str]],
    trial: int,
) -> None:
    run_dir = tmp_path / "run"
    cfg = tiny_cfg(run_dir, *CHANGES)
    fault = fault_of(trial, straight, run_dir)
    status = forked(cfg, **fault)
    assert status == -9 or (fault["kind"] == "time" and status == 0), fault  # or it was faster
    folder = run_dir / "checkpoints"
    assert [p.name for p in files.list_checkpoints(folder) if not files.is_valid(p)] == [], fault

    assert forked(cfg) == 0, fault
    final = document(run_dir)
    for key in EXACT:
        assert differences(final[key], straight.document[key]) == [], (fault, key)
    assert not list(folder.glob(".tmp-*"))
    assert os.readlink(folder / "last.ckpt") == files.list_checkpoints(folder)[-1].name
    run_lock.acquire(run_dir)  # a lock that the killed one left stands in nobody's way
    assert metrics(run_dir)[-1]["samples_seen"] == 40
    ldm.load(run_dir)  # the frozen encoders are whole too
