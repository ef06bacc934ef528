"""How do the members of a sample become pixels and a caption?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from ldm import rng
from ldm.data.captions import BadSampleError, Captions
from ldm.data.collate import Example, collate
from ldm.data.decode import open_picture
from ldm.data.kept import Kept
from ldm.data.picture_size import PICTURE_EXTS
from ldm.data.transforms import Pair, Shown, Transform
from ldm.types import ImageBatch, Skipped


@dataclass(frozen=True, kw_only=True)
class Examples:
    """Decode, transform, choose the caption; all chance is keyed by (seed, purpose, number).

    kept: of pictures that are cut alike at every visit; None: each is decoded again.
    """

    transform: Transform
    seed: int
    captions: Captions = field(default_factory=Captions)
    max_pixels: int = 100_000_000
    image_exts: tuple[str, ...] = PICTURE_EXTS
    kept: Kept | None = None

    @property
    def exts(self) -> tuple[str, ...]:
        """The members that are needed."""
        return (*self.image_exts, *self.captions.exts)

    def draws(self, index: Tensor) -> NDArray[np.float32]:
        """The uniforms of these samples, all in one go: [B] int64 -> [B,5]."""
        caption_u = rng.uniform(self.seed, "caption", index, (1,)).numpy()
        return np.concatenate([self.transform.draws(self.seed, index), caption_u], axis=1)

    def make(
        self,
        number: int,
        key: str,
        members: Mapping[str, bytes],
        draws: NDArray[np.float32],
        shape: Pair | None = None,
    ) -> Example:
        """Sample `number` of the run from its members; BadSampleError when it cannot be used.

        shape: (height, width) of its bucket; None: the square of the transform.
        """
        u = float(draws[4])
        caption = self.captions.make(members, u, seed=self.seed, number=number)  # the cheaper part
        data = next((members[ext] for ext in self.image_exts if ext in members), None)
        if data is None:
            raise BadSampleError(f"no picture; the sample has {', '.join(sorted(members))}")

        def cut() -> Shown:
            picture = open_picture(data, max_pixels=self.max_pixels)
            return self.transform.cut(picture, draws[:4], shape)

        shown = cut() if self.kept is None else self.kept.get(data, shape, cut)
        return Example(number, key, caption, self.transform.flipped(shown, draws[:4]))

    def collate(self, examples: Sequence[Example], skipped: Sequence[Skipped] = ()) -> ImageBatch:
        """Samples of one picture size -> ImageBatch."""
        return collate(examples, skipped)
