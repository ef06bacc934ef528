"""When is the run written to disk, and when does it stop for a signal?"""

from __future__ import annotations

import logging
import signal
from collections.abc import Callable
from pathlib import Path
from types import FrameType

import lightning as L
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.plugins import TorchCheckpointIO

from ldm.io import checkpoint as files
from ldm.training import run_lock
from ldm.training.base import TrainedModule
from ldm.training.plan import crossed

log = logging.getLogger(__name__)
_SIGNALS = (signal.SIGTERM, signal.SIGUSR1)


class NotSavedError(RuntimeError):
    """The last checkpoint of this process could not be written; older ones are as they were."""


class RunCheckpoint(Checkpoint):
    """Saves at optimiser-step boundaries only, in samples, at the end, and on SIGTERM or SIGUSR1.

    A subclass of Checkpoint is ordered after all other callbacks. `preempted` tells the caller to
    exit with the requeue code. All ranks agree on stopping, whichever of them got the signal. When
    the disk takes no checkpoint (`failed` counts) the run goes on and tries again at the next
    interval; only at its end that is an error.
    """

    def __init__(self, folder: Path, *, keep: int) -> None:
        self.folder = folder
        self.keep = keep
        self.preempted = False
        self.failed = 0
        self._signalled = False

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        refusal = None
        if trainer.is_global_zero:
            try:
                run_lock.acquire(self.folder.parent)
            except run_lock.RunLockedError as error:
                refusal = str(error)
        refusal = trainer.strategy.broadcast(refusal)  # or the others would wait for the first
        if refusal is not None:
            raise run_lock.RunLockedError(refusal)

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        self._release(trainer)

    def on_exception(
        self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException
    ) -> None:
        self._release(trainer)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.is_global_zero:
            self.folder.mkdir(parents=True, exist_ok=True)
            files.clean_stale(self.folder)
        for number in _SIGNALS:  # replaces Lightning's, which end without a checkpoint
            signal.signal(number, self._on_signal)
        # Lightning broadcasts a tensor on every micro-batch for its own handling: a sync point
        trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = lambda: None  # type: ignore[method-assign]

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, *_: object
    ) -> None:
        assert isinstance(pl_module, TrainedModule)
        if trainer.fit_loop._should_accumulate():  # mid-accumulation: half a gradient would be lost
            return
        seen, plan = pl_module.samples_seen, pl_module.plan
        stop = trainer.strategy.reduce_boolean_decision(self._signalled, all=False)
        last = stop or seen >= plan.total_samples
        if last or crossed(plan.save_every, seen - plan.batch_size, seen):
            problem = self.save(trainer, pl_module)
            if problem is not None:
                self._not_saved(problem, seen, last=last)
        if stop:
            log.warning("stopping on a signal after %d samples; resume=auto goes on", seen)
            self.preempted = True
            trainer.should_stop = True

    def save(self, trainer: L.Trainer, module: TrainedModule) -> str | None:
        """Writes this moment's document; every rank must call it. Gives what the disk said when it
        could not be written, the same on every rank."""
        module.settle()  # raises before anything is touched
        path = files.checkpoint_path(self.folder, module.samples_seen)
        with module.pausing():
            problem = _on_first(trainer, lambda: self._clear(path))
            if problem is None and not trainer.strategy.broadcast(path.exists()):
                problem = _write(trainer, path)
            return problem or _on_first(trainer, lambda: self._finish(path))

    def _clear(self, path: Path) -> None:
        if path.exists() and not files.is_valid(path):
            files.set_aside(path)  # resume=auto walked back over it; the new one takes its place

    def _finish(self, path: Path) -> None:
        files.point_last(path)
        files.rotate(self.folder, self.keep, protect=frozenset([path.name]))

    def _not_saved(self, problem: str, seen: int, *, last: bool) -> None:
        self.failed += 1
        found = files.list_checkpoints(self.folder)
        newest = f"the newest is {found[-1]}" if found else "there is none yet"
        text = f"no checkpoint could be written after {seen} samples: {problem}; {newest}"
        if last:
            raise NotSavedError(f"{text}. Free some space; resume=auto goes on from there")
        log.warning("%s. Trying again at the next interval (%d failed so far)", text, self.failed)

    def _release(self, trainer: L.Trainer) -> None:
        if trainer.is_global_zero:
            run_lock.release(self.folder.parent)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self._signalled = True


def _on_first(trainer: L.Trainer, action: Callable[[], None]) -> str | None:
    """What the disk said on the first rank, on all ranks; None when all went well."""
    problem = None
    if trainer.is_global_zero:
        try:
            action()
        except OSError as error:
            problem = str(error)
    return trainer.strategy.broadcast(problem)


def _write(trainer: L.Trainer, path: Path) -> str | None:
    """Lightning's document of this moment, written by the first rank; gives what the disk said."""
    problem = None
    try:
        trainer.save_checkpoint(path)
    except OSError as error:  # on the first rank; the others wait in the barrier at its end
        problem = str(error)
        trainer.strategy.barrier("Trainer.save_checkpoint")
    return trainer.strategy.broadcast(problem)


class DocumentIO(TorchCheckpointIO):
    """Lightning's documents through our atomic, hashed writer and safe reader."""

    def save_checkpoint(
        self, checkpoint: dict, path: object, storage_options: object = None
    ) -> None:
        files.write(checkpoint, Path(str(path)))

    def load_checkpoint(
        self, path: object, map_location: object = None, weights_only: bool | None = None
    ) -> dict:
        return files.read(Path(str(path)))
