"""Which true pictures and captions is a model measured against?

`captions` are what it is asked to draw, `pictures` what its pictures are compared with.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from PIL import Image

from ldm.data.captions import BadSampleError
from ldm.data.examples import Examples
from ldm.data.reader import Reader
from ldm.data.shapes import EASY, render, scenes
from ldm.data.shards import read
from ldm.evaluation.features import ExtractorSpec
from ldm.evaluation.reference_stats import MadeOf, shards_hash

SHAPES = "shapes"  # the name of drawn shapes
SHAPES_COUNT = 960
SHAPES_SEED = 1  # training shards are of seed 0


class Truth(Protocol):
    """Samples 0 … len - 1. size_px: side of the square pictures; left_out: known to be unusable."""

    @property
    def name(self) -> str: ...

    @property
    def size_px(self) -> int: ...

    @property
    def left_out(self) -> int: ...

    def __len__(self) -> int: ...

    def captions(self, numbers: Sequence[int]) -> list[str | None]:
        """None where a sample has no caption that can be used."""
        ...

    def pictures(self, numbers: Sequence[int]) -> list[Image.Image | None]:
        """None where a sample cannot be decoded."""
        ...

    def made_of(self, extractor: ExtractorSpec) -> MadeOf:
        """What statistics of all the pictures are of."""
        ...


@dataclass(frozen=True)
class DrawnShapes:
    """The embedded task's pictures under a seed that no training shard has; no files."""

    size_px: int = EASY.side_px
    count: int = SHAPES_COUNT
    name: str = SHAPES
    left_out: int = 0

    def __len__(self) -> int:
        return self.count

    def captions(self, numbers: Sequence[int]) -> list[str | None]:
        drawn = scenes(EASY, seed=SHAPES_SEED, index=list(numbers))
        return [EASY.caption(scene) for scene in drawn]

    def pictures(self, numbers: Sequence[int]) -> list[Image.Image | None]:
        drawn = scenes(EASY, seed=SHAPES_SEED, index=list(numbers))
        return [Image.fromarray(pixels) for pixels in render(drawn, side_px=self.size_px)]

    def made_of(self, extractor: ExtractorSpec) -> MadeOf:
        text = f"{EASY}{SHAPES_SEED}{self.count}"
        return MadeOf(
            data=self.name,
            data_hash=hashlib.blake2b(text.encode(), digest_size=16).hexdigest(),
            count=self.count,
            size_px=self.size_px,
            resize="none",
            centre_crop=False,
            extractor=extractor,
        )


@dataclass(frozen=True)
class ShardPictures:
    """Validation samples of shards: resized to cover a square, its middle cut out."""

    reader: Reader
    name: str

    def __post_init__(self) -> None:
        if not isinstance(self.reader.examples, Examples):
            raise ValueError(
                f"{self.name} holds cached latents, no pictures: give data=… with shards of "
                "pictures and captions"
            )

    def __len__(self) -> int:
        return len(self.reader.order)

    @property
    def size_px(self) -> int:
        return self._examples.transform.size

    @property
    def left_out(self) -> int:
        return len(self.reader.index.dropped)

    def captions(self, numbers: Sequence[int]) -> list[str | None]:
        return [self._caption(number) for number in numbers]

    def pictures(self, numbers: Sequence[int]) -> list[Image.Image | None]:
        return [self._picture(number) for number in numbers]

    def made_of(self, extractor: ExtractorSpec) -> MadeOf:
        return MadeOf(
            data=self.name,
            data_hash=shards_hash(self.reader.index),
            count=len(self),
            size_px=self.size_px,
            resize=f"{self._examples.transform.resample} to cover",
            centre_crop=True,
            extractor=extractor,
        )

    @property
    def _examples(self) -> Examples:
        assert isinstance(self.reader.examples, Examples)
        return self.reader.examples

    def _caption(self, number: int) -> str | None:
        """As `Validation` shows it; the picture is not decoded."""
        examples = self._examples
        members = self._members(number, examples.captions.exts)
        u = float(examples.draws(torch.tensor([number]))[0, -1])
        try:
            return examples.captions.make(members, u, seed=examples.seed, number=number)
        except BadSampleError:
            return None

    def _picture(self, number: int) -> Image.Image | None:
        examples = self._examples
        draws = examples.draws(torch.tensor([number]))[0]
        try:
            made = examples.make(number, "", self._members(number, examples.exts), draws)
        except BadSampleError:
            return None
        return Image.fromarray(made.shown.pixels)

    def _members(self, number: int, exts: tuple[str, ...]) -> dict[str, bytes]:
        _, shard, row = self.reader.order.at(number)
        return read(self.reader.index, shard, row, exts)
