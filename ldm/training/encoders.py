"""How do pictures and captions become latents and contexts, with nothing trained?"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import torch
from torch import Tensor

from ldm import rng
from ldm.models.codec import Codec
from ldm.models.text.base import TextEncoder
from ldm.types import Conditioning, ImageBatch, LatentBatch


class FrozenEncoders:
    """The VAE and the text encoder, outside the state dict, DDP, `.train()` and the optimiser.

    cache_captions: how many encoded captions to keep (least recently used go first); worth it for
    small sets of captions, 0 for none.
    """

    def __init__(
        self, codec: Codec, text: TextEncoder, *, seed: int, cache_captions: int = 0
    ) -> None:
        self.codec = codec
        self.text = text
        self.seed = seed
        self.finite: Tensor | None = None
        self._cache: OrderedDict[str, Conditioning] = OrderedDict()
        self._cache_size = cache_captions
        self._null: Conditioning | None = None

    @torch.no_grad()
    def latents(self, batch: ImageBatch | LatentBatch) -> Tensor:
        """x0 [B,C,h,w] fp32: a fresh draw from the VAE's posterior, keyed by the sample."""
        if isinstance(batch, LatentBatch):
            moments = batch.moments
        else:
            moments = self.codec.moments(batch.pixels)  # [B,3,H,W] -> [B,2C,h,w]
        shape = (moments.shape[1] // 2, *moments.shape[2:])
        x0 = self.codec.latents(moments, rng.normal(self.seed, "vae", batch.index, shape))
        good = torch.isfinite(x0).all()
        self.finite = good if self.finite is None else self.finite & good
        return x0

    @torch.no_grad()
    def conditioning(self, batch: ImageBatch | LatentBatch) -> Conditioning:
        """context [B,L,D] of the batch's captions, from the batch itself when it was cached."""
        if isinstance(batch, LatentBatch) and batch.context is not None:
            return Conditioning(batch.context)
        return self.encode(batch.captions)

    @torch.no_grad()
    def encode(self, captions: Sequence[str]) -> Conditioning:
        """Captions to context, through the cache when there is one."""
        if not self._cache_size:
            return self.text.encode(list(captions))
        missing = [c for c in dict.fromkeys(captions) if c not in self._cache]
        if missing:
            fresh = self.text.encode(missing)
            for row, caption in enumerate(missing):
                self._cache[caption] = fresh.rows(slice(row, row + 1))
        parts = [self._cache[caption] for caption in captions]
        for caption in captions:
            self._cache.move_to_end(caption)
        while len(self._cache) > max(self._cache_size, len(set(captions))):
            self._cache.popitem(last=False)
        return Conditioning.cat(parts)

    @torch.no_grad()
    def null(self) -> Conditioning:
        """The null context [1,L,D], encoded once."""
        if self._null is None:
            self._null = self.text.null(1)
        return self._null

    def take_finite(self) -> bool:
        """Whether everything encoded since the last call was finite. A sync point."""
        finite = self.finite is None or bool(self.finite)
        self.finite = None
        return finite

    def to(self, device: torch.device | str) -> FrozenEncoders:
        """Moves both encoders; the cache starts anew on the new device."""
        self.codec.to(device)
        self.text.to(device)
        self._cache.clear()
        self._null = None
        return self
