"""How do pictures and captions become latents and contexts, with nothing trained?"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from typing import Generic, TypeVar

import torch
from torch import Tensor

from ldm import rng
from ldm.models.codec import Codec
from ldm.models.text.base import TextEncoder
from ldm.training.inpainting import InpaintingSettings, joined
from ldm.types import Conditioning, ImageBatch, LatentBatch, from_levels

T = TypeVar("T")
GROUP, GROUP_PX = 8, 2**16  # pictures that the VAE encodes at once for the cache, and their pixels


class FrozenEncoders:
    """The VAE and the text encoder, outside the state dict, DDP, `.train()` and the optimiser.

    cache_captions, cache_latents: how many encoded captions and pictures to keep in memory (the
    least recently used go first); 0 encodes everything anew. With a cache misses are encoded in
    groups of one size, filled up where there are fewer, so that what a row becomes does not depend
    on the rows beside it: a resumed run, whose cache is empty, goes on bit for bit. inpainting:
    which masks a network that inpaints is trained on; None for any other network.
    """

    def __init__(
        self,
        codec: Codec,
        text: TextEncoder,
        *,
        seed: int,
        cache_captions: int = 0,
        cache_latents: int = 0,
        inpainting: InpaintingSettings | None = None,
    ) -> None:
        self.codec = codec
        self.text = text
        self.seed = seed
        self.inpainting = inpainting
        self.finite: Tensor | None = None
        self._contexts: _Cache[Conditioning] = _Cache(cache_captions)
        self._moments: _Cache[Tensor] = _Cache(cache_latents)
        self._null: Conditioning | None = None

    @torch.no_grad()
    def latents(self, batch: ImageBatch | LatentBatch) -> Tensor:
        """x0 [B,C,h,w] fp32: a fresh draw from the VAE's posterior, keyed by the sample."""
        if isinstance(batch, LatentBatch):
            moments = batch.moments
        else:
            moments = self.moments(batch)
        shape = (moments.shape[1] // 2, *moments.shape[2:])
        x0 = self.codec.latents(moments, rng.normal(self.seed, "vae", batch.index, shape))
        good = torch.isfinite(x0).all()
        self.finite = good if self.finite is None else self.finite & good
        return x0

    @torch.no_grad()
    def moments(self, batch: ImageBatch) -> Tensor:
        """[B,2C,h,w] of the pictures, through the cache when there is one; keyed by their bytes."""
        if not self._moments.size:
            return self.codec.moments(batch.pixels)
        levels = batch.levels.cpu().contiguous().numpy()
        # the shape, too: white pictures of one area have the same bytes
        keys = [(levels.shape[1:], hashlib.blake2b(row).digest()) for row in levels]
        rows = self._moments.rows(keys, lambda rows: self._encoded(batch.levels, rows))
        return torch.cat(rows)

    def _encoded(self, levels: Tensor, rows: Sequence[int]) -> list[Tensor]:
        """Moments [1,2C,h,w] of these rows: half the time of one after the other, on a CPU.

        The size of a group follows from that of the pictures alone.
        """
        size = max(1, min(GROUP, GROUP_PX // (levels.shape[1] * levels.shape[2])))
        found: list[Tensor] = []
        for at in range(0, len(rows), size):
            part = list(rows[at : at + size])
            filled = part + part[-1:] * (size - len(part))
            moments = self.codec.moments(from_levels(levels[filled]))
            found += [row[None].clone() for row in moments[: len(part)]]  # not a view of the group
        return found

    @torch.no_grad()
    def concat(self, batch: ImageBatch | LatentBatch, purpose: str) -> Tensor | None:
        """[B,1+C,h,w] for a network that inpaints: a mask, and the latents of what it leaves.

        purpose: of the masks' keys, so that validation has masks of its own. Raises ValueError for
        latents, of which no part can be hidden.
        """
        if self.inpainting is None:
            return None
        if isinstance(batch, LatentBatch):
            raise ValueError("cached latents cannot be masked; train with data.format=images")
        mask = self.inpainting.masks(batch, self.seed, purpose)  # [B,1,H,W]
        return joined(self.codec, batch, mask, self.seed)

    def conditioning(self, batch: ImageBatch | LatentBatch) -> Conditioning:
        """context [B,L,D] of the batch's captions, from the batch itself when it was cached."""
        if isinstance(batch, LatentBatch) and batch.context is not None:
            return Conditioning(batch.context)
        return self.encode(batch.captions)

    def encode(self, captions: Sequence[str]) -> Conditioning:
        """Captions to context, through the cache when there is one.

        With gradients where the text encoder is trained or adapted, and then without a cache.
        """
        if not self._contexts.size:
            return self.text.encode(list(captions))
        return Conditioning.cat(
            self._contexts.rows(
                captions, lambda rows: [self.text.encode([captions[row]]) for row in rows]
            )
        )

    def null(self) -> Conditioning:
        """The null context [1,L,D], encoded once; each time where the text encoder is trained."""
        if self._null is None or self.text.gradients:
            self._null = self.text.null(1)
        return self._null

    def take_finite(self) -> bool:
        """Whether everything encoded since the last call was finite. A sync point."""
        finite = self.finite is None or bool(self.finite)
        self.finite = None
        return finite

    def to(self, device: torch.device | str) -> FrozenEncoders:
        """Moves both encoders; the caches start anew on the new device."""
        self.codec.to(device)
        self.text.to(device)
        self._contexts.clear()
        self._moments.clear()
        self._null = None
        return self


class _Cache(Generic[T]):
    """The `size` least recently forgotten values."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._kept: OrderedDict[Hashable, T] = OrderedDict()

    def rows(
        self, keys: Sequence[Hashable], make: Callable[[Sequence[int]], Sequence[T]]
    ) -> list[T]:
        """The values of these keys; `make(rows)` gives those of the keys that are missing."""
        first = {key: row for row, key in reversed(list(enumerate(keys))) if key not in self._kept}
        missing = sorted(first.values())
        self._kept.update(zip((keys[row] for row in missing), make(missing), strict=True))
        for key in keys:
            self._kept.move_to_end(key)
        found = [self._kept[key] for key in keys]
        while len(self._kept) > self.size:
            self._kept.popitem(last=False)
        return found

    def clear(self) -> None:
        self._kept.clear()
