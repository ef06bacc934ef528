"""Does benchmarks/outside.py count every second once, and put things back?"""

from __future__ import annotations

from itertools import count
from pathlib import Path

import pytest


def test_what_is_called_within_a_part_is_not_its_own() -> None:
    """A clock that moves by one at each look: 'EMA' looks twice in every call of its own."""
    from outside import REST, Clock

    ticks = count()
    clock = Clock(lambda: float(next(ticks)))
    inner = clock.timed("EMA", lambda: None, step=False)
    step = clock.timed(REST, lambda: [inner(), inner()], step=True)
    inner()  # before the first step: nobody's
    step()
    step()
    assert [found["EMA"] for found in clock.steps] == [2.0, 2.0]
    assert [found[REST] for found in clock.steps] == [3.0, 3.0]  # 5 ticks from begin to end


def test_the_share_outside_in_closed_form() -> None:
    from outside import BATCH, PARTS, SAVE_EVERY, SAVED, summary

    step = dict.fromkeys(PARTS, 0.0) | {"forward": 3.0, "backward": 5.0, "optimiser": 1.5}
    steps = [step | {"EMA": 9.0}] + [step | {"EMA": 0.5}] * 8 + [step | {"EMA": 0.5, SAVED: 4.0}]
    found = summary(steps, first=1)
    assert found["steps"] == 9
    assert found["step_s"] == pytest.approx(10.0)  # the checkpoint is not of a step
    assert found["outside"] == pytest.approx(0.05)
    assert found["quartiles"] == pytest.approx([0.05] * 3)
    assert found["checkpoint_share"] == pytest.approx(4.0 / 10.0 * BATCH / SAVE_EVERY)


def test_functions_are_watched_and_put_back() -> None:
    """A part whose function has another name by now would silently count as Lightning's."""
    from outside import PARTS, Clock, watched

    places = [place for group in PARTS.values() for place in group]
    before = [owner.__dict__.get(name) for owner, name in places]
    with watched(Clock(lambda: 0.0)):
        for (owner, name), function in zip(places, before, strict=True):
            assert owner.__dict__[name] is not function
    assert [owner.__dict__.get(name) for owner, name in places] == before


def test_the_table_names_every_part() -> None:
    from outside import PARTS, SAVED, summary, tables

    step = dict.fromkeys(PARTS, 1e-3)
    row = {"precision": "bf16-mixed", **summary([step] * 4, first=0)}
    (table,) = tables({"rows": [row]}).values()
    shown = {line[0] for line in table.rows}
    assert set(PARTS) - {SAVED} <= shown
    assert table.rows[1][1] == f"**{100 * (1 - 3 / (len(PARTS) - 1)):.1f} %**"


@pytest.mark.slow
def test_a_run(tmp_path: Path) -> None:
    """Every part of a real step takes time, and the caches are full after the first epoch."""
    from outside import PARTS, measure

    row = measure(tmp_path, precision="32-true", clock="cpu", images=64, epochs=6)
    assert row["steps"] == 12 - 2 - 4
    assert all(row["parts_s"][name] > 0 for name in PARTS if name != "checkpoint")
    assert row["checkpoint_s"] > 0
    assert 0 < row["outside"] < 0.5
