"""How does a picture of any size become pixels of the size wanted?"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ldm import rng
from ldm.data.decode import Encoded
from ldm.data.resize import FILTERS, resized_crop
from ldm.types import from_levels

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
    """Resize to cover `size` x `size` (or the shape asked for), crop, flip; the aspect is kept.

    max_zoom: the side that fits exactly is resized to u times that instead, u uniform in
    [1, max_zoom], never above its native size. A picture that has the right size already is not
    resampled. resample: the filter. dct_scaling: a JPEG is decoded at 1/2, 1/4 or 1/8 of its size
    where that is enough: faster, and less exact.
    """

    size: int
    crop: str = "center"
    flip: float = 0.0
    max_zoom: float = 1.0
    resample: str = "bicubic"
    dct_scaling: bool = False

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
        if self.resample not in FILTERS:
            problems.append(f"resample={self.resample!r} is unknown; use {' or '.join(FILTERS)}")
        if problems:
            raise ValueError("; ".join(problems))

    def draws(self, seed: int, index: Tensor) -> NDArray[np.float32]:
        """What chance decides for these samples: [B,4] uniforms (top, left, flip, zoom)."""
        return rng.uniform(seed, "transform", index, (4,)).numpy()

    @property
    def is_fixed(self) -> bool:
        """Whether a picture is cut alike at every visit."""
        return self.crop == "center" and self.max_zoom == 1.0

    def apply(
        self, picture: Encoded, draws: NDArray[np.float32], shape: Pair | None = None
    ) -> Shown:
        """The picture at `shape` (height, width), by default the square. draws: [4] of it."""
        return self.flipped(self.cut(picture, draws, shape), draws)

    def flipped(self, shown: Shown, draws: NDArray[np.float32]) -> Shown:
        """The picture, mirrored where chance has it."""
        return replace(shown, pixels=shown.pixels[:, ::-1]) if draws[2] < self.flip else shown

    def cut(self, picture: Encoded, draws: NDArray[np.float32], shape: Pair | None = None) -> Shown:
        """`apply` without the mirror."""
        top_u, left_u, _, zoom_u = (float(u) for u in draws)
        shape = shape or (self.size, self.size)
        resized = self._covering(picture.size, shape, zoom_u)
        spare = (resized[0] - shape[0], resized[1] - shape[1])
        if self.crop == "random":
            top, left = int(top_u * (spare[0] + 1)), int(left_u * (spare[1] + 1))
        else:
            top, left = spare[0] // 2, spare[1] // 2
        pixels = resized_crop(
            picture.pixels(at_least=resized if self.dct_scaling else None),
            resized=resized,
            corner=(top, left),
            shape=shape,
            resample=self.resample,
        )
        return Shown(pixels, picture.size, (top, left))

    def _covering(self, native: Pair, shape: Pair, zoom_u: float) -> Pair:
        """(height, width) of the resized picture: `shape` fits in, one side exactly at zoom 1."""
        tight = 0 if shape[0] * native[1] >= shape[1] * native[0] else 1  # the side that fits
        wanted = round(shape[tight] * (1.0 + zoom_u * (self.max_zoom - 1.0)))
        scale = max(shape[tight], min(wanted, native[tight])) / native[tight]
        return max(shape[0], round(native[0] * scale)), max(shape[1], round(native[1] * scale))


def stacked(pictures: list[NDArray[np.uint8]]) -> Tensor:
    """Pictures [H,W,3] -> [B,H,W,3] uint8."""
    return torch.from_numpy(np.stack(pictures))


def to_pixels(pictures: list[NDArray[np.uint8]]) -> Tensor:
    """Pictures [H,W,3] uint8 -> [B,3,H,W] float32 in [-1,1]."""
    return from_levels(stacked(pictures))
