"""Do the tables say what was measured?"""

from __future__ import annotations

from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from ldm.data.shapes import EASY
from ldm.evaluation.metrics import JUDGED, Measured
from ldm.evaluation.report import (
    ceiling,
    curve_table,
    judged_table,
    metrics_table,
    reconstruction_score,
)


class PixelCodec:
    """Latents are pixels, darkened by `lost`."""

    def __init__(self, lost: float = 0.0) -> None:
        self.lost = lost

    def moments(self, pixels: Tensor) -> Tensor:
        return torch.cat([pixels, torch.full_like(pixels, -30)], dim=1)

    def latents(self, moments: Tensor, noise: Tensor) -> Tensor:
        return moments.chunk(2, dim=1)[0]

    def decode(self, x0: Tensor) -> Tensor:
        return x0 * (1 - self.lost)


def printed(table: Table) -> str:
    console = Console(record=True, width=140)
    console.print(table)
    return console.export_text()


def test_reconstructions_count_what_the_vae_loses() -> None:
    assert reconstruction_score(PixelCodec(), count=96).all == 1.0
    assert reconstruction_score(PixelCodec(lost=1.0), count=96).all == 0.0


def test_the_judges_table_has_ceilings_and_entries() -> None:
    judged = {
        name: Measured(value=0.25 * (k + 1), better="higher", samples=40)
        for k, name in enumerate(JUDGED)
    }
    text = printed(judged_table(ceiling(PixelCodec(), EASY), {"mine": judged, "other": {}}))
    for part in ("true renders", "VAE reconstructions", "mine", "40", "25.0 %", "75.0 %"):
        assert part in text
    assert "other" not in text


def test_the_table_of_numbers_says_what_is_better_and_how_sure() -> None:
    entries = {
        "a": {"kid": Measured(value=0.5, low=0.4, high=0.6, better="lower", samples=9)},
        "b": {"clip_score": Measured(value=31.0, better="higher", samples=9)},
    }
    text = printed(metrics_table(entries))
    assert "kid (↓)" in text
    assert "0.5 ± 0.1" in text
    assert "clip_score (↑)" in text


def test_a_runs_curve_is_loss_and_time(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    path.write_text(
        "samples_seen,train/loss,val/loss_ema,images_per_s\n"
        "0,,0.9,\n600,0.5,,100\n1200,0.25,,100\n1200,,0.3,\n"
    )
    table = curve_table(path)
    assert table is not None
    text = printed(table)
    for part in ("0.5", "0.25", "0.3", "1,200", "0.2 min"):
        assert part in text
    path.write_text("samples_seen\n")
    assert curve_table(path) is None
