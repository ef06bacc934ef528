"""Do pictures, masks, seeds and prompts fit together, and which latents are they?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from ldm.images import flattened, from_pil


def spread(**lists: Any) -> list[dict[str, Any]]:
    """One row of values a picture; a text or an image is meant for all, None stays None.

    Raises ValueError when lists differ in length or hold nothing.
    """
    for_all = {k: v for k, v in lists.items() if v is None or isinstance(v, (str, Image.Image))}
    given = {name: list(value) for name, value in lists.items() if name not in for_all}
    counts = {len(value) for value in given.values()}
    if 0 in counts or len(counts) > 1:
        said = ", ".join(f"{len(value)} {name}" for name, value in given.items())
        raise ValueError(f"{said}; give one of each a picture, or a single one for all")
    count = counts.pop() if counts else 1
    columns = {**given, **{name: [value] * count for name, value in for_all.items()}}
    return [{name: columns[name][i] for name in lists} for i in range(count)]


def size_problems(size: tuple[int, int], factor: int) -> list[str]:
    """Sides (height, width) that the autoencoder cannot halve often enough."""
    found = []
    for name, value in zip(("height", "width"), size, strict=True):
        if value < factor or value % factor:
            near = max(round(value / factor), 1) * factor
            found.append(f"{name}={value} is not a multiple of {factor}; use {near}")
    return found


def picture_problems(
    images: Sequence[Image.Image | None], masks: Sequence[Image.Image | None], factor: int
) -> list[str]:
    """Sizes that differ, or do not fit the autoencoder."""
    found = []
    sizes = {image.size for image in images if image is not None}
    if len(sizes) > 1:
        said = ", ".join(f"{w}x{h}" for w, h in sorted(sizes))
        found.append(f"images of {said} px; give images of one size, or draw them apart")
    for width, height in sorted(sizes):
        found += size_problems((height, width), factor)
    for i, (image, mask) in enumerate(zip(images, masks, strict=True)):
        if mask is not None and image is not None and mask.size != image.size:
            found.append(
                f"mask {i} is {mask.width}x{mask.height} px, its image {image.width}x"
                f"{image.height}; give a mask of the image's size"
            )
    return found


def strength_problems(strength: float) -> list[str]:
    if 0 <= strength <= 1:
        return []
    return [f"strength={strength}; allowed: 0 (keep the image) to 1 (ignore it)"]


def mask_pixels(masks: Sequence[Image.Image]) -> Tensor:
    """[B,1,H,W]: 1 from half brightness on (drawn anew), else 0."""
    return (from_pil([mask.convert("L") for mask in masks])[:, :1] >= 0).float()


def mask_latents(mask: Tensor, factor: int) -> Tensor:
    """[B,1,H,W] to [B,1,h,w], the nearest pixel as inpainting networks were trained.

    Raises ValueError where pixels are marked that no latent position sees.
    """
    height, width = mask.shape[-2:]
    small = F.interpolate(mask, size=(height // factor, width // factor), mode="nearest")
    lost = [i for i in range(len(mask)) if mask[i].any() and not small[i].any()]
    if lost:
        raise ValueError(
            f"masks {lost} of the batch mark too little: one latent position is {factor}x{factor} "
            "px; paint over a larger region"
        )
    return small


def pasted(image: Image.Image, original: Image.Image, mask: Image.Image) -> Image.Image:
    """The image where the mask is white, the original's own pixels elsewhere."""
    white = mask.convert("L").point(lambda value: 255 if value > 127 else 0)
    return Image.composite(image, flattened(original), white)


def hidden(pixels: Tensor, mask: Tensor) -> Tensor:
    """Pixels [B,3,H,W] with mid-grey where mask [B,1,H,W] is 1."""
    return pixels * (1 - mask)
