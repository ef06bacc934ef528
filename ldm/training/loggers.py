"""Where do numbers and pictures go, and how do they go on after a resume?"""

from __future__ import annotations

import csv
import os
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger, WandbLogger
from lightning.pytorch.loggers.csv_logs import ExperimentWriter
from PIL import Image

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


class ResumableCSVLogger(CSVLogger):
    """Lightning's CSV logger, but a resumed run appends to metrics.csv instead of deleting it."""

    def __init__(self, run_dir: Path, *, resume_from: int) -> None:
        super().__init__(run_dir, name="", version="", flush_logs_every_n_steps=1)
        self._resume_from = resume_from

    @property
    def experiment(self) -> ExperimentWriter:  # type: ignore[override]
        if self._experiment is None:
            path = Path(self.log_dir) / ExperimentWriter.NAME_METRICS_FILE
            rows = _rows_up_to(path, self._resume_from)
            with warnings.catch_warnings():  # it deletes the old file; we have its rows
                warnings.filterwarnings("ignore", message="Experiment logs directory")
                writer = super().experiment
            for row in rows:
                writer.log_metrics(row, step=int(row["samples_seen"]))
            writer.save()
        return super().experiment  # type: ignore[no-any-return]

    def log_metrics(self, metrics: dict[str, Any], step: int | None = None) -> None:  # type: ignore[override]
        super().log_metrics(metrics, step)
        self.save()  # a killed run keeps its curve


def _rows_up_to(path: Path, samples: int) -> list[dict[str, float]]:
    if not samples or not path.is_file():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        rows = [{k: float(v) for k, v in row.items() if v} for row in csv.DictReader(file)]
    return [row for row in rows if row["samples_seen"] <= samples]


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
