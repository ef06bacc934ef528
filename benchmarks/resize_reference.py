"""What should a resized and cropped picture be, by Pillow and in float64?"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Floats = NDArray[np.float64]


def by_pillow(picture: Image.Image, size: int, resample: str) -> Image.Image:
    """The shorter side at `size`, then the middle square."""
    width, height = resized = covering(picture, size)
    left, top = (width - size) // 2, (height - size) // 2
    whole = picture.resize(resized, Image.Resampling[resample.upper()])
    return whole.crop((left, top, left + size, top + size))


def in_float64(picture: Image.Image, size: int, resample: str) -> Floats:
    """The same without any rounding; [size,size,3] of 0 … 255."""
    width, height = covering(picture, size)
    rows = weights(picture.height, height, resample)[(height - size) // 2 :][:size]
    columns = weights(picture.width, width, resample)[(width - size) // 2 :][:size]
    cut = np.einsum("yh,hwc,xw->yxc", rows, np.asarray(picture, np.float64), columns, optimize=True)
    return np.clip(cut, 0, 255)


def weights(source: int, target: int, resample: str) -> Floats:
    """[target,source] of one axis: the kernel, widened by the factor of shrinking."""
    support, kernel = _KERNELS[resample]
    scale = source / target
    centres = (np.arange(target) + 0.5) * scale
    x = np.abs(np.arange(source) + 0.5 - centres[:, None]) / max(scale, 1.0)
    found: Floats = np.where(x < support, kernel(x), 0.0)
    return found / found.sum(axis=1, keepdims=True)


def covering(picture: Image.Image, size: int) -> tuple[int, int]:
    """(width, height) with the shorter side at `size`."""
    scale = size / min(picture.size)
    return max(size, round(picture.width * scale)), max(size, round(picture.height * scale))


def _lanczos(x: Floats) -> Floats:
    found: Floats = np.sinc(x) * np.sinc(x / 3)
    return found


def _cubic(x: Floats) -> Floats:
    """Keys 1981, eq. 4 with a = -1/2."""
    return np.where(x < 1, (1.5 * x - 2.5) * x * x + 1, ((-0.5 * x + 2.5) * x - 4) * x + 2)


_KERNELS: dict[str, tuple[int, Callable[[Floats], Floats]]] = {
    "bicubic": (2, _cubic),
    "lanczos": (3, _lanczos),
}
