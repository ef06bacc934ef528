"""What is asked of one picture, and what comes of it?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, TypeVar

from PIL import Image
from torch import Tensor

T = TypeVar("T")


@dataclass(frozen=True)
class Between(Generic[T]):
    """A place on the way from one prompt or seed to another. weight: 0 is `first`, 1 `last`."""

    first: T
    last: T
    weight: float


@dataclass(frozen=True, kw_only=True)
class Picture:
    """One picture to be drawn; nothing of another picture changes it.

    negative: None is the null context that the model was trained with. image: what it starts from;
    mask: of the image's size, white is drawn anew. start: latents [C,h,w] at the sampler's first
    level, instead of noise.
    """

    prompt: str | Between[str]
    seed: int | Between[int] = 0
    negative: str | None = None
    image: Image.Image | None = None
    mask: Image.Image | None = None
    start: Tensor | None = None


@dataclass(frozen=True)
class Drawn:
    """A picture that is finished. index: its place in the request; batch_size: what it was in.

    steps: what the model believed it would become, from the first step to the last.
    """

    index: int
    image: Image.Image
    batch_size: int
    steps: tuple[Image.Image, ...] = ()
