"""Are pictures in the page, once, whole and with their captions?"""

from __future__ import annotations

import base64
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from ldm.page import Pictures, SideBySide
from ldm.page.embed import EXACT, MAX, MAX_SIDE_PX, Embedded

HOSTILE = '"><script>alert("x")</script>\n\'rest\' <b>'


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    values = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(values)


def decoded(uri: str) -> Image.Image:
    head, _, body = uri.partition(",")
    assert head in ("data:image/png;base64", "data:image/webp;base64")
    return Image.open(io.BytesIO(base64.b64decode(body, validate=True)))


def test_small_pictures_are_kept_bit_for_bit() -> None:
    picture = noise(32, 48)
    shown = Embedded().add(picture)
    assert shown.source is not None
    assert np.array_equal(np.asarray(decoded(shown.source)), np.asarray(picture))
    assert (shown.width, shown.height, shown.tiny) == (32, 48, True)


def test_a_picture_is_kept_once(tmp_path: Path) -> None:
    picture = noise(16, 16)
    picture.save(tmp_path / "a.png")
    page = Embedded()
    first, again, other = (
        page.add(picture),
        page.add(tmp_path / "a.png"),
        page.add(noise(16, 16, 1)),
    )
    assert again.source is None
    assert again.key == first.key != other.key
    square, strip = Image.new("RGB", (16, 16)), Image.new("RGB", (32, 8))  # of the same bytes
    assert page.add(square).key != page.add(strip).key


def test_large_pictures_are_smaller_in_bytes_and_in_pixels() -> None:
    shown = Embedded().add(Image.new("RGB", (3000, 2000), "teal"))
    assert shown.source is not None
    assert shown.width * shown.height <= MAX
    assert shown.width / shown.height == pytest.approx(1.5, abs=0.01)
    assert decoded(shown.source).format == "WEBP"
    assert decoded(Embedded().add(noise(256, EXACT // 256)).source or "").format == "PNG"


def test_a_very_long_strip_fits() -> None:
    shown = Embedded().add(Image.new("RGB", (40_000, 4)))
    assert shown.source is not None
    assert decoded(shown.source).size == (shown.width, shown.height) == (MAX_SIDE_PX, 1)


def test_what_a_file_carries_beside_its_pixels_stays_out(tmp_path: Path) -> None:
    info = PngInfo()
    info.add_text("ldm", "a secret recipe")
    noise(8, 8).save(tmp_path / "a.png", pnginfo=info, icc_profile=b"secret", dpi=(7, 7))
    shown = Embedded().add(str(tmp_path / "a.png"))
    assert shown.source is not None
    assert decoded(shown.source).info == {}


def test_files_that_are_no_pictures(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_text("<svg onload=alert(1)>")
    with pytest.raises(ValueError, match="cannot be read as a picture"):
        Embedded().add(tmp_path / "a.png")
    with pytest.raises(FileNotFoundError):
        Embedded().add(tmp_path / "b.png")


def test_captions_are_text(parsed: Callable[[str], Any]) -> None:
    page = parsed(str(Pictures([(noise(8, 8), HOSTILE), (noise(8, 8), "again")]).html(Embedded())))
    first, again = page.all("img")
    title, rest = HOSTILE.split("\n")
    assert (first["alt"], first["data-caption"], first["data-rest"]) == (title, title, rest)
    assert title in [text.strip() for text in page.texts["span"]]
    assert not page.all("script")
    assert not page.all("b")
    assert again["data-same"] == first["id"]
    assert "src" not in again


def test_groups_stand_side_by_side(parsed: Callable[[str], Any]) -> None:
    a = [(noise(8, 8, 0), "a cat\nCLIP 1"), (noise(8, 8, 1), "a dog\nCLIP 2")]
    b = [(noise(8, 8, 2), "a cat\nCLIP 3"), (noise(8, 8, 3), "a dog\nCLIP 2")]
    page = parsed(str(SideBySide([("A", a), ("<B>", b)]).html(Embedded())))
    assert len(page.of_class("card")) == 2
    assert [image["data-caption"] for image in page.all("img")] == ["a cat"] * 2 + ["a dog"] * 2
    assert [text.strip() for text in page.texts["span"]] == (
        ["A", "CLIP 1", "<B>", "CLIP 3", "a cat", "A", "<B>", "a dog", "CLIP 2"]
    )
    assert page.all("img")[1]["data-rest"].split("\n") == ["<B>", "CLIP 3"]


def test_groups_that_cannot_be_compared() -> None:
    with pytest.raises(ValueError, match=r"\{'A': 1, 'B': 0\} pictures; give as many in each"):
        SideBySide([("A", [(noise(4, 4), "")]), ("B", [])])
    with pytest.raises(ValueError, match="0 groups"):
        SideBySide([])
    with pytest.raises(ValueError, match="columns=0; give 1 to 16"):
        Pictures([], columns=0)
