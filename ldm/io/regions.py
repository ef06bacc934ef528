"""How does a tensor get from a file into memory of its own?

By reading its bytes. A mapping of the file would be simpler, but each page of it that was touched
counts as the process's memory: the file and what it was converted to would be held at once.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

from ldm.io.foreign import UnreadableWeights
from ldm.io.pickle_calls import span


@dataclass(frozen=True, slots=True)
class Region:
    """Where a tensor lies. start: byte of its first element; stride: in elements, None when the
    elements lie one after the other."""

    path: Path
    start: int
    dtype: torch.dtype
    shape: tuple[int, ...]
    stride: tuple[int, ...] | None = None

    @property
    def nbytes(self) -> int:
        """Bytes from the first element to the last."""
        elements = math.prod(self.shape) if self.stride is None else span(self.shape, self.stride)
        return elements * self.dtype.itemsize


def converted(region: Region, dtype: torch.dtype | None) -> torch.dtype:
    """What a region is read as when `dtype` is asked for: only floating numbers are converted."""
    return dtype if dtype and region.dtype.is_floating_point else region.dtype


def staging(regions: Iterable[Region], dtype: torch.dtype | None) -> Tensor:
    """uint8 memory for the largest region that cannot be read straight into its tensor."""
    sizes = [r.nbytes for r in regions if not _is_direct(r, converted(r, dtype))]
    return torch.empty(max(sizes, default=0), dtype=torch.uint8)


def read_region(file: BinaryIO, region: Region, dtype: torch.dtype, buffer: Tensor) -> Tensor:
    """The tensor as `dtype`. file: region's, unbuffered; buffer: from `staging`.

    Raises UnreadableWeights when the file ends before the region does.
    """
    if _is_direct(region, dtype):
        into = torch.empty(region.nbytes, dtype=torch.uint8)
        _fill(file, region, into)
        return into.view(dtype).view(region.shape)
    into = buffer[: region.nbytes]
    _fill(file, region, into)
    stored = into.view(region.dtype)
    if region.stride is not None:
        stored = stored.as_strided(region.shape, region.stride)
    return torch.empty(region.shape, dtype=dtype).copy_(stored.view(region.shape))


def is_finite(tensor: Tensor) -> bool:
    """Whether no element of a floating tensor is NaN or infinite."""
    if tensor.dtype.itemsize == 1:  # no arithmetic in 8 bits
        tensor = tensor.float()
    # a sum is not finite if a term is not: one pass, no memory; it may also overflow by itself
    wide = torch.float64 if tensor.dtype == torch.float64 else torch.float32
    if math.isfinite(tensor.sum(dtype=wide)):
        return True
    return bool(torch.isfinite(tensor).all())


def _is_direct(region: Region, dtype: torch.dtype) -> bool:
    return region.stride is None and region.dtype == dtype


def _fill(file: BinaryIO, region: Region, into: Tensor) -> None:
    """Reads as many bytes as `into` [n] has."""
    rest = memoryview(into.numpy())  # type: ignore[arg-type]
    file.seek(region.start)
    while rest:
        count = file.readinto(rest)  # type: ignore[attr-defined]
        if not count:
            raise UnreadableWeights(
                f"{region.path} ends before byte {region.start + region.nbytes:,}: it became "
                "shorter while it was read"
            )
        rest = rest[count:]
