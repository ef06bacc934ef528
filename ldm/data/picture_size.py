"""How large is a picture, or a cached latent, without decoding it?

Said by the sample's json (`width`, `height`), else by the picture's own header; of a latent always
by its header, as json speaks of the picture.
"""

from __future__ import annotations

import io
import os
import warnings
from collections.abc import Mapping

from PIL import Image

from ldm.data.arrays import shapes_in
from ldm.data.decode import FORMATS, is_turned

PICTURE_SIZE = "__picture_size__"  # the name of this column of an index, beside the json fields
LATENT_SIZE = "__latent_size__"
PICTURE_EXTS = ("jpg", "jpeg", "png", "webp")
LATENT_EXTS = ("moments.npy", "latents.npy", "npy", "safetensors")
_HEAD = 1 << 16  # bytes that hold the header of nearly every picture
_LATENT_HEAD = 1 << 12

Place = tuple[int, int]  # offset and length in bytes


def picture_size(
    fields: Mapping[str, object], members: Mapping[str, Place], handle: int
) -> list[int] | None:
    """[width, height] in px as shown; None where neither json nor header says it.

    fields: of the json; members: extension -> place in the shard that `handle` has open.
    """
    width, height = fields.get("width"), fields.get("height")
    if _is_side(width) and _is_side(height):
        return [int(width), int(height)]  # type: ignore[call-overload]
    place = next((members[ext] for ext in PICTURE_EXTS if ext in members), None)
    if place is None:
        return None
    offset, length = place
    size = _from_header(os.pread(handle, min(length, _HEAD), offset))
    if size is None and length > _HEAD:  # a long colour profile or thumbnail stands before it
        size = _from_header(os.pread(handle, length, offset))
    return size


def latent_size(members: Mapping[str, Place], handle: int) -> list[int] | None:
    """[w, h] of a cached latent [C,h,w]; None where its header does not say it."""
    ext = next((ext for ext in LATENT_EXTS if ext in members), None)
    if ext is None:
        return None
    offset, length = members[ext]
    shapes = shapes_in(os.pread(handle, min(length, _LATENT_HEAD), offset), ext)
    for name in ("", "moments", "latents"):
        if len(shapes.get(name, ())) == 3:
            return [shapes[name][2], shapes[name][1]]
    return None


def _is_side(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _from_header(data: bytes) -> list[int] | None:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a bomb is refused when it is to be decoded
            with Image.open(io.BytesIO(data), formats=FORMATS) as image:
                width, height = image.size
                return [height, width] if is_turned(image) else [width, height]
    except Exception:  # Pillow raises OSError, SyntaxError, struct.error, ValueError, …
        return None  # the reader meets the same picture, and puts it into quarantine
