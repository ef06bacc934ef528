"""How do tests read a page? As a browser would: tags, attributes and text."""

from __future__ import annotations

from collections.abc import Callable
from html.parser import HTMLParser

import pytest


class Parsed(HTMLParser):
    """tags: [(name, attributes)]; texts: {tag: what stands inside it, tag by tag}."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.texts: dict[str, list[str]] = {}
        self._open: list[tuple[str, list[str]]] = []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {key: value or "" for key, value in attrs}))
        self._open.append((tag, []))

    def handle_endtag(self, tag: str) -> None:
        while self._open:
            name, pieces = self._open.pop()
            if name == tag:
                self.texts.setdefault(tag, []).append("".join(pieces))
                return

    def handle_data(self, data: str) -> None:
        for _, pieces in self._open:
            pieces.append(data)

    def all(self, tag: str) -> list[dict[str, str]]:
        """The attributes of all such tags."""
        return [attributes for name, attributes in self.tags if name == tag]

    def of_class(self, name: str) -> list[dict[str, str]]:
        return [a for _, a in self.tags if name in a.get("class", "").split()]


@pytest.fixture(scope="session")
def parsed() -> Callable[[str], Parsed]:
    """parsed(html): what a browser finds in it."""
    return Parsed
