"""Which samples does the metadata let through?

filter: {license: [Apache-2.0, MIT], aesthetic: ">=5", width: ">=256, <2048", pwatermark: "<0.5"}
"""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

_OPERATORS: dict[str, Callable[[float, float], bool]] = {
    ">=": operator.ge,
    "<=": operator.le,
    "!=": operator.ne,
    "==": operator.eq,
    ">": operator.gt,
    "<": operator.lt,
}
_COMPARISON = re.compile(r"^\s*(>=|<=|!=|==|>|<)\s*(.*?)\s*$", re.DOTALL)
_VIRTUAL = {"size": ("width", "height")}  # the shorter side


@dataclass(frozen=True)
class Rule:
    """A condition on one json field. test: value -> whether the sample is kept."""

    name: str
    text: str
    test: Callable[[object], bool]

    @property
    def fields(self) -> tuple[str, ...]:
        """The json fields that have to be read."""
        return _VIRTUAL.get(self.name, (self.name,))

    def value(self, record: Mapping[str, object]) -> object:
        """What the condition is about; None = the sample has no such field."""
        if self.name not in _VIRTUAL:
            return record.get(self.name)
        sides = [_number(record.get(name)) for name in self.fields]
        return None if any(math.isnan(side) for side in sides) else min(sides)

    def passes(self, record: Mapping[str, object]) -> bool:
        """Whether the sample with this metadata is kept."""
        value = self.value(record)
        return value is not None and self.test(value)


@dataclass
class Tally:
    """How many samples each rule kept and dropped (each rule for itself)."""

    rules: Sequence[Rule]
    kept: list[int] = field(default_factory=list)
    dropped: list[int] = field(default_factory=list)
    missing: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.kept, self.dropped, self.missing = ([0] * len(self.rules) for _ in range(3))

    def keep(self, columns: Mapping[str, Sequence[object]], rows: int) -> NDArray[np.bool_]:
        """Which samples pass every rule. columns: field -> [n] values -> [n]"""
        whole = np.ones(rows, dtype=np.bool_)
        for number, rule in enumerate(self.rules):
            records = zip(*(columns[name] for name in rule.fields), strict=True)
            values = [rule.value(dict(zip(rule.fields, r, strict=True))) for r in records]
            passed = np.array([v is not None and rule.test(v) for v in values], dtype=np.bool_)
            missing = sum(v is None for v in values)
            self.kept[number] += int(passed.sum())
            self.missing[number] += missing
            self.dropped[number] += rows - int(passed.sum()) - missing
            whole &= passed
        return whole

    def lines(self) -> list[str]:
        """One line a rule, for the log."""
        counts = zip(self.rules, self.kept, self.dropped, self.missing, strict=True)
        return [
            f"filter {rule.name} {rule.text}: {kept} kept, {dropped} dropped, {missing} without it"
            for rule, kept, dropped, missing in counts
        ]

    def never_found(self) -> list[str]:
        """Fields that no sample has, which is a misspelt name more often than not."""
        counts = zip(self.rules, self.kept, self.dropped, self.missing, strict=True)
        return [
            rule.name for rule, kept, dropped, missing in counts if missing and not kept + dropped
        ]


def parse_filter(conditions: Mapping[str, object]) -> tuple[Rule, ...]:
    """Rules of a mapping json field -> condition; nothing in it is ever evaluated as code.

    A condition is a value (equal to it), a list (one of these) or a comparison such as ">=5",
    "!=png" or ">=256, <2048" (both). `size` is the shorter of `width` and `height`. A sample
    without the field is dropped.
    """
    rules, problems = [], []
    for name, condition in conditions.items():
        try:
            rules.append(Rule(str(name), _shown(condition), _test(condition)))
        except ValueError as error:
            problems.append(f"filter {name}: {error}")
    if problems:
        raise ValueError("; ".join(problems))
    return tuple(rules)


def _shown(condition: object) -> str:
    if isinstance(condition, Sequence) and not isinstance(condition, str):
        return f"[{', '.join(str(item) for item in condition)}]"
    return str(condition)


def _test(condition: object) -> Callable[[object], bool]:
    if isinstance(condition, str) and condition.strip()[:1] in tuple("<>=!"):
        tests = [_comparison(part) for part in condition.split(",")]
        return lambda value: all(test(value) for test in tests)
    if isinstance(condition, (str, bool, int, float)):
        return _one_of([condition])
    items = list(condition) if isinstance(condition, Sequence) else []
    if items and all(isinstance(item, (str, bool, int, float)) for item in items):
        return _one_of(items)
    raise ValueError(
        f'{condition!r} is no condition; give a value, a list of values or a comparison like ">=5"'
    )


def _one_of(allowed: list[object]) -> Callable[[object], bool]:
    """Equal to one of these; a json list (tags) passes when one of its items does."""

    def test(value: object) -> bool:
        values = value if isinstance(value, list) else [value]
        return any(_equal(item, wanted) for item in values for wanted in allowed)

    return test


def _equal(value: object, wanted: object) -> bool:
    if isinstance(value, bool) or isinstance(wanted, bool):
        return value is wanted
    if isinstance(wanted, str):
        return str(value) == wanted
    return _number(value) == _number(wanted)


def _comparison(part: str) -> Callable[[object], bool]:
    match = _COMPARISON.match(part)
    if match is None or not match.group(2):
        known = " ".join(_OPERATORS)
        raise ValueError(f"{part.strip()!r} is no comparison; use one of {known} and a value")
    symbol, text = match.groups()
    limit = _number(text)
    if math.isnan(limit):
        if symbol not in ("==", "!="):
            raise ValueError(f"{part.strip()!r} compares with a text; only == and != can")
        return lambda value: (str(value) == text) == (symbol == "==")
    compare = _OPERATORS[symbol]

    def test(value: object) -> bool:
        number = _number(value)
        return symbol == "!=" if math.isnan(number) else compare(number, limit)

    return test


def _number(value: object) -> float:
    """A json number, or a text that is one; nan for everything else."""
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return math.nan
    try:
        return float(value)
    except ValueError:
        return math.nan
