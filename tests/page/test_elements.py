"""Do text, facts, tables and bars say what they are given?"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest

from ldm.page import Bars, Cell, Facts, Table, Text
from ldm.page.embed import Embedded

HOSTILE = "</bdi><script>alert('x')</script>&amp;\"'"


def shown(element: Any) -> str:
    return str(element.html(Embedded()))


def cells(parsed: Callable[[str], Any], table: Table) -> tuple[list[str], list[dict[str, str]]]:
    page = parsed(shown(table))
    return page.texts["td"], page.all("td")


def test_paragraphs_and_code(parsed: Callable[[str], Any]) -> None:
    page = parsed(shown(Text("one `two <b>` three\n\nfour `")))
    assert page.texts["p"] == ["one two <b> three", "four `"]
    assert page.texts["code"] == ["two <b>"]


@pytest.mark.parametrize("tone", ["plain", "lead", "good", "warning", "bad"])
def test_tones(tone: Any, parsed: Callable[[str], Any]) -> None:
    assert parsed(shown(Text("a", tone=tone))).of_class(tone)
    assert parsed(shown(Text(HOSTILE, tone=tone))).texts["p"] == [HOSTILE]


def test_a_heading_is_a_heading(parsed: Callable[[str], Any]) -> None:
    assert parsed(shown(Text(HOSTILE, tone="heading"))).texts["h3"] == [HOSTILE]


def test_an_unknown_tone() -> None:
    with pytest.raises(ValueError, match="'loud'; one of plain, lead"):
        Text("a", tone="loud")  # type: ignore[arg-type]


def test_facts_are_any_plain_values(parsed: Callable[[str], Any]) -> None:
    page = parsed(shown(Facts({HOSTILE: HOSTILE, "n": 1024, "none": None, "list": [1, "b"]})))
    assert page.texts["dt"] == [HOSTILE, "n", "none", "list"]
    assert page.texts["dd"] == [HOSTILE, "1,024", "–", "1, b"]


def test_numbers_are_right_aligned_and_sorted_by_value(parsed: Callable[[str], Any]) -> None:
    table = Table(["name", "fid", "share"], [["b", 0.5, "12 %"], ["a", 10, "3 %"], ["c", None, ""]])
    texts, attributes = cells(parsed, table)
    assert texts == ["b", "0.500", "12 %", "a", "10", "3 %", "c", "–", ""]
    numeric = ["number" in a["class"] for a in attributes]
    assert numeric == [False, True, True] * 3
    assert [a.get("data-value") for a in attributes] == (
        [None, "0.5", "12.0", None, "10.0", "3.0", None, None, None]
    )


def test_one_word_makes_a_column_of_words(parsed: Callable[[str], Any]) -> None:
    _, attributes = cells(parsed, Table(["a"], [[1], ["many"]]))
    assert not any("number" in a["class"] for a in attributes)
    assert not any("data-value" in a for a in attributes)


@pytest.mark.parametrize(("better", "best"), [("lower", [1]), ("higher", [0, 3])])
def test_the_best_stand_out(better: Any, best: list[int], parsed: Callable[[str], Any]) -> None:
    table = Table(["x"], [[3.0], [1.0], [math.nan], [3.0], [None]], highlight={"x": better})
    _, attributes = cells(parsed, table)
    assert [i for i, a in enumerate(attributes) if "best" in a["class"].split()] == best


def test_an_interval_is_written_like_its_value(parsed: Callable[[str], Any]) -> None:
    table = Table(["x"], [[Cell(0.01234, interval=(0.01, 0.0155))], [Cell(1, HOSTILE)]])
    assert parsed(shown(table)).texts["small"] == ["0.0100 to 0.0155", HOSTILE]
    with pytest.raises(ValueError, match="give one"):
        Cell(1, "a", (0, 1))


def test_a_table_of_nothing(parsed: Callable[[str], Any]) -> None:
    assert parsed(shown(Table(["a", "b"], [], caption="C"))).texts["bdi"] == ["a", "b"]


def test_names_and_cells_are_text(parsed: Callable[[str], Any]) -> None:
    page = parsed(shown(Table([HOSTILE], [[HOSTILE]], caption=HOSTILE)))
    assert page.texts["td"] == page.texts["th"] == page.texts["figcaption"] == [HOSTILE]
    assert not page.all("script")


def test_tables_that_cannot_be() -> None:
    with pytest.raises(ValueError, match="2 columns, but row 1 has 1; give one value a column"):
        Table(["a", "b"], [[1, 2], [1]])
    with pytest.raises(ValueError, match="highlight 'c': 'lower'"):
        Table(["a"], [], highlight={"c": "lower"})
    with pytest.raises(ValueError, match="'lower' or 'higher'"):
        Table(["a"], [], highlight={"a": "best"})  # type: ignore[dict-item]


def test_bars_are_as_long_as_their_counts(parsed: Callable[[str], Any]) -> None:
    page = parsed(shown(Bars("Lengths", ["a", HOSTILE, "c"], [1, 4, 0])))
    assert [bar["width"] for bar in page.of_class("fill")] == ["25.00%", "100.00%", "0.00%"]
    assert HOSTILE in page.texts["bdi"]
    assert parsed(shown(Bars("None", [], []))).texts["figcaption"] == ["None"]
    assert shown(Bars("Zero", ["a"], [0]))


@pytest.mark.parametrize("counts", [[1.0], [1.0, -1.0], [1.0, math.nan]])
def test_bars_that_cannot_be(counts: list[float]) -> None:
    with pytest.raises(ValueError, match="give"):
        Bars("t", ["a", "b"], counts)
