"""Do all kinds of picture files become the pixels a viewer shows, and broken ones an error?"""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from ldm.data.captions import BadSampleError
from ldm.data.decode import decode

LIMIT = 10_000


def encoded(image: Image.Image, form: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def noise(height: int = 8, width: int = 10) -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


@pytest.mark.parametrize("form", ["PNG", "WEBP"])
def test_lossless_formats_are_exact(form: str) -> None:
    image = noise()
    options = {"lossless": True} if form == "WEBP" else {}
    got = decode(encoded(image, form, **options), max_pixels=LIMIT)
    assert got.mode == "RGB"
    assert np.array_equal(np.asarray(got), np.asarray(image))


@pytest.mark.parametrize("subsampling", [0, 2])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_jpeg_is_that_of_pillow(mode: str, subsampling: int) -> None:
    image = noise(33, 47).convert(mode)
    data = encoded(image, "JPEG", quality=90, subsampling=subsampling)
    expected = np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).astype(int)
    got = np.asarray(decode(data, max_pixels=LIMIT)).astype(int)
    # both are libjpeg-turbo; builds differ by a rounding in the colour conversion
    assert np.abs(got - expected).max() <= 2


def test_cmyk_jpeg() -> None:
    data = encoded(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "JPEG", quality=95)
    red = np.asarray(decode(data, max_pixels=LIMIT)).reshape(-1, 3).mean(0)
    assert red[0] > 200
    assert max(red[1:]) < 60


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP"])
def test_exif_orientation(orientation: int, form: str) -> None:
    from PIL import ImageOps

    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(noise(16, 24), form, exif=exif)
    with Image.open(io.BytesIO(data)) as image:
        expected = ImageOps.exif_transpose(image).convert("RGB")
    got = decode(data, max_pixels=LIMIT)
    assert got.size == expected.size
    assert np.abs(np.asarray(got).astype(int) - np.asarray(expected).astype(int)).max() <= 2


@pytest.mark.parametrize("mode", ["RGBA", "LA", "PA", "P"])
def test_transparency_is_laid_over_white(mode: str) -> None:
    layer = Image.new("RGBA", (4, 4), (0, 0, 0, 0))
    layer.putpixel((1, 1), (0, 0, 0, 255))
    options: dict[str, object] = {}
    if mode in ("P", "PA"):
        image = Image.new("P", (4, 4), 1)
        image.putpalette([0, 0, 0, 200, 10, 10] + [0] * 762)
        image.putpixel((1, 1), 0)
        options["transparency"] = 1
    else:
        image = layer.convert(mode)
    pixels = np.asarray(decode(encoded(image, "PNG", **options), max_pixels=LIMIT))
    assert pixels[0, 0].tolist() == [255, 255, 255]
    assert pixels[1, 1].tolist() == [0, 0, 0]


def test_half_transparent_is_half_white() -> None:
    data = encoded(Image.new("RGBA", (2, 2), (0, 0, 0, 128)), "PNG")
    assert np.asarray(decode(data, max_pixels=LIMIT))[0, 0].tolist() == [127, 127, 127]


def test_sixteen_bit_grey_keeps_its_range() -> None:
    ramp = np.linspace(0, 65535, 16).astype(np.uint16).reshape(4, 4)
    got = np.asarray(decode(encoded(Image.fromarray(ramp), "PNG"), max_pixels=LIMIT))[..., 0]
    assert np.array_equal(got, (ramp >> 8).astype(np.uint8))


@pytest.mark.parametrize("mode", ["1", "L", "P"])
def test_few_colours(mode: str) -> None:
    image = noise().convert(mode)
    got = decode(encoded(image, "PNG"), max_pixels=LIMIT)
    assert np.array_equal(np.asarray(got), np.asarray(image.convert("RGB")))


def test_too_large_is_refused_before_it_is_decoded() -> None:
    """A PNG header that claims 60,000 x 60,000 pixels, without any."""
    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    chunk = b"IHDR" + header
    data = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk
    data += struct.pack(">I", zlib.crc32(chunk))
    with pytest.raises(BadSampleError):
        decode(data, max_pixels=10**12)
    image = encoded(noise(10, 11), "PNG")
    assert decode(image, max_pixels=110).size == (11, 10)
    with pytest.raises(BadSampleError, match="11x10, above max_pixels=109"):
        decode(image, max_pixels=109)


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP"])
def test_cut_off_files_are_refused(form: str) -> None:
    data = encoded(noise(64, 64), form)
    for part in (0, 1, 20, len(data) // 2, len(data) - 40):
        with pytest.raises(BadSampleError):
            decode(data[:part], max_pixels=LIMIT)


@pytest.mark.parametrize("data", [b"", b"hello", b"<svg/>", b"GIF89a" + bytes(50)])
def test_other_files_are_refused(data: bytes) -> None:
    with pytest.raises(BadSampleError, match="cannot be decoded"):
        decode(data, max_pixels=LIMIT)


def test_random_damage_never_raises_anything_else() -> None:
    draw = np.random.default_rng(0)
    for form in ("PNG", "JPEG", "WEBP"):
        data = encoded(noise(24, 24), form)
        for _ in range(60):
            damaged = bytearray(data)
            for place in draw.integers(0, len(data), 4):
                damaged[place] = draw.integers(0, 256)
            try:
                image = decode(bytes(damaged), max_pixels=LIMIT)
            except BadSampleError:
                continue
            assert image.mode == "RGB"
