"""What does a row say when no step since the start could be taken?"""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from ldm.training.module import DiffusionModule


def test_a_first_interval_of_dropped_steps_has_a_row_without_nan(
    tiny_run: Callable[..., Path],
    tmp_path: Path,
    metrics: Callable[[Path], list[dict[str, float]]],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Steps 1 and 2 of 4 are not finite, a row a step: the run goes on and says how many."""
    caplog.set_level("INFO")
    original = DiffusionModule.batch_loss

    def diverging(self: DiffusionModule, batch: Any, number: int) -> dict[str, torch.Tensor]:
        loss = original(self, batch, number)["loss"]
        return {"loss": loss * float("nan") if number < 2 else loss}

    monkeypatch.setattr(DiffusionModule, "batch_loss", diverging)
    run_dir = tiny_run(tmp_path, "training.nonfinite=skip")
    rows = metrics(run_dir)
    assert [row["samples_seen"] for row in rows] == [8, 16, 24, 32]
    assert [row["skipped_steps"] for row in rows] == [1, 2, 2, 2]
    assert ["train/loss" in row for row in rows] == [False, False, True, True]
    assert ["grad_norm" in row for row in rows] == [False, False, True, True]
    with (run_dir / "metrics.csv").open(newline="") as file:
        cells = [cell for line in csv.reader(file) for cell in line]
    assert not {"nan", "inf"} & set(cells)
    assert "24 of 32 samples" in caplog.text  # the first line that has a loss to show
