"""Are the options of a foreign config.json read, and everything wrong with them told?"""

from __future__ import annotations

from typing import Any

import pytest

from ldm.io.options import Options

FIXED = {"act": ("silu", "swish"), "kernel": (3,)}


def problems(given: dict[str, Any]) -> list[str]:
    options = Options(given, {"width": 8})
    options.refuse("Network", FIXED, {"note"})
    return options.problems


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"_class_name": "Network", "_version": "1", "note": 5, "width": "read elsewhere"},
        {"act": "swish", "kernel": [3, 3]},
        {"later": None, "still_later": False},
    ],
)
def test_what_changes_nothing_is_no_problem(given: dict[str, Any]) -> None:
    assert problems(given) == []


def test_every_problem_is_told() -> None:
    given = {"_class_name": "Other", "act": "gelu", "kernel": [3, 5], "later": 0, "_note": 1}
    assert problems(given) == [
        "_class_name='Other'; only Network is built here",
        "act='gelu'; only 'silu' is built here",
        "kernel=[3, 5]; only 3 is built here",
        "later=0; not known; remove it if it changes nothing in the network",
    ]


@pytest.mark.parametrize(
    ("reader", "good", "bad"),
    [
        ("number", [(3, 3), ([3, 3], 3)], ["3", 3.0, True, None, [], [3, 4], {}]),
        ("number_or_null", [(None, None), ([None, None], None), (3, 3)], ["3", [None, 3]]),
        ("numbers", [([3, 4], (3, 4)), ([], ())], [3, [3, "4"], [True], None]),
        ("per_level", [(3, 3), ([3, 4], (3, 4))], [None, "3", [[3], [4]]]),
        ("flag", [(True, True), (False, False), (None, False)], [1, 0, "true", []]),
        ("real", [(0.5, 0.5), (1, 1.0)], [None, "0.5", True, [0.5]]),
    ],
)
def test_values_are_read_or_refused(
    reader: str, good: list[tuple[Any, Any]], bad: list[Any]
) -> None:
    for given, expected in good:
        options = Options({"x": given}, {})
        assert getattr(options, reader)("x") == expected
        assert options.problems == []
    for given in bad:
        options = Options({"x": given}, {})
        getattr(options, reader)("x")
        assert len(options.problems) == 1, given
        assert options.problems[0].startswith("x=")


def test_words_must_be_known() -> None:
    options = Options({"x": ["Up", "Down"], "y": ["Up", "Left"], "z": "Up"}, {})
    assert options.words("x", ("Up", "Down")) == ("Up", "Down")
    assert options.problems == []
    assert options.words("y", ("Up", "Down")) == options.words("z", ("Up", "Down")) == ()
    assert [text.partition(";")[0] for text in options.problems] == ["y=['Up', 'Left']", "z='Up'"]


def test_a_long_value_is_cut_in_the_message() -> None:
    options = Options({"x": ["word"] * 1000}, {})
    options.number("x")
    options.numbers("x")
    assert max(map(len, options.problems)) < 120
