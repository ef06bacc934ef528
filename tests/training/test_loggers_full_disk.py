"""Does metrics.csv come out whole when the disk was full for a while, or the process killed?"""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from ldm.training.loggers import ResumableCSVLogger

Rows = Callable[[Path], list[dict[str, float]]]
FullDisk = Callable[[int], AbstractContextManager[None]]


def row(n: int, **more: float) -> dict[str, float]:
    return {"samples_seen": float(n), "train/loss": 1 / n, **more}


def test_rows_wait_for_room(
    tmp_path: Path, metrics: Rows, caplog: pytest.LogCaptureFixture, full_disk: FullDisk
) -> None:
    """Three rows meet a full disk, the second with a new column; the fourth finds room."""
    caplog.set_level(logging.INFO)
    logger = ResumableCSVLogger(tmp_path, resume_from=0)
    logger.log_metrics(row(8), step=8)
    before = (tmp_path / "metrics.csv").read_bytes()
    with full_disk(len(before) + 5):
        logger.log_metrics(row(16), step=16)
        logger.log_metrics(row(24, **{"val/loss_raw": 0.5}), step=24)
        logger.log_metrics(row(32), step=32)
        assert (tmp_path / "metrics.csv").read_bytes() == before  # not even the 5 bytes that fit
    assert len([r for r in caplog.records if r.levelname == "WARNING"]) == 1
    assert "File too large" in caplog.text
    assert f"{tmp_path / 'metrics.csv'}: [Errno 27]" in caplog.text
    assert "rows are kept in memory" in caplog.text
    logger.log_metrics(row(40), step=40)
    assert [r["samples_seen"] for r in metrics(tmp_path)] == [8, 16, 24, 32, 40]
    assert metrics(tmp_path)[2]["val/loss_raw"] == 0.5
    assert "complete again: 4 rows had waited" in caplog.text


def test_a_disk_that_is_full_from_the_first_row_on(
    tmp_path: Path, metrics: Rows, caplog: pytest.LogCaptureFixture, full_disk: FullDisk
) -> None:
    """A resumed run must not lose the rows of the first half either."""
    first = ResumableCSVLogger(tmp_path, resume_from=0)
    for n in (8, 16, 24):
        first.log_metrics(row(n), step=n)
    second = ResumableCSVLogger(tmp_path, resume_from=16)
    with full_disk(10):
        second.log_metrics(row(24), step=24)
        second.finalize("success")
    assert "lacks its last 1 rows" in caplog.text
    assert [r["samples_seen"] for r in metrics(tmp_path)] == [8, 16, 24]
    second.finalize("success")
    assert [r["samples_seen"] for r in metrics(tmp_path)] == [8, 16, 24]
    assert metrics(tmp_path)[2] == row(24)


def test_half_a_line_of_a_killed_process_is_no_row(tmp_path: Path, metrics: Rows) -> None:
    first = ResumableCSVLogger(tmp_path, resume_from=0)
    first.log_metrics(row(8), step=8)
    with (tmp_path / "metrics.csv").open("a") as file:
        file.write("16.0,0.06")  # of 0.0625
    ResumableCSVLogger(tmp_path, resume_from=16).log_metrics(row(24), step=24)
    assert [r["samples_seen"] for r in metrics(tmp_path)] == [8, 24]


def test_a_file_that_somebody_took_away_is_begun_anew(tmp_path: Path, metrics: Rows) -> None:
    logger = ResumableCSVLogger(tmp_path, resume_from=0)
    logger.log_metrics(row(8), step=8)
    (tmp_path / "metrics.csv").unlink()
    logger.log_metrics(row(16), step=16)
    assert [r["samples_seen"] for r in metrics(tmp_path)] == [16]


def test_a_run_that_starts_anew_has_one_row_of_its_start(tmp_path: Path, metrics: Rows) -> None:
    """Validation comes before the first step; the run was killed before its first checkpoint."""
    for value in (0.5, 0.25):
        logger = ResumableCSVLogger(tmp_path, resume_from=0)
        logger.log_metrics({"samples_seen": 0.0, "val/loss_raw": value}, step=0)
    assert metrics(tmp_path) == [{"samples_seen": 0.0, "val/loss_raw": 0.25}]
