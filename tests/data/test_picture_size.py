"""Is the size of a picture known without decoding it?"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms

from ldm.data import picture_size as module
from ldm.data import table as tables
from ldm.data.decode import decode
from ldm.data.picture_size import PICTURE_SIZE

Write = Callable[..., Path]


def encoded(form: str, width: int, height: int, **options: object) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (width, height), "red").save(buffer, form, **options)
    return buffer.getvalue()


@pytest.fixture
def sizes(tmp_path: Path, write_tar: Write) -> Callable[..., list[object]]:
    def scanned(members: Sequence[tuple[str, bytes]]) -> list[object]:
        table = tables.scan(write_tar(tmp_path / "a.tar", members), fields=(PICTURE_SIZE,))
        return table.columns()[PICTURE_SIZE]

    return scanned


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP"])
def test_from_the_header(sizes: Callable[..., list[object]], form: str) -> None:
    ext = form.lower()
    assert sizes([(f"a.{ext}", encoded(form, 30, 20))]) == [[30, 20]]


def test_json_goes_before_the_header(sizes: Callable[..., list[object]]) -> None:
    record = json.dumps({"width": 640, "height": 480}).encode()
    assert sizes([("a.png", encoded("PNG", 30, 20)), ("a.json", record)]) == [[640, 480]]


@pytest.mark.parametrize("record", [{}, {"width": 5}, {"width": "5", "height": "5"}, [1], None])
@pytest.mark.parametrize("value", [0, -3, True, 2.5])
def test_json_that_says_nothing_is_passed_over(
    sizes: Callable[..., list[object]], record: object, value: object
) -> None:
    if isinstance(record, dict):
        record = {"height": value, "width": value, **record}
        record["height"] = value
    members = [("a.png", encoded("PNG", 30, 20)), ("a.json", json.dumps(record).encode())]
    assert sizes(members) == [[30, 20]]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_as_shown_upright(sizes: Callable[..., list[object]], orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded("JPEG", 30, 20, exif=exif)
    assert sizes([("a.jpg", data)]) == [list(decode(data, max_pixels=10**6).size)]


def test_a_header_behind_much_else(sizes: Callable[..., list[object]]) -> None:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    data = encoded("JPEG", 30, 20, icc_profile=profile + bytes(200_000))
    assert len(data) > 200_000
    assert sizes([("a.jpg", data)]) == [[30, 20]]


def test_unreadable_pictures_have_no_size(sizes: Callable[..., list[object]]) -> None:
    assert sizes([("a.jpg", b"no picture"), ("b.txt", b"none"), ("c.png", b"")]) == [None] * 3


def test_nothing_is_decoded(
    sizes: Callable[..., list[object]], monkeypatch: pytest.MonkeyPatch
) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (500, 300, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).save(buffer, "JPEG")

    def refuse(*_: object) -> None:
        raise AssertionError("decoded")

    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", refuse)
    monkeypatch.setattr(module, "_HEAD", 2000)  # the pixels are not even read
    assert sizes([("a.jpg", buffer.getvalue())]) == [[300, 500]]


def test_the_column_is_kept_in_the_index(tmp_path: Path, write_shard: Write) -> None:
    """An index made without it gets it, and keeps it when a json field is added."""
    shard = write_shard(tmp_path / "a.tar", 3)
    cache = tmp_path / "cache"
    tables.table_of(shard, cache=cache)
    assert tables.stored(tables.beside(shard), (PICTURE_SIZE,)) is None
    tables.table_of(shard, fields=(PICTURE_SIZE,), cache=cache)
    path = tables.table_of(shard, fields=("number",), cache=cache)
    columns = tables.load(path, None).columns()
    assert columns == {PICTURE_SIZE: [[12, 12]] * 3, "number": [0, 1, 2]}
