"""How are a text and an image tower trained to agree?"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ldm.models.text.contrastive import contrastive_loss
from ldm.models.text.tiny_clip import ClipPair
from ldm.training.base import Batch, TrainedModule
from ldm.training.optim import OptimSettings
from ldm.training.plan import Plan
from ldm.types import ImageBatch


class ClipModule(TrainedModule):
    """Radford et al. 2021. The loss is over this rank's micro-batch; train it on one process."""

    def __init__(
        self,
        pair: ClipPair,
        *,
        plan: Plan,
        optim: OptimSettings,
        seed: int,
        card: dict[str, Any],
        gradient_clip: float | None,
        ema_half_life: float | None,
    ) -> None:
        super().__init__(
            plan=plan,
            optim=optim,
            seed=seed,
            card=card,
            gradient_clip=gradient_clip,
            has_dropout=False,
        )
        self.pair = pair
        self.start_ema(ema_half_life)

    @property
    def validation_names(self) -> tuple[str, ...]:
        return ("loss", "top1")

    def batch_loss(self, batch: Batch, batch_number: int) -> dict[str, Tensor]:
        image, text, scale = self._embeddings(batch)
        self.note(batch)  # a contrastive loss is one of the batch, not of a sample
        return {"loss": contrastive_loss(image, text, scale, batch.captions)}

    @torch.no_grad()
    def validation_losses(self, batch: Batch, total: int) -> dict[str, Tensor]:
        """The loss, and retrieval among the captions of the batch."""
        image, text, scale = self._embeddings(batch)
        loss = contrastive_loss(image, text, scale, batch.captions)
        best = (image @ text.T).argmax(1).tolist()
        hits = [batch.captions[j] == batch.captions[i] for i, j in enumerate(best)]
        ones = torch.ones(len(batch), device=image.device)
        return {"loss": loss * ones, "top1": torch.tensor(hits, device=image.device).float()}

    def _embeddings(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        assert isinstance(batch, ImageBatch)
        ids, mask = self.pair.tokenize(batch.captions)
        return self.pair(batch.pixels, ids.to(self.device), mask.to(self.device))
