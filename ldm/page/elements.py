"""What can stand in a section of a page: text, facts, tables, bars?"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from markupsafe import Markup

from ldm.page.embed import Embedded
from ldm.page.numbers import decimals, fixed, number, shown
from ldm.page.templates import render

Tone = Literal["plain", "lead", "heading", "good", "warning", "bad"]
Better = Literal["lower", "higher"]
TONES = ("plain", "lead", "heading", "good", "warning", "bad")
_CODE = re.compile(r"`([^`\n]+)`")


class Element(Protocol):
    """Anything that a section can hold."""

    def html(self, embedded: Embedded) -> Markup:
        """Its HTML. embedded: the pictures that the page holds already."""
        ...


@dataclass(frozen=True)
class Text:
    """Paragraphs (a blank line parts them); `code` between backticks, nothing else is read.

    tone: lead stands out as the page's answer, heading as the title of what follows; good, warning
    and bad are coloured and have a sign.
    """

    text: str
    tone: Tone = "plain"

    def __post_init__(self) -> None:
        if self.tone not in TONES:
            raise ValueError(f"tone={self.tone!r}; one of {', '.join(TONES)}")

    def html(self, embedded: Embedded) -> Markup:
        paragraphs = [p.strip() for p in re.split(r"\n\s*\n", self.text) if p.strip()]
        pieces = [_CODE.split(paragraph) for paragraph in paragraphs]  # every second one is code
        return render("text", {"paragraphs": pieces, "tone": self.tone})


@dataclass(frozen=True)
class Facts:
    """Names and values, of any plain kind."""

    facts: Mapping[str, object]

    def html(self, embedded: Embedded) -> Markup:
        return render("facts", {"facts": [(str(k), shown(v)) for k, v in self.facts.items()]})


@dataclass(frozen=True)
class Cell:
    """A value of a table with something small below it: text, or an interval written like it.

    Raises ValueError when both are given.
    """

    value: object
    detail: str = ""
    interval: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        if self.detail and self.interval is not None:
            raise ValueError(f"detail={self.detail!r} and interval={self.interval}; give one")


@dataclass(frozen=True)
class Table:
    """Rows of plain values or `Cell`s; a click on a column's name sorts by it.

    highlight: {column: "lower" | "higher"}; the best number of a column stands out where they
    differ.
    Raises ValueError for rows of another length than columns and for unknown highlights.
    """

    columns: Sequence[str]
    rows: Sequence[Sequence[object]]
    caption: str | None = None
    highlight: Mapping[str, Better] | None = None

    def __post_init__(self) -> None:
        width = len(self.columns)
        wrong = [f"row {i} has {len(r)}" for i, r in enumerate(self.rows) if len(r) != width]
        if wrong:
            raise ValueError(
                f"{width} columns, but {'; '.join(wrong[:5])}; give one value a column"
            )
        for column, better in (self.highlight or {}).items():
            if column not in self.columns or better not in ("lower", "higher"):
                raise ValueError(
                    f"highlight {column!r}: {better!r}; give a column of {list(self.columns)} and "
                    "'lower' or 'higher'"
                )

    def html(self, embedded: Embedded) -> Markup:
        columns = [
            _Column.of(str(name), [row[i] for row in self.rows], (self.highlight or {}).get(name))
            for i, name in enumerate(self.columns)
        ]
        rows = [[column.cells[r] for column in columns] for r in range(len(self.rows))]
        return render("table", {"columns": columns, "rows": rows, "caption": self.caption})


@dataclass(frozen=True)
class Bars:
    """One bar a label: a histogram, or counts of things. Raises ValueError for negative counts."""

    title: str
    labels: Sequence[str]
    counts: Sequence[float]

    def __post_init__(self) -> None:
        if len(self.labels) != len(self.counts):
            raise ValueError(f"{len(self.labels)} labels, {len(self.counts)} counts; give as many")
        if wrong := [c for c in self.counts if not (math.isfinite(c) and c >= 0)]:
            raise ValueError(f"counts {wrong[:5]}; give finite numbers of 0 or more")

    def html(self, embedded: Embedded) -> Markup:
        longest = max(self.counts, default=0) or 1
        bars = [
            (str(label), shown(count), f"{100 * count / longest:.2f}%")
            for label, count in zip(self.labels, self.counts, strict=True)
        ]
        return render("bars", {"title": self.title, "bars": bars})


@dataclass(frozen=True)
class _Shown:
    """A cell as the template needs it. key: what it is sorted by when that is a number."""

    text: str
    detail: str
    key: float | None
    best: bool


@dataclass(frozen=True)
class _Column:
    name: str
    numeric: bool
    cells: list[_Shown]

    @classmethod
    def of(cls, name: str, given: list[object], better: Better | None) -> _Column:
        cells = [cell if isinstance(cell, Cell) else Cell(cell) for cell in given]
        values = [cell.value for cell in cells]
        keys = [number(value) for value in values]
        floats = [value for value in values if isinstance(value, float)]
        places = decimals(floats) if floats else None
        finite = [key for key in keys if key is not None and math.isfinite(key)]
        differ = better is not None and len(set(finite)) > 1
        best = (min if better == "lower" else max)(finite) if differ else None
        texts = [fixed(v, places) if isinstance(v, float) else shown(v) for v in values]
        ready = [
            _Shown(text, _below(cell, places), key, best is not None and key == best)
            for text, cell, key in zip(texts, cells, keys, strict=True)
        ]
        empty = (None, "")
        numeric = bool(finite) and all(
            k is not None or v in empty for k, v in zip(keys, values, strict=True)
        )
        return cls(name, numeric, ready)


def _below(cell: Cell, places: int | None) -> str:
    if cell.interval is None:
        return cell.detail
    return " to ".join(fixed(end, places) for end in cell.interval)
