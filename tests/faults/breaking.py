"""How is a training run broken on purpose, at a given place?

`arm(kind=…, …)` prepares this process; the fault happens later, while it trains.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from ldm.io import checkpoint as files
from ldm.training.base import TrainedModule
from ldm.training.callbacks.sampling import SampleGrid
from ldm.training.module import DiffusionModule

_WRITES = {"os.rename", "os.remove", "os.symlink", "os.link", "os.mkdir", "os.rmdir"}


def rank() -> int:
    return int(os.environ.get("LOCAL_RANK", 0))


def arm(*, kind: str, **values: Any) -> None:
    """Every fault below by its name."""
    {
        "none": lambda: None,
        "time": kill_after,
        "operation": kill_at_operation,
        "count": count_operations,
        "bytes": kill_at_byte,
        "full_disk": full_disk,
        "sigterm": sigterm,
        "sigterm_to_all": sigterm_to_all,
        "raise_in_sampling": raise_in_sampling,
        "nonfinite": nonfinite,
    }[kind](**values)


# -- kill -9 --------------------------------------------------------------------------------------


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def kill_after(seconds: float) -> None:
    """At a moment of the clock."""
    timer = threading.Timer(seconds, die)
    timer.daemon = True
    timer.start()


def kill_at_operation(run_dir: str, at: int) -> None:
    """Before the at-th time that Python opens for writing, renames, links or removes in run_dir."""
    on_operation(run_dir, lambda number: die() if number == at else None)


def count_operations(run_dir: str, out: str) -> None:
    """How many such operations a run has, into the file `out`."""
    on_operation(run_dir, lambda number: Path(out).write_text(str(number)))


def on_operation(run_dir: str, do: Callable[[int], object]) -> None:
    count = 0

    def audit(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal count
        if event == "open":
            path, _, flags = arguments
            writes = bool(flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))
        elif event in _WRITES:
            path, writes = arguments[1 if event == "os.symlink" else 0], True
        else:
            return
        if writes and isinstance(path, (str, Path)) and str(path).startswith(f"{run_dir}/"):
            count += 1
            do(count)

    sys.addaudithook(audit)


def kill_at_byte(save: int, fraction: float) -> None:
    """In the middle of writing the document of the save-th checkpoint."""
    original, count = torch.save, 0

    class Dying:
        def __init__(self, file: Any, end: int) -> None:
            self.file, self.left = file, end

        def write(self, data: bytes) -> int:
            if len(data) >= self.left:
                self.file.write(bytes(data)[: self.left])
                self.file.flush()
                die()
            self.left -= len(data)
            return int(self.file.write(data))

        def flush(self) -> None:
            self.file.flush()

    def broken(document: Any, file: Any) -> None:
        nonlocal count
        count += 1
        if count == save:
            size = 4 * 4 * sum(v.numel() for v in document["state_dict"].values())
            file = Dying(file, max(int(fraction * size), 1))
        original(document, file)

    torch.save = broken


# -- the disk -------------------------------------------------------------------------------------


def full_disk(samples: list[int]) -> None:
    """The kernel lets no file grow beyond 64 KiB while these checkpoints are written."""
    original = files.write

    def write(document: dict[str, Any], path: Path) -> None:
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        if files.samples_of(path) in samples:
            resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, limits[1]))
        try:
            original(document, path)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)

    files.write = write


# -- ranks ----------------------------------------------------------------------------------------


def happened(folder: str) -> None:
    """Leaves a note of when."""
    Path(folder, f"fault-{rank()}").write_text(json.dumps(time.time()))


def at_micro_batch(micro: int, do: Callable[[], object]) -> None:
    """At the beginning of this process's micro-batch number `micro`."""
    original, count = TrainedModule.training_step, 0

    def training_step(self: TrainedModule, batch: Any, batch_idx: int) -> Any:
        nonlocal count
        if count == micro:
            do()
        count += 1
        return original(self, batch, batch_idx)

    TrainedModule.training_step = training_step  # type: ignore[method-assign]


def sigterm(ranks: list[int], micro: int, folder: str) -> None:
    """These ranks get SIGTERM, each by itself."""

    def send() -> None:
        if rank() in ranks:
            happened(folder)
            os.kill(os.getpid(), signal.SIGTERM)

    at_micro_batch(micro, send)


def sigterm_to_all(number: str, micro: int, folder: str) -> None:
    """The whole process group gets a signal, data workers and helpers too, as from SLURM, a
    container's end or `kill -- -PGID`."""

    def send() -> None:
        if rank() == 0:
            happened(folder)
            os.killpg(0, signal.Signals[number])

    at_micro_batch(micro, send)


def raise_in_sampling(on: int, folder: str) -> None:
    """One rank cannot draw; the others wait for its pictures."""
    original = SampleGrid._draw

    def draw(self: SampleGrid, *arguments: Any) -> Any:
        if on == rank():
            happened(folder)
            raise RuntimeError(f"no picture on rank {on}")
        return original(self, *arguments)

    SampleGrid._draw = draw  # type: ignore[method-assign]


def nonfinite(index: int) -> None:
    """The loss of one sample is inf, on whichever rank it lies."""
    original = DiffusionModule.losses

    def losses(self: DiffusionModule, *arguments: Any) -> torch.Tensor:
        bad = arguments[-1] == index
        return torch.where(bad, float("inf"), 1.0) * original(self, *arguments)

    DiffusionModule.losses = losses  # type: ignore[method-assign]


# -- what is trained on ---------------------------------------------------------------------------


def note_samples(folder: str) -> None:
    """Every micro-batch of this rank as a line of samples-RANK: [[i, key], …]."""
    original = TrainedModule.training_step

    def training_step(self: TrainedModule, batch: Any, batch_idx: int) -> Any:
        with Path(folder, f"samples-{rank()}").open("a") as file:
            rows = list(zip(batch.index.tolist(), batch.keys, strict=True))
            file.write(json.dumps(rows) + "\n")
        return original(self, batch, batch_idx)

    TrainedModule.training_step = training_step  # type: ignore[method-assign]
