"""How do examples become a batch?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ldm.data.transforms import Shown, stacked
from ldm.types import ImageBatch, Skipped


@dataclass(frozen=True)
class Example:
    """One sample of the run: its number, key, caption and picture."""

    index: int
    key: str
    caption: str
    shown: Shown


def collate(examples: Sequence[Example], skipped: Sequence[Skipped] = ()) -> ImageBatch:
    """Examples of one picture size -> ImageBatch."""
    return ImageBatch(
        levels=stacked([example.shown.pixels for example in examples]),  # [B,H,W,3]
        captions=tuple(example.caption for example in examples),
        keys=tuple(example.key for example in examples),
        index=torch.tensor([example.index for example in examples], dtype=torch.int64),
        original_size=tuple(example.shown.original_size for example in examples),
        crop=tuple(example.shown.crop for example in examples),
        skipped=tuple(skipped),
    )
