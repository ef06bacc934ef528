"""Are a page's tables the script's, and is a difference seen?"""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import pytest

PAGE = "Before.\n\n<!-- table speeds -->\n<!-- end -->\n\nAfter.\n"


def test_figures() -> None:
    from doc_tables import figure

    assert [figure(x) for x in (0, 1234567, 99.96, 0.012345, 5)] == [
        *("0", "1,230,000", "100", "0.0123", "5.00")
    ]


def test_a_page_is_filled_and_filled_again() -> None:
    from doc_tables import Table, fill

    tables = {"speeds": Table(["GPUs", "images/s"], [["1", "1,000"]])}
    page = fill(PAGE, tables)
    assert "| GPUs | images/s |\n| --- | ---: |\n| 1 | 1,000 |\n<!-- end -->\n\nAfter." in page
    assert fill(page, tables) == page


def test_a_table_that_is_missing_is_an_error() -> None:
    from doc_tables import fill

    with pytest.raises(ValueError, match=r"the page has tables \['speeds'\], the script \[\]"):
        fill(PAGE, {})


def test_differences_in_numbers_words_and_rows() -> None:
    from doc_tables import Table, differences, fill

    def table(*row: str) -> dict[str, Table]:
        return {"speeds": Table(["GPUs", "images/s"], [row])}

    page = fill(PAGE, table("8", "1,000"))
    assert differences(page, table("8", "1,040"), within=0.05) == []
    assert differences(page, table("8", "1,100"), within=0.05)
    assert differences(page, table("8", "1,000 (98%)"), within=0.05)
    assert differences(page, {"speeds": Table(["GPUs", "images/s"], [])}, within=0.05)


@pytest.mark.parametrize("name", ["scaling", "memory_table"])
def test_the_page_has_a_place_for_each_table(name: str, script_module: ModuleType) -> None:
    page = Path(script_module.PAGE).read_text()
    for table in script_module.TABLES:
        assert page.count(f"<!-- table {table} -->") == 1
    assert page.count("<!-- table ") == len(script_module.TABLES)
