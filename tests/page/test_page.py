"""Is a page one file that opens anywhere, asks for nothing and runs nothing that is not its own?"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from ldm.page import Bars, Facts, Page, Pictures, Plot, Series, SideBySide, Table, Text

HOSTILE = [
    "</script><script>alert(1)</script>",
    "\"'><img src=x onerror=alert(1)>",
    "javascript:alert(1)",
    "]]><!-- {{ 7 * 7 }} {% raw %}",
    "‮gnp.exe‬ שלום",
    "\0\ud800\x1b[31m",
    "a" * 5000,
]


def everything(text: str) -> Page:
    """A page that says `text` wherever a text can go."""
    picture = Image.new("RGB", (4, 4))
    page = Page(title=text, subtitle=text, footer=text)
    elements = [
        *(Text(text, tone=tone) for tone in ("plain", "lead", "heading", "bad")),
        Facts({text: text}),
        Table([text], [[text]], caption=text),
        Bars(text, [text], [1]),
        Plot(text, text, text, [Series(text, [1, 2], [1, 2], labels=[text, text])]),
        Pictures([(picture, f"{text}\n{text}")]),
        SideBySide([(text, [(picture, text)]), ("b", [(picture, text)])]),
    ]
    page.section(text, elements)
    return page


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_whatever_is_said_is_only_text(text: str, parsed: Callable[[str], Any]) -> None:
    harmless, page = (parsed(everything(said).html()) for said in ("harmless", text))
    shape = [(tag, sorted(attributes)) for tag, attributes in page.tags]
    assert shape == [(tag, sorted(attributes)) for tag, attributes in harmless.tags]
    assert not [a for _, a in page.tags for name in a if name.startswith("on") or name == "style"]


def test_what_no_file_can_hold_is_replaced(tmp_path: Path) -> None:
    written = everything("a\0b\ud800").write(tmp_path / "a.html").read_text(encoding="utf-8")
    assert "\0" not in written
    assert "a\ufffdb\ufffd" in written


def test_text_arrives_as_it_was(parsed: Callable[[str], Any]) -> None:
    page = parsed(everything(HOSTILE[1]).html())
    for tag in ("h1", "h2", "h3", "dt", "dd", "td", "figcaption", "footer", "title"):
        assert HOSTILE[1] in [text.strip() for text in page.texts[tag]], tag


def test_nothing_is_asked_of_a_network(parsed: Callable[[str], Any]) -> None:
    page = parsed(everything("text").html())
    links = [a[name] for _, a in page.tags for name in ("src", "href") if name in a]
    assert links
    assert all(link.startswith(("data:image/", "data:,", "#")) for link in links)
    (style,) = page.texts["style"]
    assert "url(" not in style
    assert "@import" not in style


def test_the_policy_lets_only_this_style_and_script_in(parsed: Callable[[str], Any]) -> None:
    page = parsed(everything("text").html())
    (policy,) = [a["content"] for a in page.all("meta") if "http-equiv" in a]
    rules = dict(rule.split(" ", 1) for rule in policy.split("; "))
    assert rules["default-src"] == "'none'"
    assert rules["img-src"] == "data:"
    for tag in ("style", "script"):
        (text,) = page.texts[tag]
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert rules[f"{tag}-src"] == f"'sha256-{digest}'"


def test_scripts_write_no_html() -> None:
    (script,) = re.findall(r"<script>(.*)</script>", Page(title="t").html(), flags=re.DOTALL)
    assert not re.search(
        r"innerHTML|outerHTML|insertAdjacent|document\.write|eval\(|new Function", script
    )


def test_every_link_in_the_page_has_its_place(parsed: Callable[[str], Any]) -> None:
    page = Page(title="t")
    page.section("pictures", [Pictures([(Image.new("RGB", (4, 4)), "")])])
    own = [a["id"] for _, a in parsed(page.html()).tags if "id" in a]
    titles = ["Loss", "loss", "loss-2", "猫", "", "Top", "a.title", "a", *own]
    names = [page.section(title, []) for title in titles]
    found = parsed(page.html())
    ids = [a["id"] for _, a in found.tags if "id" in a]
    assert len(set(ids)) == len(ids)
    links = [a["href"][1:] for a in found.all("a")]
    assert set(links) <= set(ids)
    assert set(names) <= set(links)


def test_only_elements_go_into_a_section() -> None:
    with pytest.raises(ValueError, match="section 'a' holds str, int; give elements"):
        Page(title="t").section("a", ["text", 3])  # type: ignore[list-item]


def test_a_page_that_fails_leaves_the_one_before(tmp_path: Path) -> None:
    page = Page(title="first")
    assert page.write(tmp_path / "new" / "a.html") == tmp_path / "new" / "a.html"
    page.section("s", [Pictures([(tmp_path / "missing.png", "")])])
    with pytest.raises(FileNotFoundError):
        page.write(tmp_path / "new" / "a.html")
    (left,) = (tmp_path / "new").iterdir()
    assert "first" in left.read_text(encoding="utf-8")


def test_plots_stand_two_abreast(parsed: Callable[[str], Any]) -> None:
    page = Page(title="t")
    page.section(
        "s", [Text("a"), Bars("b", [], []), Bars("c", [], []), Text("d"), Bars("e", [], [])]
    )
    assert len(parsed(page.html()).of_class("halves")) == 2
