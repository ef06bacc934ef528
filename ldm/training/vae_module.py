"""How is the autoencoder trained on one batch?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ldm import rng
from ldm.models.vae import AutoencoderKL
from ldm.training.base import Batch, TrainedModule
from ldm.training.optim import OptimSettings
from ldm.training.plan import Plan
from ldm.types import ImageBatch


@dataclass(frozen=True, kw_only=True)
class VAELoss:
    """Weights of the terms: |d|, d², |gradient of d| and KL to the unit normal, all per pixel."""

    l1: float = 1.0
    l2: float = 1.0
    gradient: float = 0.5
    kl: float = 1e-6


class VAEModule(TrainedModule):
    """Kingma & Welling 2014 with the reconstruction terms of Rombach et al. 2022, sec. 3.1."""

    def __init__(
        self,
        vae: AutoencoderKL,
        loss: VAELoss,
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
        self.vae = vae
        self.loss = loss
        self.start_ema(ema_half_life)

    @property
    def validation_names(self) -> tuple[str, ...]:
        return ("loss", "psnr")

    def batch_loss(self, batch: Batch, batch_number: int) -> dict[str, Tensor]:
        losses = self._losses(batch, "vae")
        self.note(batch, losses=losses["loss"])
        return {name: value.mean() for name, value in losses.items()}

    @torch.no_grad()
    def validation_losses(self, batch: Batch, total: int) -> dict[str, Tensor]:
        return self._losses(batch, "val-vae")

    def _losses(self, batch: Batch, purpose: str) -> dict[str, Tensor]:
        assert isinstance(batch, ImageBatch)
        pixels = batch.pixels
        mean, logvar = self.vae.encode(pixels).chunk(2, dim=1)  # [B,3,H,W] -> 2 x [B,C,h,w]
        logvar = logvar.clamp(-30, 20)
        noise = rng.normal(self.seed, purpose, batch.index, tuple(mean.shape[1:]))
        difference = self.vae.decode(mean + (0.5 * logvar).exp() * noise) - pixels
        kl = 0.5 * (mean.square() + logvar.exp() - 1 - logvar).flatten(1).sum(1)
        kl = kl / pixels[0].numel()
        l1, l2 = _mean(difference.abs()), _mean(difference.square())
        gradient = _mean(difference.diff(dim=2).abs()) + _mean(difference.diff(dim=3).abs())
        weights = self.loss
        loss = weights.l1 * l1 + weights.l2 * l2 + weights.gradient * gradient + weights.kl * kl
        psnr = 10 * torch.log10(4 / l2.detach().clamp(min=1e-10))  # peak to peak is 2
        return {"loss": loss, "l1": l1.detach(), "kl": kl.detach(), "psnr": psnr}


def _mean(value: Tensor) -> Tensor:
    return value.flatten(1).mean(1)
