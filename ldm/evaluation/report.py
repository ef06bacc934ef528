"""What does an evaluation print: what the judge says, every number, and how training went?"""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

import torch
from rich.table import Table
from torch import Tensor

from ldm.data.shapes import EASY, Task, render, scenes
from ldm.evaluation.metrics import JUDGED, Measured
from ldm.evaluation.shapes_judge import ShapesScore, judge_accuracy, score
from ldm.images import from_uint8

RENDERS = 240
SEED = 7
Entries = Mapping[str, Mapping[str, Measured]]


class Encodes(Protocol):
    """A codec, as far as evaluation needs it."""

    def moments(self, pixels: Tensor) -> Tensor: ...

    def latents(self, moments: Tensor, noise: Tensor) -> Tensor: ...

    def decode(self, x0: Tensor) -> Tensor: ...


@torch.no_grad()
def reconstruction_score(
    codec: Encodes,
    *,
    count: int = RENDERS,
    task: Task = EASY,
    device: torch.device | str = "cpu",
) -> ShapesScore:
    """The judge's score on renders that went through the VAE: no model of its latents is better."""
    drawn = scenes(task, seed=SEED, index=range(count))
    pixels = from_uint8(torch.from_numpy(render(drawn, side_px=task.side_px)))
    moments = [codec.moments(part.to(device)) for part in pixels.split(96)]
    zeros = [torch.zeros_like(part.chunk(2, dim=1)[0]) for part in moments]
    back = [codec.decode(codec.latents(m, z)) for m, z in zip(moments, zeros, strict=True)]
    return score(torch.cat(back), [task.caption(scene) for scene in drawn], task=task)


def ceiling(
    codec: Encodes, task: Task, *, device: torch.device | str = "cpu"
) -> dict[str, ShapesScore]:
    """What the judge says of the task's own pictures, and of what a VAE makes of them."""
    return {
        "true renders": judge_accuracy(RENDERS, SEED, task=task),
        "VAE reconstructions": reconstruction_score(codec, task=task, device=device),
    }


def judged_table(best: Mapping[str, ShapesScore], entries: Entries) -> Table:
    """The judge's shares, under what true pictures and the VAE reach."""
    table = Table("pictures of", "n", "colour", "shape", "size", "all", title="judged by program")
    for name, found in best.items():
        shares = (found.colour, found.shape, found.size, found.all)
        table.add_row(name, str(found.n), *(f"{100 * share:.1f} %" for share in shares))
    for name, metrics in entries.items():
        judged = [metrics[key] for key in JUDGED if key in metrics]
        if judged:
            shares = (f"{100 * part.value:.1f} %" for part in judged)
            table.add_row(name, str(judged[0].samples), *shares)
    return table


def metrics_table(entries: Entries) -> Table:
    """A row a number; what the judge says of parts is in its own table."""
    table = Table("metric", *entries, title="measured")
    names = dict.fromkeys(name for metrics in entries.values() for name in metrics)
    for name in names:
        if name in JUDGED[:-1]:
            continue
        cells = [_cell(metrics.get(name)) for metrics in entries.values()]
        better = next(metrics[name].better for metrics in entries.values() if name in metrics)
        table.add_row(f"{name} ({'↓' if better == 'lower' else '↑'})", *cells)
    return table


def curve_table(path: Path) -> Table | None:
    """Loss, speed and time of a run's metrics.csv; None without rows."""
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))

    def column(name: str) -> list[float]:
        return [float(row[name]) for row in rows if row.get(name)]

    table = Table("training", "first", "last", title=path.parent.name)
    for name in ("train/loss", "val/loss_raw", "val/loss_ema", "images_per_s"):
        values = column(name)
        if values:
            table.add_row(name, f"{values[0]:.4g}", f"{values[-1]:.4g}")
    seen, rate = column("samples_seen"), column("images_per_s")
    if seen and rate:
        minutes = max(seen) / (sum(rate) / len(rate)) / 60
        table.add_row("samples seen", "", f"{max(seen):,.0f}")
        table.add_row("training time", "", f"{minutes:.1f} min")
    return table if table.row_count else None


def _cell(measured: Measured | None) -> str:
    if measured is None:
        return ""
    text = f"{measured.value:.4g}"
    if measured.low is not None and measured.high is not None:
        text += f" ± {(measured.high - measured.low) / 2:.2g}"
    return text
