"""How does a picture become what a feature extractor was trained on?

By Pillow, whose filters widen when they shrink (antialiasing): resizing without that changes FD
more than many models differ (Parmar et al. 2022, section 3). uint8 between the steps, as
transformers has it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ldm.images import flattened

Sides = tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """resize: () no, (edge,) the shorter side, (height, width); crop: () no, (height, width)."""

    resize: Sides
    filter: Image.Resampling
    crop: Sides
    scale: float
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @property
    def words(self) -> str:
        """For protocols: what is done to the size."""
        steps = []
        if self.resize:
            what = "x".join(map(str, self.resize)) + (
                " short side" if len(self.resize) == 1 else ""
            )
            steps.append(f"Pillow {self.filter.name.lower()} to {what}")
        if self.crop:
            steps.append(f"centre crop {self.crop[0]}x{self.crop[1]}")
        return ", ".join(steps) or "none"

    def __call__(self, picture: Image.Image) -> Tensor:
        """Any mode and size -> float32 [3,H,W], normalised."""
        picture = self._cropped(self._resized(flattened(picture)))
        values = np.asarray(picture, dtype=np.float32) * self.scale
        mean, std = (np.array(side, dtype=np.float32) for side in (self.mean, self.std))
        return torch.from_numpy((values - mean) / std).movedim(-1, 0)

    def _resized(self, picture: Image.Image) -> Image.Image:
        width, height = picture.size
        if not self.resize:
            return picture
        if len(self.resize) == 2:
            height, width = self.resize
        else:
            (edge,), short = self.resize, min(picture.size)
            width, height = (edge * side // short for side in picture.size)
        return picture.resize((width, height), self.filter)

    def _cropped(self, picture: Image.Image) -> Image.Image:
        if not self.crop:
            return picture
        height, width = self.crop
        left, top = (picture.width - width) // 2, (picture.height - height) // 2
        return picture.crop((left, top, left + width, top + height))


def preprocessing_from(config: Mapping[str, Any], *, where: str) -> Preprocessing:
    """What a preprocessor_config.json says. Raises ValueError with all that cannot be followed."""
    problems: list[str] = []
    if config.get("do_pad"):
        problems.append("do_pad is not supported")
    resize = _sides(config, "do_resize", "size", problems)
    crop = _sides(config, "do_center_crop", "crop_size", problems)
    crop = crop * 2 if len(crop) == 1 else crop
    if len(resize) == 1 and not crop:
        problems.append("size is a shortest edge without a crop: pictures would differ in size")
    if resize and crop and any(c > r for c, r in zip(crop, resize * 2, strict=False)):
        problems.append(f"crop_size {crop} is larger than size {resize}")
    resample = config.get("resample", int(Image.Resampling.BICUBIC))
    if resample not in list(Image.Resampling):
        problems.append(f"resample={resample!r} is no filter of Pillow (0 … 5)")
    mean, std = (_numbers(config, name, problems) for name in ("image_mean", "image_std"))
    scale = config.get("rescale_factor", 1 / 255) if config.get("do_rescale", True) else 1.0
    if not isinstance(scale, float) or not scale > 0:
        problems.append(f"rescale_factor={scale!r} is not a positive number")
    if not all(value > 0 for value in std):
        problems.append(f"image_std={std} is not positive")
    if problems:
        raise ValueError(f"{where}: {'; '.join(problems)}; use another extractor or correct it")
    return Preprocessing(
        resize=resize,
        filter=Image.Resampling(resample),
        crop=crop,
        scale=scale,
        mean=mean if config.get("do_normalize", True) else (0.0,) * 3,
        std=std if config.get("do_normalize", True) else (1.0,) * 3,
    )


def _sides(config: Mapping[str, Any], switch: str, name: str, problems: list[str]) -> Sides:
    """224 | {shortest_edge: 224} -> (224,); {height, width} -> both; switched off -> ()."""
    if not config.get(switch, True):
        return ()
    said = config.get(name)
    found: tuple[Any, ...] = (said,)
    if isinstance(said, Mapping):
        keys = ("shortest_edge",) if "shortest_edge" in said else ("height", "width")
        found = tuple(said.get(key) for key in keys)
    if not all(isinstance(side, int) and 0 < side <= 4096 for side in found):
        problems.append(f"{name}={said!r}: pixels, {{shortest_edge}} or {{height, width}} expected")
        return ()
    return found


def _numbers(config: Mapping[str, Any], name: str, problems: list[str]) -> tuple[float, ...]:
    said = config.get(name, ())
    if isinstance(said, list) and len(said) == 3 and all(isinstance(v, int | float) for v in said):
        return tuple(float(value) for value in said)
    if config.get("do_normalize", True):
        problems.append(f"{name}={said!r}: three numbers expected")
    return (1.0,) * 3
