"""What travels between the packages?

B batch, C channels, h x w latent size, H x W image size, L tokens, D context width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from typing import Self, TypeVar

import torch
from torch import Tensor

T = TypeVar("T")


@dataclass(frozen=True)
class Level:
    """One noise level a row: x = alpha x0 + sigma eps. t, alpha, sigma: [B] or scalars, float."""

    t: Tensor
    alpha: Tensor
    sigma: Tensor

    @property
    def snr(self) -> Tensor:
        """Signal-to-noise ratio (alpha/sigma)^2; inf at sigma = 0, 0 at alpha = 0."""
        return (self.alpha / self.sigma) ** 2

    def expand(self, like: Tensor) -> Level:
        """The same level with trailing axes, to multiply `like` [B,...]."""
        tail = (1,) * (like.ndim - 1)
        return Level(
            *(value.reshape(*value.shape, *tail) for value in (self.t, self.alpha, self.sigma))
        )

    def rows(self, batch: int) -> Level:
        """A scalar level repeated for `batch` rows."""
        return Level(*(value.expand(batch) for value in (self.t, self.alpha, self.sigma)))


@dataclass(frozen=True)
class Denoised:
    """What a denoiser believes about x: the clean latents and the noise. Both [B,C,h,w]."""

    x0: Tensor
    eps: Tensor


@dataclass(frozen=True)
class Conditioning:
    """What the network is told beside x and t.

    context: [B,L,D] or None (unconditional); mask: [B,L] bool, True = attend, or None (all);
    concat: [B,C',h,w] latents joined on the channel axis (9-channel inpainting), or None.
    """

    context: Tensor | None = None
    mask: Tensor | None = None
    concat: Tensor | None = None

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Self:
        return _moved(self, device, non_blocking)

    def rows(self, index: Tensor | slice) -> Conditioning:
        """The conditioning of some rows of the batch."""
        return Conditioning(*(None if v is None else v[index] for v in _values(self)))

    @staticmethod
    def cat(parts: Sequence[Conditioning]) -> Conditioning:
        """Parts stacked along the batch; a field must be present in all parts or in none."""
        columns = zip(*(_values(part) for part in parts), strict=True)
        return Conditioning(
            *(None if column[0] is None else torch.cat(column) for column in columns)
        )


@dataclass(frozen=True)
class Skipped:
    """A sample that could not be used, and why; a stand-in took its position."""

    shard: str
    key: str
    reason: str


@dataclass(frozen=True)
class ImageBatch:
    """Decoded pictures. levels: [B,H,W,3] uint8; index: [B] int64 positions in the order.

    original_size and crop: per row (height, width) and (top, left) in px.
    """

    levels: Tensor
    captions: tuple[str, ...]
    keys: tuple[str, ...]
    index: Tensor
    original_size: tuple[tuple[int, int], ...] = ()
    crop: tuple[tuple[int, int], ...] = ()
    skipped: tuple[Skipped, ...] = field(default=())

    @cached_property
    def pixels(self) -> Tensor:
        """[B,3,H,W] fp32 in [-1,1], made where the levels are: bytes travel, not floats."""
        return from_levels(self.levels)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Self:
        return _moved(self, device, non_blocking)

    def pin_memory(self) -> Self:
        return replace(self, levels=self.levels.pin_memory(), index=self.index.pin_memory())

    def __len__(self) -> int:
        return len(self.captions)


@dataclass(frozen=True)
class LatentBatch:
    """Cached encodings. moments: [B,2C,h,w] (mean, logvar); context: [B,L,D] or None."""

    moments: Tensor
    captions: tuple[str, ...]
    keys: tuple[str, ...]
    index: Tensor
    context: Tensor | None = None
    skipped: tuple[Skipped, ...] = field(default=())

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Self:
        return _moved(self, device, non_blocking)

    def pin_memory(self) -> Self:
        context = None if self.context is None else self.context.pin_memory()
        moments, index = self.moments.pin_memory(), self.index.pin_memory()
        return replace(self, moments=moments, index=index, context=context)

    def __len__(self) -> int:
        return len(self.captions)


def from_levels(levels: Tensor) -> Tensor:
    """[B,H,W,3] uint8 -> [B,3,H,W] fp32 in [-1,1]."""
    batch, height, width, channels = levels.shape
    pixels = torch.empty(batch, channels, height, width, device=levels.device)
    # a tensor: by a number a GPU would multiply with its rounded inverse
    half = torch.full((), 127.5, device=levels.device)
    if levels.device.type != "cpu":
        return pixels.copy_(levels.permute(0, 3, 1, 2)).div_(half).sub_(1.0)
    for row, picture in zip(pixels, levels, strict=True):
        # one at a time: a picture stays in the processor's cache between these passes
        row.copy_(picture.permute(2, 0, 1).contiguous()).div_(half).sub_(1.0)
    return pixels


def _values(instance: Conditioning) -> tuple[Tensor | None, ...]:
    return (instance.context, instance.mask, instance.concat)


def _moved(instance: T, device: torch.device | str, non_blocking: bool) -> T:
    tensors = {
        f.name: value.to(device, non_blocking=non_blocking)
        for f in fields(instance)  # type: ignore[arg-type]
        if isinstance(value := getattr(instance, f.name), Tensor)
    }
    return replace(instance, **tensors)  # type: ignore[type-var]
