"""How do image bytes become pixels?"""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image

from ldm.data.captions import BadSampleError

FORMATS = ("JPEG", "PNG", "WEBP")
Pair = tuple[int, int]

_MAX_SCANS = 100  # of a progressive JPEG; encoders write about ten
_START_OF_SCAN = (0xFF, 0xDA)
_SHRINKS = (8, 4, 2)  # to 1 / this; 5/8 is no faster than all pixels, and others gain nothing
_ORIENTATION = 0x0112  # EXIF tag
_TURNS = {  # EXIF orientation -> what shows the picture upright
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_ON_ITS_SIDE = {_TURNS[orientation] for orientation in (5, 6, 7, 8)}


@dataclass(frozen=True)
class Encoded:
    """A picture whose header is read and whose pixels are not. size: (height, width) upright."""

    size: Pair
    _data: bytes
    _image: Image.Image
    _turn: Image.Transpose | None

    def pixels(self, *, at_least: Pair | None = None) -> NDArray[np.uint8]:
        """Upright RGB [H,W,3]; transparency is laid over white.

        at_least: (height, width) that are enough. A JPEG then comes at 1/2, 1/4 or 1/8 of its
        size where that is no smaller: the inverse DCT leaves out high frequencies. The size is
        rounded up, so the last row and column may stand for part of a pixel.
        """
        with _bad_samples():
            rgb = self._fast_jpeg(at_least)
            if rgb is None:
                rgb = np.array(_rgb(self._image))
            if self._turn is None:
                return rgb
            return np.array(Image.fromarray(rgb).transpose(self._turn))

    def _fast_jpeg(self, at_least: Pair | None) -> NDArray[np.uint8] | None:
        """libjpeg-turbo without Pillow's line buffers; None for what only Pillow reads."""
        if self._image.format != "JPEG" or self._image.mode not in ("RGB", "L"):
            return None
        width, height = self._image.size
        if at_least is not None:
            wanted = at_least[::-1] if self._turn in _ON_ITS_SIDE else at_least
            height, width = _shrunk((height, width), wanted)
        try:
            pixels: NDArray[np.uint8] = simplejpeg.decode_jpeg(
                self._data, colorspace="RGB", min_height=height, min_width=width
            )
        except ValueError:  # strict about every small fault; Pillow refuses only what is cut off
            return None
        return pixels


def open_picture(data: bytes, *, max_pixels: int) -> Encoded:
    """The header of a JPEG, PNG or WebP.

    The size is checked before the pixels are decoded, so a decompression bomb costs nothing.
    Everything that is wrong with the bytes is a BadSampleError, here or when they are decoded.
    """
    with _bad_samples():
        image = Image.open(io.BytesIO(data), formats=FORMATS)
        _check_size(image.size, max_pixels)
        if "progressive" in image.info:
            _check_scans(data)
        turn = _turn(image)
    width, height = image.size
    return Encoded((width, height) if turn in _ON_ITS_SIDE else (height, width), data, image, turn)


def decode(data: bytes, *, max_pixels: int) -> Image.Image:
    """Bytes of a JPEG, PNG or WebP -> upright RGB picture, as `Encoded.pixels` says."""
    return Image.fromarray(open_picture(data, max_pixels=max_pixels).pixels())


def is_turned(image: Image.Image) -> bool:
    """Whether width and height change places when the picture is shown upright."""
    return _turn(image) in _ON_ITS_SIDE


@contextmanager
def _bad_samples() -> Iterator[None]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # ours is the limit that counts, and it is an error
            yield
    except BadSampleError:
        raise
    except Exception as error:  # Pillow raises OSError, SyntaxError, struct.error, ValueError, …
        raise BadSampleError(
            f"the image cannot be decoded: {type(error).__name__}: {error}"
        ) from None


def _turn(image: Image.Image) -> Image.Transpose | None:
    return _TURNS.get(image.getexif().get(_ORIENTATION, 1))


def _check_size(size: Pair, max_pixels: int) -> None:
    width, height = size
    if width * height > max_pixels:
        raise BadSampleError(f"the image is {width}x{height}, above max_pixels={max_pixels}")


def _check_scans(data: bytes) -> None:
    """Every scan goes over all pixels, and an empty one takes ten bytes: hours in a small file."""
    codes = np.frombuffer(data, dtype=np.uint8)  # ten times as fast as data.count
    scans = int(
        np.count_nonzero((codes[:-1] == _START_OF_SCAN[0]) & (codes[1:] == _START_OF_SCAN[1]))
    )
    if scans > _MAX_SCANS:
        raise BadSampleError(f"the progressive JPEG has {scans} scans, above {_MAX_SCANS}")


def _shrunk(size: Pair, at_least: Pair) -> Pair:
    """The smallest (height, width) that libjpeg-turbo decodes fast and that is enough."""
    for shrink in _SHRINKS:
        height, width = (-(-side // shrink) for side in size)
        if height >= at_least[0] and width >= at_least[1]:
            return height, width
    return size


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # 16-bit grey, which convert() would clip at 255
        wide: NDArray[np.int64] = np.asarray(image).astype(np.int64)
        image = Image.fromarray(np.clip(wide >> 8, 0, 255).astype(np.uint8))
    if "transparency" in image.info or image.mode in ("RGBA", "LA", "PA", "La", "RGBa"):
        layer = image.convert("RGBA")
        white = Image.new("RGBA", layer.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, layer).convert("RGB")
    image.load()  # a cut-off file raises here
    return image.convert("RGB")
