"""How are pictures decoded that are too large to be decoded at once?

The autoencoder runs on tiles that overlap. What a tile's edge falsifies is left out, the rest of
the overlap is blended. Memory then grows with the tile; what grows with the picture is its pixels.
An autoencoder looks further than the overlap where it normalises (and attends) over all it sees,
so the result differs a little from the whole: docs/modes.md says how much.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ldm.models.codec import Codec

TILE = 96  # latent positions on a side: 768 px at factor 8
OVERLAP = 24
WHOLE = 128 * 128  # latent positions that are decoded at once: 1024 x 1024 px at factor 8


def moments(codec: Codec, pixels: Tensor, *, tiled: bool | None = None) -> Tensor:
    """Pixels [B,3,H,W] to moments [B,2C,h,w]. tiled: None is where the picture is large."""
    factor = codec.factor
    positions = pixels.shape[-2] * pixels.shape[-1] // factor**2
    if not is_tiled(positions, tiled):
        return codec.moments(pixels)
    return in_tiles(codec.moments, pixels, unit_in=factor, unit_out=1)


def decoded(codec: Codec, x0: Tensor, *, tiled: bool | None = None) -> Tensor:
    """Latents x0 [B,C,h,w] to pixels [B,3,H,W]. tiled: None is where the picture is large."""
    if not is_tiled(x0.shape[-2] * x0.shape[-1], tiled):
        return codec.decode(x0)
    return in_tiles(codec.decode, x0, unit_in=1, unit_out=codec.factor)


def is_tiled(positions: int, tiled: bool | None) -> bool:
    """Whether a picture of so many latent positions is cut into tiles."""
    return positions > WHOLE if tiled is None else tiled


def in_tiles(
    run: Callable[[Tensor], Tensor],
    whole: Tensor,
    *,
    unit_in: int,
    unit_out: int,
    tile: int = TILE,
    overlap: int = OVERLAP,
) -> Tensor:
    """`run` on tiles of whole [B,C,...], put together again.

    Tile and overlap are in latent positions; a position is unit_in x unit_in of what comes in and
    unit_out x unit_out of what goes out.
    """
    height, width = whole.shape[-2] // unit_in, whole.shape[-1] // unit_in
    total: Tensor | None = None
    weights = whole.new_zeros(height * unit_out, width * unit_out, dtype=torch.float32)
    for top in starts(height, tile, overlap):
        for left in starts(width, tile, overlap):
            bottom, right = min(top + tile, height), min(left + tile, width)
            part = run(
                whole[..., top * unit_in : bottom * unit_in, left * unit_in : right * unit_in]
            ).float()
            if total is None:
                total = part.new_zeros(*part.shape[:2], *weights.shape)
            share = torch.outer(
                _ramp(top, bottom, height, overlap, unit_out),
                _ramp(left, right, width, overlap, unit_out),
            ).to(part.device)
            rows = slice(top * unit_out, bottom * unit_out)
            columns = slice(left * unit_out, right * unit_out)
            total[..., rows, columns] += part * share
            weights[rows, columns] += share
    assert total is not None
    return total / weights


def starts(length: int, tile: int, overlap: int) -> list[int]:
    """Where tiles begin on one side: the last one ends at its end, so all are equally large."""
    if length <= tile:
        return [0]
    return [*range(0, length - tile, tile - overlap), length - tile]


def _ramp(start: int, end: int, length: int, overlap: int, unit: int) -> Tensor:
    """Weights [(end - start) * unit] of a tile on one side: up and down in its overlaps.

    The outer quarter of an overlap counts nothing: there the tile's own edge shows.
    """
    size, over = (end - start) * unit, overlap * unit
    dead = over // 4
    steps = ((torch.arange(size) + 0.5 - dead) / max(over - 2 * dead, 1)).clamp(0, 1)
    one = torch.ones(size)
    rising = one if start == 0 else steps
    falling = one if end == length else steps.flip(0)
    return torch.minimum(rising, falling)
