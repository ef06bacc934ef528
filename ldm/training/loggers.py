"""Where do numbers and pictures go, and how do they go on after a resume?"""

from __future__ import annotations

import csv
import io
import logging
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch.loggers import Logger, TensorBoardLogger, WandbLogger
from lightning.pytorch.utilities import rank_zero_only
from PIL import Image

from ldm.io.checkpoint import write_text

log = logging.getLogger(__name__)
METRICS = "metrics.csv"
Row = dict[str, float]
WANDB_MODES = ("auto", "online", "offline")


@dataclass(frozen=True, kw_only=True)
class LoggerSettings:
    """metrics.csv always; TensorBoard and wandb on request."""

    tensorboard: bool = False
    wandb: bool = False
    wandb_project: str = "ldm"
    wandb_mode: str = "auto"

    def problems(self) -> list[str]:
        if self.wandb_mode not in WANDB_MODES:
            allowed = ", ".join(WANDB_MODES)
            return [f"training.logger.wandb_mode={self.wandb_mode!r}; allowed: {allowed}"]
        return []


def build_loggers(
    settings: LoggerSettings, run_dir: Path, *, name: str, run_id: str, resume_from: int
) -> list[Logger]:
    """resume_from: samples seen; rows of metrics.csv after that are from work that was lost."""
    loggers: list[Logger] = [ResumableCSVLogger(run_dir, resume_from=resume_from)]
    if settings.tensorboard:
        loggers.append(TensorBoardLogger(run_dir, name="", version="", default_hp_metric=False))
    if settings.wandb:
        loggers.append(_wandb(settings, run_dir, name, run_id))
    return loggers


class ResumableCSVLogger(Logger):
    """metrics.csv: a row at once on disk, the rows of lost work gone at a resume.

    A disk that takes no row is no reason to stop: the rows wait in memory, a warning says so once,
    and they are written as soon as there is room. What is on disk is whole at any moment.
    """

    def __init__(self, run_dir: Path, *, resume_from: int) -> None:
        super().__init__()
        self.path = Path(run_dir) / METRICS
        self._resume_from = resume_from
        self._columns: list[str] | None = None  # None: this process has not written yet
        self._waiting: list[Row] = []
        self._failing = False

    @property
    def name(self) -> str:
        return ""

    @property
    def version(self) -> str:
        return ""

    @property
    def save_dir(self) -> str:
        return str(self.path.parent)

    @rank_zero_only
    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """config.yaml and the card have them."""

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        self._waiting.append(dict(metrics))
        self.save()

    @rank_zero_only
    def save(self) -> None:
        """Writes the rows that wait."""
        if not self._waiting:
            return
        try:
            self._write()
        except OSError as error:
            if not self._failing:
                log.warning("%s: %s; rows are kept in memory until there is room", self.path, error)
            self._failing = True
            return
        if self._failing:
            log.info("%s is complete again: %d rows had waited", self.path, len(self._waiting))
        self._failing, self._waiting = False, []

    @rank_zero_only
    def finalize(self, status: str) -> None:
        self.save()
        if self._waiting:
            log.warning("%s lacks its last %d rows", self.path, len(self._waiting))

    def _write(self) -> None:
        """All that waits, or nothing: raises OSError."""
        new = set().union(*self._waiting)
        if self._columns is not None and new <= set(self._columns) and self.path.is_file():
            _append(self.path, _text(self._columns, self._waiting))
            return
        kept = _rows(self.path)
        if self._columns is None:  # the first row of this process: what came later is lost work
            until = self._resume_from or -1  # a new run has a row after 0 samples of its own
            kept = [row for row in kept if row["samples_seen"] <= until]
        columns = sorted(new.union(*kept))
        write_text(self.path, _text(columns, [*kept, *self._waiting], header=True))
        self._columns = columns


def _text(columns: list[str], rows: list[Row], *, header: bool = False) -> str:
    buffer = io.StringIO(newline="")
    writer = csv.DictWriter(buffer, fieldnames=columns, lineterminator="\n")
    if header:
        writer.writeheader()
    writer.writerows(rows)
    return buffer.getvalue()


def _append(path: Path, text: str) -> None:
    """Takes back what of it a full disk has taken."""
    size = path.stat().st_size
    try:
        with path.open("a", encoding="utf-8", newline="") as file:
            file.write(text)
    except OSError:
        os.truncate(path, size)
        raise


def _rows(path: Path) -> list[Row]:
    """The whole lines of a file; a process that was killed may have left half of one."""
    if not path.is_file():
        return []
    whole, _, _ = path.read_text(encoding="utf-8").rpartition("\n")
    return [{k: float(v) for k, v in row.items() if v} for row in csv.DictReader(whole.split("\n"))]


def log_images(
    loggers: list[Logger], key: str, images: list[Image.Image], captions: list[str], step: int
) -> None:
    """Captioned pictures to those loggers that take pictures."""
    for logger in loggers:
        if isinstance(logger, TensorBoardLogger):
            stack = np.stack([np.asarray(image.convert("RGB")) for image in images])
            logger.experiment.add_images(key, stack, step, dataformats="NHWC")
            logger.experiment.add_text(f"{key}/captions", "  \n".join(captions), step)
        elif isinstance(logger, WandbLogger):
            logger.log_image(key, images, step=step, caption=captions)


def log_texts(loggers: list[Logger], config: dict[str, Any], plan: str) -> None:
    """The configuration and the plan, once at the start."""
    for logger in loggers:
        if isinstance(logger, TensorBoardLogger):
            logger.experiment.add_text("plan", f"```\n{plan}\n```", 0)
        elif isinstance(logger, WandbLogger):
            logger.experiment.config.update({**config, "plan": plan}, allow_val_change=True)


def close_loggers(loggers: list[Logger]) -> None:
    """Ends the wandb run: the next run of a sweep in this process would go on in it."""
    for logger in loggers:
        if isinstance(logger, WandbLogger):
            logger.experiment.finish()


def _wandb(settings: LoggerSettings, run_dir: Path, name: str, run_id: str) -> WandbLogger:
    run_dir.mkdir(parents=True, exist_ok=True)
    for variable in ("WANDB_CACHE_DIR", "WANDB_CONFIG_DIR", "WANDB_DATA_DIR"):
        os.environ.setdefault(variable, str((run_dir / "wandb").resolve()))
    offline = settings.wandb_mode == "offline"
    if settings.wandb_mode == "auto":
        import wandb

        offline = not wandb.login(prompt=False, verify=False)
    return WandbLogger(
        name=name,
        save_dir=run_dir,
        id=run_id,
        project=settings.wandb_project,
        offline=offline,
        mode="offline" if offline else "online",  # Lightning's variable comes too late for wandb
        resume=None if offline else "allow",
        log_model=False,
    )
