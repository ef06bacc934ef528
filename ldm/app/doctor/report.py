"""How does an examination become a page that one can read?"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ldm.app.doctor.findings import LEVELS, Chapter, Level, level_of
from ldm.page import Page, Table, Text

TONES: dict[Level, Any] = {"error": "bad", "warning": "warning", "ok": "good"}


def write_page(
    path: Path, chapters: Sequence[Chapter], said: str, *, title: str, subtitle: str
) -> None:
    """The verdict and all that is wrong first, then chapter by chapter."""
    findings = [(c.title, f) for c in chapters for f in c.findings]
    page = Page(title=title, subtitle=subtitle)
    wrong = [
        [finding.level, chapter, finding.text, finding.advice]
        for wanted in LEVELS[:2]
        for chapter, finding in findings
        if finding.level == wanted
    ]
    top: list[Any] = [Text(said, tone=TONES[level_of(chapters)])]
    if wrong:
        top.append(Table(columns=["", "part", "finding", "what to do"], rows=wrong))
    page.section("Verdict", top)
    for chapter in chapters:
        lines = [Text(_escaped(str(f)), tone=TONES[f.level]) for f in chapter.findings]
        page.section(chapter.title, [*lines, *chapter.elements])
    page.write(path)


def _escaped(text: str) -> str:
    """A paragraph of its own, whatever it holds."""
    return " ".join(text.split())
