"""Do filters keep what they say, and refuse what they cannot understand?"""

from __future__ import annotations

import pytest
from omegaconf import OmegaConf

from ldm.data.filters import Tally, parse_filter

RECORD = {
    "license": "MIT",
    "aesthetic": 5.5,
    "score": "6.5",
    "width": 640,
    "height": "480",
    "nsfw": False,
    "tags": ["a", "b"],
    "empty": None,
    "name": "a, b",
}


@pytest.mark.parametrize(
    ("condition", "kept"),
    [
        ({"license": "MIT"}, True),
        ({"license": ["Apache-2.0", "MIT"]}, True),
        ({"license": ["Apache-2.0"]}, False),
        ({"license": "!=MIT"}, False),
        ({"license": "==MIT"}, True),
        ({"license": "!=GPL"}, True),
        ({"license": ">=5"}, False),
        ({"license": "!=5"}, True),
        ({"aesthetic": ">=5.5"}, True),
        ({"aesthetic": "> 5.5"}, False),
        ({"aesthetic": ">5, <6"}, True),
        ({"aesthetic": ">5, <5.2"}, False),
        ({"aesthetic": 5.5}, True),
        ({"aesthetic": "<=-1e3"}, False),
        ({"score": ">6"}, True),
        ({"score": 6.5}, True),
        ({"size": ">=480"}, True),
        ({"size": ">480"}, False),
        ({"width": "<641", "size": "<500"}, True),
        ({"nsfw": False}, True),
        ({"nsfw": True}, False),
        ({"nsfw": 0}, False),
        ({"nsfw": "<1"}, False),
        ({"tags": ["b", "z"]}, True),
        ({"tags": "c"}, False),
        ({"empty": "!=x"}, False),
        ({"absent": "!=x"}, False),
        ({"name": "a, b"}, True),
        ({}, True),
    ],
)
def test_conditions(condition: dict[str, object], kept: bool) -> None:
    assert all(rule.passes(RECORD) for rule in parse_filter(condition)) is kept


def test_conditions_may_come_from_yaml() -> None:
    node = OmegaConf.create({"license": ["MIT"], "aesthetic": ">=5", "nsfw": False})
    assert all(rule.passes(RECORD) for rule in parse_filter(node))


@pytest.mark.parametrize(
    "condition",
    [None, [], {}, ">=", ">=x", "=5", "<>5", ">5 <6", [None], {"min": 5}, "! MIT", object()],
)
def test_what_is_no_condition_is_an_error(condition: object) -> None:
    with pytest.raises(ValueError, match="filter width: "):
        parse_filter({"width": condition})


def test_all_problems_are_said_at_once() -> None:
    with pytest.raises(ValueError, match=r"filter a: .*; filter b: "):
        parse_filter({"a": None, "b": ">="})


def test_nothing_is_evaluated() -> None:
    with pytest.raises(ValueError, match="compares with a text"):
        parse_filter({"width": ">=__import__('os').getpid()"})


def test_the_tally_counts_each_rule_for_itself() -> None:
    tally = Tally(parse_filter({"a": ">=2", "b": "x"}))
    kept = tally.keep({"a": [1, 2, 3, None], "b": ["x", "y", "x", "x"]}, 4)
    assert kept.tolist() == [False, False, True, False]
    assert tally.lines() == [
        "filter a >=2: 2 kept, 1 dropped, 1 without it",
        "filter b x: 3 kept, 1 dropped, 0 without it",
    ]
    assert not tally.never_found()
    tally = Tally(parse_filter({"c": 1}))
    tally.keep({"c": [None, None]}, 2)
    assert tally.never_found() == ["c"]
