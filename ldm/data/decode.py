"""How do image bytes become pixels?"""

from __future__ import annotations

import io
import warnings

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image

from ldm.data.captions import BadSampleError

FORMATS = ("JPEG", "PNG", "WEBP")
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


def decode(data: bytes, *, max_pixels: int) -> Image.Image:
    """Bytes of a JPEG, PNG or WebP -> upright RGB picture; transparency is laid over white.

    The size is checked before the pixels are decoded, so a decompression bomb costs nothing.
    Everything that is wrong with the bytes is a BadSampleError.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # ours is the limit that counts, and it is an error
            with Image.open(io.BytesIO(data), formats=FORMATS) as image:
                _check_size(image.size, max_pixels)
                turn = _turn(image)
                rgb = _fast_jpeg(image, data) or _rgb(image)
                return rgb if turn is None else rgb.transpose(turn)
    except BadSampleError:
        raise
    except Exception as error:  # Pillow raises OSError, SyntaxError, struct.error, ValueError, …
        raise BadSampleError(
            f"the image cannot be decoded: {type(error).__name__}: {error}"
        ) from None


def is_turned(image: Image.Image) -> bool:
    """Whether width and height change places when the picture is shown upright."""
    turn = _turn(image)
    return turn is not None and turn in _ON_ITS_SIDE


def _turn(image: Image.Image) -> Image.Transpose | None:
    return _TURNS.get(image.getexif().get(_ORIENTATION, 1))


def _check_size(size: tuple[int, int], max_pixels: int) -> None:
    width, height = size
    if width * height > max_pixels:
        raise BadSampleError(f"the image is {width}x{height}, above max_pixels={max_pixels}")


def _fast_jpeg(image: Image.Image, data: bytes) -> Image.Image | None:
    """libjpeg-turbo without Pillow's line buffers; None for what only Pillow reads."""
    if image.format != "JPEG" or image.mode not in ("RGB", "L"):
        return None
    try:
        return Image.fromarray(simplejpeg.decode_jpeg(data, colorspace="RGB"))
    except ValueError:  # strict about every small fault; Pillow refuses only what is cut off
        return None


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
