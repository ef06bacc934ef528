"""Do axes hold what they are given, and are their numbers round?"""

from __future__ import annotations

import math

import pytest

from ldm.page.axes import Axis


@pytest.mark.parametrize("log", [False, True])
@pytest.mark.parametrize(
    "values", [[1.0, 10.0], [3.0], [1e-8, 2e-8], [0.2, 0.21], [5.0, 5e9], [1.0, 1e12]]
)
def test_all_values_lie_on_the_axis_and_numbers_stand_on_it(values: list[float], log: bool) -> None:
    axis = Axis.over(values, log=log, margin=0.05)
    assert all(0 <= axis.place(value) <= 1 for value in values)
    assert axis.place(axis.low) == pytest.approx(0)
    assert axis.place(axis.high) == pytest.approx(1)
    places, texts = zip(*axis.ticks(), strict=True)
    assert 2 <= len(places) <= 9
    assert sorted(places) == list(places)
    assert all(-1e-9 <= place <= 1 + 1e-9 for place in places)
    assert len(set(texts)) == len(texts)


def test_round_numbers() -> None:
    assert [text for _, text in Axis(0, 40_000).ticks()] == ["0", "10k", "20k", "30k", "40k"]
    assert [text for _, text in Axis(1, 1e4, log=True).ticks()] == ["1", "10", "100", "1k", "10k"]
    assert [text for _, text in Axis(0.9, 21, log=True).ticks()] == ["1", "2", "5", "10", "20"]
    assert [text for _, text in Axis(-0.1, 0.1).ticks()] == ["−0.1", "−0.05", "0", "0.05", "0.1"]


def test_a_decade_is_as_long_as_any_other() -> None:
    axis = Axis(1, 100, log=True)
    assert axis.place(10) == pytest.approx(0.5)


def test_what_cannot_be_shown() -> None:
    linear, log = Axis(0, 1), Axis(1, 10, log=True)
    assert not linear.shows(math.nan)
    assert linear.shows(-1)
    assert not log.shows(0)
    axis = Axis.over([math.nan, -3.0, 0.0, 4.0], log=True, margin=0)
    assert axis.low < 4 < axis.high
    assert Axis.over([], log=False, margin=0).shows(1)


def test_no_axis_goes_below_zero_for_a_margin() -> None:
    assert Axis.over([0.0, 10.0], log=False, margin=0.1).low == 0
    assert Axis.over([-1.0, 10.0], log=False, margin=0.1).low < -1
