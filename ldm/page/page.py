"""How do sections become one file that opens from disk and asks for nothing?"""

from __future__ import annotations

import base64
import hashlib
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path

from markupsafe import Markup

from ldm.page.elements import Bars, Element
from ldm.page.embed import Embedded
from ldm.page.pictures import Pictures, SideBySide
from ldm.page.plot import Plot
from ldm.page.templates import asset, render

# of templates/page.html; other ids of a page hold a full stop, which no section's does
OWN_IDS = {"top", "content", "theme", "help", "help-button", "viewer"} | {
    f"viewer-{part}" for part in ("picture", "caption", "rest", "count", "back", "next")
}


@dataclass(frozen=True)
class _Section:
    title: str
    id: str
    elements: Sequence[Element]


@dataclass
class Page:
    """A page of sections. footer: a line at its end, such as what it was made with.

    Texts may come from anywhere: they are escaped, and a Content-Security-Policy lets no script,
    style or picture in but the page's own.
    """

    title: str
    subtitle: str = ""
    footer: str = ""
    sections: list[_Section] = field(default_factory=list, init=False)

    def section(self, title: str, elements: Sequence[Element]) -> str:
        """Adds a section; returns its id: `#id` is a link to it."""
        if wrong := [type(e).__name__ for e in elements if not hasattr(e, "html")]:
            raise ValueError(f"section {title!r} holds {', '.join(wrong)}; give elements: Text(…)")
        taken = {section.id for section in self.sections} | OWN_IDS
        stem = re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-") or "section"
        numbered = (f"{stem}-{n}" for n in range(2, len(taken) + 3))
        name = next(n for n in (stem, *numbered) if n not in taken)
        self.sections.append(_Section(title, name, list(elements)))
        return name

    def html(self) -> str:
        """The whole page. Raises what its pictures raise."""
        embedded = Embedded()
        sections = [(section, _blocks(section.elements, embedded)) for section in self.sections]
        columns = sorted({n for s in self.sections for e in s.elements for n in _columns(e)})
        rules = "".join(f".columns-{n}{{--columns:{n}}}" for n in columns)
        style, script = f"\n{asset('css')}{rules}\n", f"\n{asset('js')}"
        return render(
            "page",
            {
                "page": self,
                "sections": sections,
                "style": Markup(style),
                "script": Markup(script),
                "policy": _policy(style, script),
            },
        )

    def write(self, path: Path | str) -> Path:
        """The page as a file: whole or not at all."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{os.getpid()}-{path.name}.tmp")
        try:
            temporary.write_text(self.html(), encoding="utf-8", newline="\n")
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
        return path


def _blocks(elements: Sequence[Element], embedded: Embedded) -> list[tuple[bool, list[Markup]]]:
    """Neighbours that stand two abreast (plots, bars) together, and the others."""
    groups = groupby(elements, key=lambda element: isinstance(element, (Plot, Bars)))
    return [(halves, [one.html(embedded) for one in group]) for halves, group in groups]


def _columns(element: Element) -> list[int]:
    """The widths of grids that the style has to know: a style attribute would not be let in."""
    if isinstance(element, Pictures):
        return [element.columns]
    return [len(element.groups)] if isinstance(element, SideBySide) else []


def _policy(style: str, script: str) -> str:
    """Nothing but this style, this script and pictures inside the page."""
    hashes = (
        base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        for text in (style, script)
    )
    return (
        "default-src 'none'; img-src data:; style-src 'sha256-{}'; script-src 'sha256-{}'; "
        "base-uri 'none'; form-action 'none'"
    ).format(*hashes)
