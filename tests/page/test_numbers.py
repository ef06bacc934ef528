"""Are values written as people read them, and read back as numbers to sort by?"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from ldm.page.numbers import clean, compact, decimals, fixed, number, shown


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "–"),
        (True, "yes"),
        (0, "0"),
        (-1234567, "−1,234,567"),
        (0.1, "0.1"),
        (123456.0, "123,456"),
        (0.123456, "0.1235"),
        (1.5e-7, "1.500e−07"),
        (math.nan, "not a number"),
        (-math.inf, "−∞"),
        ([1, 2.5], "1, 2.5"),
        ([], "–"),
        ({"a": 1, "b": None}, "a: 1, b: –"),
        (Path("a/b"), "a/b"),
    ],
)
def test_values_are_written_for_people(value: Any, text: str) -> None:
    assert shown(value) == text


@pytest.mark.parametrize(
    ("value", "key"),
    [
        (3, 3.0),
        ("1,024", 1024.0),
        ("−0.5 ± 0.1", -0.5),
        ("12.5 % of all", 12.5),
        ("1e-3", 1e-3),
        ("512×512", 512.0),
        ("3d", None),
        ("v2", None),
        ("2026-01-05", None),
        ("", None),
        (None, None),
    ],
)
def test_what_a_text_is_sorted_by(value: Any, key: float | None) -> None:
    assert number(value) == key


@pytest.mark.parametrize("value", [0.0, 1.0, -7.25, 0.0123, 999_999.0])
def test_a_number_is_read_back_from_what_is_shown(value: float) -> None:
    assert number(shown(value)) == pytest.approx(value, rel=1e-3)  # four digits are shown


def test_a_column_has_as_many_decimals_as_its_smallest_number_needs() -> None:
    places = decimals([0.0123, 4.5, math.nan, 0.0])
    assert places == 4
    assert [fixed(v, places) for v in (0.0123, -4.5)] == ["0.0123", "−4.5000"]
    assert decimals([5.0, 1.0]) == 0
    assert decimals([1e-9, 1e9]) is None
    assert fixed(1e-9, None) == "1.000e−09"
    assert decimals([math.inf]) == 0


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (0.05, "0.05"), (12_500, "12.5k"), (3e6, "3M"), (-2e9, "−2G"), (1e-6, "1e−6")],
)
def test_numbers_at_an_axis_are_short(value: float, text: str) -> None:
    assert compact(value) == text


def test_what_html_cannot_hold_is_replaced() -> None:
    assert clean("a\0b\ud800c\x1bd\ufffe") == "a�b�c�d�"
    assert clean("ä\n\t猫‮") == "ä\n\t猫‮"
