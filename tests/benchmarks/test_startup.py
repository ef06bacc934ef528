"""Does benchmarks/startup.py tell the clocks that it says it tells?"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest


def test_the_clocks_are_read_where_they_are_told(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import startup

    waits = "import time; time.sleep(0.2); print('clock first training step', time.time(), 0.5)"
    monkeypatch.setattr(startup, "CHILD", waits + "; time.sleep(0.2)")
    found = startup.once(tmp_path, [], 1)
    step, whole = found["first training step"], found["whole process"]
    assert step[0] >= 0.2
    assert step[1] == 0.5
    assert whole[0] >= step[0] + 0.2
    assert 0 < whole[1] < whole[0]  # sleep takes no CPU


def test_a_run_that_fails_ends_the_benchmark(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import startup

    monkeypatch.setattr(startup, "CHILD", "raise ValueError('no shards')")
    with pytest.raises(SystemExit, match="no shards"):
        startup.once(tmp_path, [], 1)


def test_the_table_has_the_medians() -> None:
    import startup

    assert startup.row("imports", [(2.0, 1.0)])["wall_s_quartiles"] == [2.0, 2.0]
    rows: list[dict[str, Any]] = [
        startup.row("imports", [(4.0, 3.0), (2.0, 1.0), (3.0, 2.0)]),
    ]
    assert (rows[0]["wall_s"], rows[0]["cpu_s"], rows[0]["runs"]) == (3.0, 2.0, 3)
    table = startup.tables({"rows": rows})["startup"].markdown()
    assert "| imports | 3.0 (2.5–3.5) | 2.0 (1.5–2.5) | 3 |" in table


def test_the_line_is_one_of_the_scripts(composed: Any) -> None:
    """It trains exactly one batch."""
    import startup

    training = composed(*startup.LINE)["training"]
    assert training["max_samples"] == training["batch_size"] == startup.BATCH
