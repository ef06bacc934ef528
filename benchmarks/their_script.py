"""How does diffusers' example script run where torchvision is missing? Run by whole_run.py.

    python benchmarks/their_script.py train_text_to_image.py ARGUMENTS

torchvision has no build for every CPU-only torch. The script takes seven transforms from it, which
are a line or two of PIL each: where the package is missing, a module with these seven takes its
place. What the script does is not touched.
"""

from __future__ import annotations

import enum
import importlib.util
import random
import runpy
import sys
from collections.abc import Callable, Sequence
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

Transform = Callable[[Any], Any]


class InterpolationMode(enum.Enum):
    NEAREST = "nearest"
    BILINEAR = "bilinear"
    BICUBIC = "bicubic"
    LANCZOS = "lanczos"


def Compose(transforms: Sequence[Transform]) -> Transform:
    def apply(value: Any) -> Any:
        for transform in transforms:
            value = transform(value)
        return value

    return apply


def Resize(size: int, interpolation: InterpolationMode) -> Transform:
    """The shorter side becomes `size`."""
    method = Image.Resampling[interpolation.name]

    def apply(image: Image.Image) -> Image.Image:
        short = min(image.size)
        if short == size:
            return image
        return image.resize(tuple(side * size // short for side in image.size), method)

    return apply


def CenterCrop(size: int) -> Transform:
    def apply(image: Image.Image) -> Image.Image:
        left, top = (round((side - size) / 2) for side in image.size)
        return image.crop((left, top, left + size, top + size))

    return apply


def RandomCrop(size: int) -> Transform:
    def apply(image: Image.Image) -> Image.Image:
        left, top = (random.randint(0, side - size) for side in image.size)
        return image.crop((left, top, left + size, top + size))

    return apply


def RandomHorizontalFlip() -> Transform:
    mirror = Image.Transpose.FLIP_LEFT_RIGHT
    return lambda image: image.transpose(mirror) if random.random() < 0.5 else image


def Lambda(function: Transform) -> Transform:
    return function


def ToTensor() -> Transform:
    """RGB to [3,H,W] fp32 in [0,1]."""

    def apply(image: Image.Image) -> Tensor:
        return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous().float().div(255)

    return apply


def Normalize(mean: Sequence[float], std: Sequence[float]) -> Transform:
    means, stds = (torch.tensor(values)[:, None, None] for values in (mean, std))
    return lambda pixels: pixels.clone().sub_(means).div_(stds)


TRANSFORMS = (
    InterpolationMode,
    Compose,
    Resize,
    CenterCrop,
    RandomCrop,
    RandomHorizontalFlip,
    Lambda,
    ToTensor,
    Normalize,
)


def stand_in() -> None:
    """`from torchvision import transforms` gives the above.

    Call it after the other libraries were imported: they look for the real package.
    """
    package, transforms = ModuleType("torchvision"), ModuleType("torchvision.transforms")
    for value in TRANSFORMS:
        setattr(transforms, value.__name__, value)
    package.transforms = transforms  # type: ignore[attr-defined]
    for module in (package, transforms):
        module.__spec__ = ModuleSpec(module.__name__, None)
        sys.modules[module.__name__] = module


def main() -> None:
    script = Path(sys.argv[1])
    if importlib.util.find_spec("torchvision") is None:
        import accelerate  # noqa: F401
        import datasets  # noqa: F401
        import diffusers  # noqa: F401
        from transformers.utils.import_utils import is_torchvision_available

        is_torchvision_available()  # remembers that there is none
        stand_in()
    sys.argv = sys.argv[1:]
    runpy.run_path(str(script), run_name="__main__")


if __name__ == "__main__":
    main()
