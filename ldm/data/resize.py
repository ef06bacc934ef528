"""How does a picture get another size?"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

FILTERS = ("bicubic", "lanczos")
_MUCH = 6  # times the crop's area, above which Pillow's resize of the crop alone is faster
Pair = tuple[int, int]


def resized_crop(
    pixels: NDArray[np.uint8], *, resized: Pair, corner: Pair, shape: Pair, resample: str
) -> NDArray[np.uint8]:
    """The crop at `corner` of the picture resized to `resized`. [H,W,3] -> [*shape,3].

    Both filters widen when they shrink (antialiasing). lanczos is Pillow's. bicubic is torch's, a
    port of Pillow's with vector instructions and coarser weights: single pixels differ by 1 or 2.
    """
    (top, left), (tall, wide) = corner, shape
    if resized == pixels.shape[:2]:
        return pixels[top : top + tall, left : left + wide]
    if resample == "lanczos" or _area(resized) > _MUCH * _area(shape):
        return _by_pillow(pixels, resized, corner, shape, resample)
    # [1,3,H,W], channels last by its strides, so is the result: rows of whole pixels are faster
    picture = torch.from_numpy(pixels)[None].permute(0, 3, 1, 2)
    whole = torch.nn.functional.interpolate(picture, resized, mode="bicubic", antialias=True)
    return whole[0, :, top : top + tall, left : left + wide].permute(1, 2, 0).numpy()


def _by_pillow(
    pixels: NDArray[np.uint8], resized: Pair, corner: Pair, shape: Pair, resample: str
) -> NDArray[np.uint8]:
    """Only the crop is computed, so that a very long picture cannot grow a very large one."""
    height, width = pixels.shape[:2]
    (top, left), (tall, wide) = corner, shape
    x_scale, y_scale = width / resized[1], height / resized[0]
    box = (left * x_scale, top * y_scale, (left + wide) * x_scale, (top + tall) * y_scale)
    box = (*box[:2], min(box[2], width), min(box[3], height))  # rounding may pass the edge
    kind = Image.Resampling[resample.upper()]
    return np.array(Image.fromarray(pixels).resize((wide, tall), kind, box=box))


def _area(sides: Pair) -> int:
    return sides[0] * sides[1]
