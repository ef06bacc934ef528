"""Does the benchmark of cached latents report what it measured?"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest


def test_a_report_and_its_tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import latents

    out = tmp_path / "latents.json"
    line = "--samples 64 --seconds 0 --rounds 2 --steps 2 --clock cpu --out"
    monkeypatch.setattr(latents, "WARM_UP", 0)
    monkeypatch.setattr(latents, "BATCH", 4)
    monkeypatch.setattr(sys, "argv", ["latents.py", *line.split(), str(out)])
    latents.main()
    report = json.loads(out.read_text())
    rows = {row["contender"]: row for row in report["rows"]}
    assert list(rows) == [latents.OURS, latents.BESIDE]
    assert rows[latents.BESIDE]["speed"] == [1, 1, 1]
    assert 0 < report["waiting"]["percent"] <= 100
    assert set(latents.tables(report)) == {"latents-reading", "latents-waiting"}
