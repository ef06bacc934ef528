"""Do all kinds of picture files become the pixels a viewer shows, and broken ones an error?"""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
import simplejpeg
from PIL import Image

from ldm.data.captions import BadSampleError
from ldm.data.decode import decode, open_picture

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


def smooth(height: int, width: int) -> Image.Image:
    """Colours that change over a third of the picture."""
    return noise(3, 3).resize((width, height), Image.Resampling.BICUBIC)


@pytest.mark.parametrize(
    "options",
    [
        *({"subsampling": name} for name in ("4:4:4", "4:2:2", "4:2:0", "4:1:1")),
        {"progressive": True},
        {"quality": 20},
        {"keep_rgb": True, "subsampling": "4:4:4"},
    ],
)
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_jpeg_is_that_of_pillow(mode: str, options: dict[str, object]) -> None:
    """Both are libjpeg-turbo with the accurate DCT and smooth upsampling: the same bits."""
    if mode == "L":
        options = {name: value for name, value in options.items() if name != "keep_rgb"}
    for size in ((1, 1), (33, 47), (64, 65)):
        data = encoded(noise(*size).convert(mode), "JPEG", **{"quality": 90} | options)
        expected = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
        got = open_picture(data, max_pixels=LIMIT).pixels()
        assert np.array_equal(got, expected)


@pytest.mark.parametrize("subsampling", ["440", "411", "422"])
def test_odd_subsampling_is_that_of_pillow(subsampling: str) -> None:
    pixels = np.ascontiguousarray(noise(33, 47))
    data = simplejpeg.encode_jpeg(pixels, quality=90, colorsubsampling=subsampling)
    expected = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    assert np.array_equal(open_picture(data, max_pixels=LIMIT).pixels(), expected)


@pytest.mark.parametrize(
    ("at_least", "size"),
    [
        (None, (65, 100)),
        ((66, 100), (65, 100)),
        ((65, 100), (65, 100)),
        ((34, 50), (65, 100)),
        ((33, 51), (65, 100)),
        ((33, 50), (33, 50)),
        ((17, 25), (17, 25)),
        ((9, 13), (9, 13)),
        ((1, 1), (9, 13)),
    ],
)
def test_a_jpeg_is_shrunk_while_decoding_but_no_further_than_asked(
    at_least: tuple[int, int] | None, size: tuple[int, int]
) -> None:
    data = encoded(smooth(65, 100), "JPEG", quality=95)
    picture = open_picture(data, max_pixels=LIMIT)
    got = picture.pixels(at_least=at_least)
    assert picture.size == (65, 100)
    assert got.shape == (*size, 3)
    whole = picture.pixels().astype(int)
    shrink = round(100 / size[1])
    padded = np.pad(whole, ((0, -65 % shrink), (0, -100 % shrink), (0, 0)), mode="edge")
    blocks = padded.reshape(size[0], shrink, size[1], shrink, 3)
    assert np.abs(got - blocks.mean(axis=(1, 3))).mean() < 2


def test_other_formats_and_jpegs_for_pillow_come_whole() -> None:
    for form, mode in (("PNG", "RGB"), ("WEBP", "RGB"), ("JPEG", "CMYK")):
        data = encoded(smooth(64, 80).convert(mode), form)
        assert open_picture(data, max_pixels=LIMIT).pixels(at_least=(8, 8)).shape == (64, 80, 3)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_shrunk_picture_is_upright(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(smooth(40, 96), "JPEG", exif=exif, quality=95)
    picture = open_picture(data, max_pixels=LIMIT)
    size = (96, 40) if orientation > 4 else (40, 96)
    assert picture.size == size
    half = (size[0] // 2, size[1] // 2)
    got = picture.pixels(at_least=half)
    whole = Image.fromarray(picture.pixels()).resize(half[::-1], Image.Resampling.BOX)
    assert np.abs(got - np.asarray(whole).astype(int)).mean() < 2


def test_a_faulty_jpeg_is_what_pillow_makes_of_it() -> None:
    """Bytes that a decoder can skip are an error to the fast one, so it is read again, whole."""
    data = bytearray(encoded(smooth(64, 64), "JPEG"))
    data[-40:-20] = bytes(20)
    expected = np.asarray(Image.open(io.BytesIO(bytes(data))).convert("RGB"))
    picture = open_picture(bytes(data), max_pixels=LIMIT)
    assert np.array_equal(picture.pixels(), expected)
    assert np.array_equal(picture.pixels(at_least=(8, 8)), expected)


def test_a_progressive_jpeg_of_many_scans_is_refused_undecoded() -> None:
    data = encoded(smooth(16, 16), "JPEG", progressive=True)
    assert open_picture(data, max_pixels=LIMIT).size == (16, 16)
    last = data.rindex(b"\xff\xda")
    bomb = data[:-2] + data[last:-2] * 100 + data[-2:]
    with pytest.raises(BadSampleError, match=r"has 11\d scans, above 100"):
        open_picture(bomb, max_pixels=LIMIT)


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
    assert np.array_equal(np.asarray(got), np.asarray(expected))


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
        with pytest.raises(BadSampleError):
            open_picture(data[:part], max_pixels=LIMIT).pixels(at_least=(8, 8))


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
