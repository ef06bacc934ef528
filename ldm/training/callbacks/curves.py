"""What do the numbers of the run look like?"""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback

SHOWN = ("train/loss", "val/loss_raw", "val/loss_ema")


class Curves(Callback):
    """Draws curves.png from metrics.csv with every checkpoint."""

    def __init__(self, run_dir: Path) -> None:
        self.run_dir = run_dir

    def on_save_checkpoint(
        self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        # a signal may ask for a checkpoint before the first row is written
        if trainer.is_global_zero and (self.run_dir / "metrics.csv").is_file():
            plot(self.run_dir / "metrics.csv", self.run_dir / "curves.png")


def plot(source: Path, target: Path) -> None:
    """Losses (log scale), by time bin where there are bins, learning rate and images/s."""
    from matplotlib.figure import Figure  # half a second: only when something is drawn

    with source.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    figure = Figure(figsize=(11, 7))
    # fixed margins: matplotlib's search for good ones was two thirds of the time
    figure.subplots_adjust(left=0.07, right=0.98, top=0.95, bottom=0.07, wspace=0.18, hspace=0.28)
    (losses, bins), (rate, speed) = figure.subplots(2, 2)
    for name in SHOWN:
        _line(losses, rows, name, name)
    for number in range(10):
        _line(bins, rows, f"val/loss/t{number}_ema", f"{number / 10:.1f}")
    _line(rate, rows, "lr", "learning rate")
    _line(speed, rows, "images_per_s", "images/s")
    for axes, title in (
        (losses, "loss"),
        (bins, "validation loss by share of the time range (EMA)"),
        (rate, "learning rate"),
        (speed, "images/s"),
    ):
        axes.set_title(title, fontsize=10)
        axes.set_xlabel("samples seen", fontsize=8)
        axes.grid(alpha=0.3)
        if axes in (losses, bins) and axes.has_data():
            axes.set_yscale("log")
            axes.legend(fontsize=7)
    figure.savefig(target, dpi=100)


def _line(axes: Any, rows: list[dict[str, str]], column: str, label: str) -> None:
    points = [(float(row["samples_seen"]), float(row[column])) for row in rows if row.get(column)]
    if points:
        axes.plot(*zip(*points, strict=True), label=label, marker="." if len(points) < 40 else "")
