"""When is the run written to disk, and when does it stop for a signal?"""

from __future__ import annotations

import logging
import signal
from pathlib import Path
from types import FrameType

import lightning as L
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.plugins import TorchCheckpointIO

from ldm.io import checkpoint as files
from ldm.training.base import TrainedModule
from ldm.training.plan import crossed

log = logging.getLogger(__name__)
_SIGNALS = (signal.SIGTERM, signal.SIGUSR1)


class RunCheckpoint(Checkpoint):
    """Saves at optimiser-step boundaries only, in samples, at the end, and on SIGTERM or SIGUSR1.

    A subclass of Checkpoint is ordered after all other callbacks. `preempted` tells the caller to
    exit with the requeue code. All ranks agree on stopping, whichever of them got the signal.
    """

    def __init__(self, folder: Path, *, keep: int) -> None:
        self.folder = folder
        self.keep = keep
        self.preempted = False
        self._signalled = False

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
        at_end = seen >= plan.total_samples
        if stop or at_end or crossed(plan.save_every, seen - plan.batch_size, seen):
            self.save(trainer, pl_module)
        if stop:
            log.warning("stopping on a signal after %d samples; resume=auto goes on", seen)
            self.preempted = True
            trainer.should_stop = True

    def save(self, trainer: L.Trainer, module: TrainedModule) -> None:
        """Writes this moment's document; every rank must call it."""
        path = files.checkpoint_path(self.folder, module.samples_seen)
        if trainer.is_global_zero and path.exists() and not files.is_valid(path):
            files.set_aside(path)  # resume=auto walked back over it; the new one takes its place
        if not trainer.strategy.broadcast(path.exists()):
            with module.pausing():
                trainer.save_checkpoint(path)
        if trainer.is_global_zero:
            files.point_last(path)
            files.rotate(self.folder, self.keep, protect=frozenset([path.name]))

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self._signalled = True


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
