"""Do pages work where people open them: in a browser, from disk, with mouse, keys and phone?"""

from __future__ import annotations

import importlib.util
import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, ImageStat

import ldm
from ldm import app
from ldm.evaluation.page import write_report
from ldm.page import Cell, Page, Pictures, Plot, Series, Table, Text

pytestmark = pytest.mark.browser

WIDE = {"width": 1280, "height": 900}
PHONE = {"width": 390, "height": 844, "phone": True}
HOSTILE = "</script><img src=x onerror='window.hit=1'><script>window.hit=1</script>\"'‮"


@pytest.fixture(scope="session")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of two ways to draw with the packed-in model."""
    path = Path(__file__).parents[1] / "evaluation" / "page_example.py"
    spec = importlib.util.spec_from_file_location("page_example", path)
    assert spec is not None
    assert spec.loader is not None
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    pipe = ldm.load("tiny", device="cpu")

    def draw(captions: Sequence[str], seeds: Sequence[int], facts: Any) -> list[Image.Image]:
        images: list[Image.Image] = pipe.txt2img(
            captions, seeds, steps=facts["steps"], guidance=facts["guidance"], sampler="ddim"
        )
        return images

    folder = tmp_path_factory.mktemp("report")
    entries = [example.entry("tiny", steps=n) for n in (2, 4)]
    example.write_example(folder, entries, count=8, draw=draw)
    return write_report(folder)


@pytest.fixture
def opened(chromium: Any, tmp_path: Path) -> Callable[[Page], Any]:
    """opened(page): the browser with that page in it."""

    def open_it(page: Page) -> Any:
        chromium.look(**WIDE)
        chromium.open(page.write(tmp_path / "page.html"))
        return chromium

    return open_it


@pytest.fixture
def reading(chromium: Any, report: Path) -> Any:
    """The browser with the report in it."""
    chromium.look(**WIDE)
    chromium.open(report)
    return chromium


def decoded(browser: Any) -> list[int]:
    """Widths of all pictures, after each was decoded: a broken one raises."""
    shown = "[...document.images].filter(image => image.id !== 'viewer-picture')"
    widths: list[int] = browser.evaluate(
        f"Promise.all({shown}.map(image => image.decode().then(() => image.naturalWidth)))"
    )
    return widths


# -- the report ------------------------------------------------------------------------------------


def test_a_report_opens_whole_and_asks_for_nothing(reading: Any, report: Path) -> None:
    widths = decoded(reading)
    assert len(widths) > 40
    assert all(width > 0 for width in widths)
    assert reading.complaints == []
    asked = [address for address in reading.requests if not address.startswith("data:")]
    assert asked == [report.resolve().as_uri()]


def test_the_report_of_a_training_run_opens_whole(
    chromium: Any, finished_run: Path, composed: Callable[..., Any], tmp_path: Path
) -> None:
    """What `make quickstart` leaves: a run beside the packed-in model, evaluated and opened."""
    line = [f"checkpoint={finished_run}", "compare=tiny", f"out={tmp_path / 'report'}"]
    line += ["samples=6", "steps=2", "evaluation.loss_images=4", "strips=1", "device=cpu"]
    line += [f"cache_dir={tmp_path / 'cache'}"]
    assert app.evaluate(composed(*line, config="evaluate")) == 0
    page = tmp_path / "report" / "index.html"
    chromium.look(**WIDE)
    chromium.open(page)
    widths = decoded(chromium)
    assert len(widths) >= 12
    assert all(width > 0 for width in widths)
    assert chromium.complaints == []
    asked = [address for address in chromium.requests if not address.startswith("data:")]
    assert asked == [page.resolve().as_uri()]
    links = chromium.evaluate("[...document.querySelectorAll('nav a')].map(a => a.hash)")
    missing = [f"!document.querySelector('{link}')" for link in links]
    assert chromium.evaluate(f"[{', '.join(missing)}].every(absent => !absent)")
    order = "[...document.querySelectorAll('#numbers tbody tr')].map(r => r.cells[0].textContent)"
    before = chromium.evaluate(order)
    chromium.evaluate("document.querySelector('#numbers th button').click()")
    once = chromium.evaluate(order)
    chromium.evaluate("document.querySelector('#numbers th button').click()")
    twice = chromium.evaluate(order)
    assert sorted(before) == sorted(once) == sorted(twice)
    assert once == twice[::-1] != twice


def test_every_link_leads_to_its_section(reading: Any) -> None:
    links = reading.evaluate("[...document.querySelectorAll('nav a')].map(a => a.hash)")
    assert "#numbers" in links
    for link in links:
        reading.evaluate(f"document.querySelector('nav a[href=\"{link}\"]').click()")
        top = f"document.querySelector('{link}').getBoundingClientRect().top"
        at_end = "window.scrollY + window.innerHeight >= document.body.scrollHeight - 2"
        reading.wait_for(f"Math.abs({top} - 76) < 3 || {at_end}")
        assert reading.evaluate("location.hash") == link


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("screen", [WIDE, PHONE], ids=["wide", "phone"])
def test_it_fits_and_has_the_systems_colours(
    chromium: Any, report: Path, screen: dict[str, Any], dark: bool, tmp_path: Path
) -> None:
    chromium.look(**screen, dark=dark)
    chromium.open(report)
    assert chromium.evaluate("document.documentElement.scrollWidth") == screen["width"]
    picture = Image.open(chromium.screenshot(tmp_path / "page.png"))
    light = ImageStat.Stat(picture.convert("L")).median[0]
    assert light < 40 if dark else light > 215
    assert picture.convert("L").getextrema()[1] - picture.convert("L").getextrema()[0] > 150


def test_on_paper_there_are_no_buttons(reading: Any) -> None:
    reading.send("Emulation.setEmulatedMedia", {"media": "print"})
    display = "getComputedStyle(document.querySelector('.bar')).display"
    assert reading.evaluate(display) == "none"
    reading.send("Emulation.setEmulatedMedia", {"media": ""})
    assert reading.evaluate(display) == "flex"


# -- keys and mouse --------------------------------------------------------------------------------


def test_keys_page_through_sections(reading: Any) -> None:
    marked = "document.querySelector('nav [aria-current]')?.hash"
    reading.press("j")
    reading.wait_for(f"{marked} === '#verdict'")
    reading.press("ArrowRight")
    reading.wait_for(f"{marked} === '#numbers'")
    reading.press("k")
    reading.wait_for(f"{marked} === '#verdict'")


def test_a_picture_is_enlarged_and_keys_go_on(reading: Any) -> None:
    first, second = reading.evaluate(
        "[...document.querySelectorAll('.pictures img')].slice(0, 2).map(i => i.dataset.caption)"
    )
    reading.evaluate("document.querySelector('.pictures .enlarge').click()")
    caption = "document.getElementById('viewer-caption').textContent"
    assert reading.evaluate("document.getElementById('viewer').open")
    assert reading.evaluate(caption) == first
    reading.press("ArrowRight")
    assert reading.evaluate(caption) == second
    reading.press("k")
    reading.press("k")
    assert reading.evaluate("document.getElementById('viewer-count').textContent") == "8 of 8"
    width = "document.getElementById('viewer-picture').getBoundingClientRect().width"
    assert reading.evaluate(width) > 300
    reading.press("Escape")
    assert not reading.evaluate("document.getElementById('viewer').open")
    assert reading.complaints == []


def test_help_and_colours_by_key(reading: Any) -> None:
    reading.press("?")
    assert reading.evaluate("document.getElementById('help').open")
    reading.press("Escape")
    assert not reading.evaluate("document.getElementById('help').open")
    seen = []
    for _ in range(3):
        reading.press("t")
        seen.append(reading.evaluate("getComputedStyle(document.body).backgroundColor"))
    light, dark, system = seen
    assert light == system != dark


def test_a_column_is_sorted_by_value(opened: Callable[[Page], Any]) -> None:
    page = Page(title="t")
    rows = [["b10", Cell(2.0, "x"), "9 %"], ["b9", None, "10 %"], ["a", -1e3, ""], ["c", 10, "1 %"]]
    page.section("s", [Table(["name", "value", "share"], rows)])
    browser = opened(page)

    def click(column: int) -> list[str]:
        browser.evaluate(f"document.querySelectorAll('th button')[{column}].click()")
        names: list[str] = browser.evaluate(
            "[...document.querySelectorAll('tbody tr')].map(r => r.cells[0].textContent)"
        )
        return names

    assert click(0) == ["a", "b9", "b10", "c"]
    assert click(0) == ["c", "b10", "b9", "a"]
    assert click(1) == ["a", "b10", "c", "b9"]  # what has no number stays below
    assert click(1) == ["c", "b10", "a", "b9"]
    assert click(2) == ["c", "b10", "b9", "a"]
    said = "[...document.querySelectorAll('th')].map(th => th.getAttribute('aria-sort'))"
    assert browser.evaluate(said) == ["none", "none", "ascending"]


def test_the_nearest_point_is_named(opened: Callable[[Page], Any]) -> None:
    page = Page(title="t")
    page.section("s", [Plot("p", "x", "y", [Series("a", [0, 1, 2], [5, 7, 6])])])
    browser = opened(page)
    box = browser.evaluate("document.querySelector('.area').getBoundingClientRect().toJSON()")
    place = {"x": box["x"] + box["width"] * 0.52, "y": box["y"] + box["height"] * 0.2}
    browser.send("Input.dispatchMouseEvent", {"type": "mouseMoved", **place})
    assert browser.evaluate("document.querySelector('.readout').textContent") == "a: 7 at 1"
    assert browser.evaluate("document.querySelectorAll('.near').length") == 1


def test_a_plot_fills_its_frame(opened: Callable[[Page], Any]) -> None:
    page = Page(title="t")
    page.section("s", [Plot("p", "x", "y", [Series("a", [0, 1], [0, 1])])])
    browser = opened(page)
    line = browser.evaluate("document.querySelector('path.line').getBoundingClientRect().toJSON()")
    area = browser.evaluate("document.querySelector('.area').getBoundingClientRect().toJSON()")
    assert 0.9 < line["width"] / area["width"] < 1
    assert 0.85 < line["height"] / area["height"] < 1


# -- what must not run -----------------------------------------------------------------------------


def test_hostile_texts_run_nothing(opened: Callable[[Page], Any]) -> None:
    page = Page(title=HOSTILE, subtitle=HOSTILE)
    picture = Image.new("RGB", (4, 4), "red")
    page.section(
        HOSTILE,
        [
            Text(HOSTILE),
            Table([HOSTILE], [[HOSTILE]]),
            Pictures([(picture, f"{HOSTILE}\n{HOSTILE}")]),
            Plot(HOSTILE, "x", "y", [Series(HOSTILE, [1], [1])]),
        ],
    )
    browser = opened(page)
    browser.evaluate("document.querySelector('.enlarge').click()")
    assert browser.evaluate("document.getElementById('viewer-caption').textContent") == HOSTILE
    assert browser.evaluate("document.title") == HOSTILE
    assert browser.evaluate("window.hit ?? null") is None
    assert browser.complaints == []


@pytest.mark.parametrize(
    "attack",
    [
        "add('script', {textContent: 'window.hit = 1'})",
        "add('script', {src: 'data:text/javascript,window.hit=1'})",
        "add('div', {}).setAttribute('onclick', 'window.hit = 1'), document.body.lastChild.click()",
        "add('iframe', {srcdoc: '<script>parent.hit = 1</script>'})",
        "fetch('data:,x').then(() => window.hit = 1)",
        "new Promise(r => add('img', {src: 'file:///x.png', onload: () => r(window.hit = 1), "
        "onerror: r}))",
    ],
)
def test_the_policy_lets_nothing_else_in(opened: Callable[[Page], Any], attack: str) -> None:
    browser = opened(Page(title="t"))
    browser.evaluate(
        "window.add = (tag, values) => {"
        "const made = Object.assign(document.createElement(tag), values);"
        "document.body.append(made); return made }"
    )
    browser.evaluate(f"Promise.resolve({attack}).then(() => 0, () => 0)")
    browser.evaluate("new Promise(done => setTimeout(done, 100))")
    assert browser.evaluate("window.hit ?? null") is None
    assert any("Content Security Policy" in text for text in browser.complaints)


def test_pictures_of_every_kind_decode(opened: Callable[[Page], Any]) -> None:
    jpeg = io.BytesIO()
    Image.new("RGB", (64, 64), "teal").save(jpeg, format="JPEG")
    pictures = [
        Image.new("RGB", (8, 8), "red"),
        Image.new("RGBA", (300, 300), (0, 0, 255, 128)),
        Image.new("L", (2000, 1500), 128),
        Image.new("1", (1, 1)),
        Image.open(jpeg),
    ]
    page = Page(title="t")
    page.section("s", [Pictures([(picture, "") for picture in [*pictures, *pictures]])])
    browser = opened(page)
    widths = decoded(browser)
    assert widths[:2] == widths[5:7] == [8, 300]
    assert all(width > 0 for width in widths)
    assert browser.complaints == []
