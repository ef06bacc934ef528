"""How far is the run, at which speed, and how long will it take?"""

from __future__ import annotations

import logging
import time

import lightning as L
from lightning.pytorch.callbacks import ProgressBar
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from ldm.training.base import TrainedModule

log = logging.getLogger(__name__)


class SamplesProgress(ProgressBar):
    """A rich bar in samples; without a terminal, a log line at every log interval instead."""

    def __init__(self, *, line_every_s: float = 15.0) -> None:
        super().__init__()
        self._line_every_s = line_every_s
        self._last_line = 0.0
        self._progress: Progress | None = None
        self._task = None
        self._enabled = True

    def disable(self) -> None:
        self._enabled = False

    def enable(self) -> None:
        self._enabled = True

    @property
    def is_disabled(self) -> bool:
        return not self._enabled

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert isinstance(pl_module, TrainedModule)
        console = Console(stderr=True)
        if not self._enabled or not trainer.is_global_zero or not console.is_terminal:
            return
        self._progress = Progress(
            TextColumn("training"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[numbers]}"),
            TimeRemainingColumn(),
            console=console,
        )
        self._progress.start()
        total = pl_module.plan.steps * pl_module.plan.batch_size
        self._task = self._progress.add_task(
            "training", total=total, completed=pl_module.samples_seen, numbers=""
        )

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, *_: object
    ) -> None:
        assert isinstance(pl_module, TrainedModule)
        numbers = _numbers(pl_module.last_metrics)
        if self._progress is not None:
            self._progress.update(self._task, completed=pl_module.samples_seen, numbers=numbers)
        elif self._enabled and trainer.is_global_zero and numbers:
            now = time.monotonic()
            if now - self._last_line >= self._line_every_s:
                self._last_line = now
                log.info("%s", _line(pl_module, numbers))

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._close()

    def on_exception(
        self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException
    ) -> None:
        self._close()

    def _close(self) -> None:
        if self._progress is not None:
            self._progress.stop()
            self._progress = None


def _numbers(metrics: dict[str, float]) -> str:
    if not metrics:
        return ""
    return f"loss {metrics['train/loss']:.4f} · {metrics['images_per_s']:.0f} images/s"


def _line(module: TrainedModule, numbers: str) -> str:
    total = module.plan.steps * module.plan.batch_size
    left = (total - module.samples_seen) / max(module.last_metrics["images_per_s"], 1e-9)
    done = 100 * module.samples_seen / total
    place = f"{module.samples_seen:,} of {total:,} samples ({done:.0f} %)"
    return f"{place} · {numbers} · {left:.0f} s left"
