"""What was found, how bad is it, and how is it told on the terminal and in doctor.json?"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from rich.console import Console
from rich.table import Table
from rich.text import Text

from ldm.io.checkpoint import write_text

FORMAT = "ldm-doctor/1"
Level = Literal["error", "warning", "ok"]
LEVELS: tuple[Level, ...] = ("error", "warning", "ok")
COLOURS = {"error": "bold red", "warning": "yellow", "ok": "green"}


@dataclass(frozen=True)
class Finding:
    """text: what is so; advice: what to do about it, "" for nothing."""

    level: Level
    text: str
    advice: str = ""

    def __str__(self) -> str:
        return f"{self.text}: {self.advice}" if self.advice else self.text


@dataclass
class Chapter:
    """One part of the examination. facts: plain values, for doctor.json; elements: of ldm.page."""

    title: str
    findings: list[Finding] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)
    elements: list[Any] = field(default_factory=list)

    def error(self, text: str, advice: str = "") -> None:
        self.findings.append(Finding("error", text, advice))

    def warning(self, text: str, advice: str = "") -> None:
        self.findings.append(Finding("warning", text, advice))

    def ok(self, text: str) -> None:
        self.findings.append(Finding("ok", text))

    @property
    def level(self) -> Level:
        return worst(self.findings)


def worst(findings: Sequence[Finding]) -> Level:
    """The worst level among them; ok without any."""
    found = {finding.level for finding in findings}
    return next((level for level in LEVELS if level in found), "ok")


def verdict(chapters: Sequence[Chapter], sentences: Mapping[Level, str]) -> str:
    """One sentence about all; sentences: for each level."""
    counts = Counter(finding.level for chapter in chapters for finding in chapter.findings)
    told = ", ".join(
        f"{counts[level]} {level}{'s' if counts[level] > 1 else ''}"
        for level in LEVELS[:2]
        if counts[level]
    )
    sentence = sentences[level_of(chapters)]
    return f"{told}: {sentence}" if told else sentence


def level_of(chapters: Sequence[Chapter]) -> Level:
    """The worst level of all chapters."""
    return worst([finding for chapter in chapters for finding in chapter.findings])


def show(chapters: Sequence[Chapter], said: str, console: Console) -> None:
    """A table of all findings, then the verdict."""
    table = Table(show_edge=False, pad_edge=False, show_lines=False)
    for column in ("", "part", "finding"):
        table.add_column(column, overflow="fold")
    for chapter in chapters:
        for number, finding in enumerate(chapter.findings):
            table.add_row(
                Text(finding.level, style=COLOURS[finding.level]),
                Text("" if number else chapter.title),
                Text(str(finding)),
            )
    console.print(table)
    console.print(Text(said, style=COLOURS[level_of(chapters)]))


def write_json(path: Path, chapters: Sequence[Chapter], said: str, **facts: Any) -> None:
    """Strict JSON: inf and nan become strings. facts: of how it was made."""
    document = {
        "format": FORMAT,
        **facts,
        "level": level_of(chapters),
        "verdict": said,
        "chapters": [
            {
                "title": chapter.title,
                "level": chapter.level,
                "findings": [asdict(finding) for finding in chapter.findings],
                "facts": {_key(name): value for name, value in chapter.facts.items()},
            }
            for chapter in chapters
        ],
    }
    text = json.dumps(_plain(document), indent=1, ensure_ascii=False, allow_nan=False)
    write_text(path, text.encode("utf-8", "replace").decode() + "\n")


def _key(name: str) -> str:
    """`samples an epoch` -> `samples_an_epoch`."""
    return re.sub(r"\W+", "_", name.lower()).strip("_")


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value if isinstance(value, (str, int, float, bool, type(None))) else str(value)
