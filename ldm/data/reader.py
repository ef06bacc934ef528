"""What is sample number i of the run?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ldm.data.captions import BadSampleError
from ldm.data.order import Place
from ldm.data.shards import ShardIndex, read
from ldm.data.transforms import Pair
from ldm.types import ImageBatch, LatentBatch, Skipped

_MAX_ATTEMPTS = 64  # unusable samples in a row: the data are broken, not a sample


class Placing(Protocol):
    """Where sample i is; attempt k gives its k-th stand-in."""

    def __len__(self) -> int: ...

    def at(self, i: int, attempt: int = 0) -> Place: ...


class Making(Protocol):
    """How members become an example, and examples a batch: Examples or LatentExamples."""

    @property
    def exts(self) -> tuple[str, ...]: ...

    def draws(self, index: Tensor) -> NDArray[np.float32]: ...

    def make(
        self,
        number: int,
        key: str,
        members: Mapping[str, bytes],
        draws: NDArray[np.float32],
        shape: Pair | None = None,
    ) -> Any: ...

    def collate(
        self, examples: Sequence[Any], skipped: Sequence[Skipped] = ()
    ) -> ImageBatch | LatentBatch: ...


@dataclass(frozen=True, kw_only=True)
class Reader:
    """Position i -> example, a pure function of i: any worker of any rank reads the same.

    shapes: (height, width) of the pictures of each shard of the index; () = the transform's square.
    """

    index: ShardIndex
    order: Placing
    examples: Making
    shapes: tuple[Pair, ...] = ()

    def batch(self, positions: Tensor) -> ImageBatch | LatentBatch:
        """The samples at these positions. positions: [B] int64."""
        draws = self.examples.draws(positions)
        skipped: list[Skipped] = []
        rows = zip(positions.tolist(), draws, strict=True)
        return self.examples.collate([self._example(i, row, skipped) for i, row in rows], skipped)

    def example(self, i: int) -> Any:
        """The sample at one position."""
        return self._example(i, self.examples.draws(torch.tensor([i]))[0], [])

    def _example(self, i: int, draws: NDArray[np.float32], skipped: list[Skipped]) -> Any:
        """The sample at position i, or the next good one of its lane."""
        already = len(skipped)
        for attempt in range(min(_MAX_ATTEMPTS, len(self.order))):
            _, shard, n = self.order.at(i, attempt)
            key = self.index.key(shard, n)
            members = read(self.index, shard, n, self.examples.exts)
            shape = self.shapes[shard] if self.shapes else None
            try:
                return self.examples.make(i, key, members, draws, shape)
            except BadSampleError as error:
                skipped.append(Skipped(self.index.shards[shard], key, str(error)))
        tried = skipped[already:]
        seen = "; ".join(f"{bad.shard} {bad.key}: {bad.reason}" for bad in tried[:3])
        raise RuntimeError(
            f"{len(tried)} samples in a row cannot be used, beginning at sample {i}: {seen}; …"
        )
