"""How does a picture of any size become pixels of one size?"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from ldm import rng

CROPS = ("center", "random")
Pair = tuple[int, int]


@dataclass(frozen=True)
class Shown:
    """A transformed picture [H,W,3], its (height, width) before, (top, left) of the crop in px."""

    pixels: NDArray[np.uint8]
    original_size: Pair
    crop: Pair


@dataclass(frozen=True, kw_only=True)
class Transform:
    """Resize the shorter side to `size`, crop, flip.

    max_zoom: the shorter side is resized to size * u instead, u uniform in [1, max_zoom], never
    above its native size. A picture that has the right size already is not resampled.
    """

    size: int
    crop: str = "center"
    flip: float = 0.0
    max_zoom: float = 1.0

    def __post_init__(self) -> None:
        problems = []
        if self.size < 1:
            problems.append(f"size={self.size} is not a positive number of pixels")
        if self.crop not in CROPS:
            problems.append(f"crop={self.crop!r} is unknown; use one of {', '.join(CROPS)}")
        if not 0.0 <= self.flip <= 1.0:
            problems.append(f"flip={self.flip} is not a probability; use 0 … 1")
        if self.max_zoom < 1.0:
            problems.append(f"max_zoom={self.max_zoom} would leave a border; use 1 or more")
        if problems:
            raise ValueError("; ".join(problems))

    def draws(self, seed: int, index: Tensor) -> NDArray[np.float32]:
        """What chance decides for these samples: [B,4] uniforms (top, left, flip, zoom)."""
        return rng.uniform(seed, "transform", index, (4,)).numpy()

    def apply(self, image: Image.Image, draws: NDArray[np.float32]) -> Shown:
        """The picture at the size wanted. draws: [4] of this sample."""
        top_u, left_u, flip_u, zoom_u = (float(u) for u in draws)
        width, height = image.size
        shorter = self._shorter(min(width, height), zoom_u)
        resized = _scaled((height, width), shorter)
        spare = (resized[0] - self.size, resized[1] - self.size)
        if self.crop == "random":
            top, left = int(top_u * (spare[0] + 1)), int(left_u * (spare[1] + 1))
        else:
            top, left = spare[0] // 2, spare[1] // 2
        pixels = self._cut(image, resized, (top, left))
        if flip_u < self.flip:
            pixels = pixels[:, ::-1]
        return Shown(pixels, (height, width), (top, left))

    def _shorter(self, native: int, zoom_u: float) -> int:
        wanted = round(self.size * (1.0 + zoom_u * (self.max_zoom - 1.0)))
        return max(self.size, min(wanted, native))

    def _cut(self, image: Image.Image, resized: Pair, corner: Pair) -> NDArray[np.uint8]:
        """The crop of the resized picture: [size,size,3]."""
        width, height = image.size
        (top, left), size = corner, self.size
        if resized == (height, width):
            return np.asarray(image)[top : top + size, left : left + size]
        # only the crop is resampled: the same pixels as resize-then-crop, and a very long picture
        # cannot grow a very large one. Pillow widens its filter when it shrinks (antialiasing).
        x_scale, y_scale = width / resized[1], height / resized[0]
        box = (left * x_scale, top * y_scale, (left + size) * x_scale, (top + size) * y_scale)
        box = (*box[:2], min(box[2], width), min(box[3], height))  # rounding may pass the edge
        return np.asarray(image.resize((size, size), Image.Resampling.LANCZOS, box=box))


def to_pixels(pictures: list[NDArray[np.uint8]]) -> Tensor:
    """Pictures [H,W,3] uint8 -> [B,3,H,W] float32 in [-1,1]."""
    stacked = torch.from_numpy(np.stack(pictures))  # [B,H,W,3]
    planar = stacked.permute(0, 3, 1, 2).contiguous()  # -> [B,3,H,W]
    return planar.to(torch.float32).div_(127.5).sub_(1.0)


def _scaled(size: Pair, shorter: int) -> Pair:
    """(height, width) with its shorter side at `shorter`, its aspect ratio kept."""
    scale = shorter / min(size)
    return max(shorter, round(size[0] * scale)), max(shorter, round(size[1] * scale))
