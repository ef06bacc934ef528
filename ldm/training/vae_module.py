"""How is the autoencoder trained on one batch?"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ldm import rng
from ldm.io.frozen import VAE_FILE, write_tensors
from ldm.models.patch_discriminator import PatchDiscriminator
from ldm.models.vae import LOGVAR_MAX, LOGVAR_MIN, AutoencoderKL
from ldm.training.base import Batch, TrainedModule
from ldm.training.discriminator import adaptive_weight, hinge_loss, score
from ldm.training.optim import OptimSettings
from ldm.training.perceptual import Perceptual
from ldm.training.plan import Plan
from ldm.training.vae_loss import VAELoss, vae_terms
from ldm.types import ImageBatch

FROZEN = {"all": (), "decoder": ("encoder", "quant_conv")}  # by models.vae_train


class VAEModule(TrainedModule):
    """Kingma & Welling 2014 with the losses of Rombach et al. 2022, sec. 3.1 and app. G.

    One optimiser descends both sides of the GAN in the same step. The gradient of each reaches its
    own weights only and AdamW treats every weight by itself, so it is what two optimisers would do,
    with one count of steps, one course of the rate and one verdict on a broken gradient.
    """

    def __init__(
        self,
        vae: AutoencoderKL,
        loss: VAELoss,
        *,
        perceptual: Perceptual | None = None,
        discriminator: PatchDiscriminator | None = None,
        train: str = "all",
        plan: Plan,
        optim: OptimSettings,
        seed: int,
        card: dict[str, Any],
        gradient_clip: float | None,
        ema_half_life: float | None,
    ) -> None:
        """train: a key of FROZEN. With `decoder` the latents stay as they are, bit for bit."""
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
        self.perceptual = perceptual
        for part in FROZEN[train]:
            vae.get_submodule(part).requires_grad_(False)
        self.start_ema(ema_half_life)
        self.discriminator = discriminator  # after the EMA, which is of what will be used
        self._judging = False
        if discriminator is not None:
            if not vae.decoder.conv_out.weight.requires_grad:
                raise ValueError(
                    "training.vae_loss.gan weighs its gradient by that of vae.decoder.conv_out, "
                    "which training.optim.groups freezes; leave it out of the frozen groups"
                )
            own = {"lr": loss.gan.lr, "betas": loss.gan.betas, "weight_decay": 0.0}
            self.optim = replace(optim, groups={"discriminator.*": own, **optim.groups})

    @property
    def validation_names(self) -> tuple[str, ...]:
        return ("loss", "psnr", *(["perceptual"] if self.perceptual is not None else []))

    def setup(self, stage: str) -> None:
        super().setup(stage)
        if self.perceptual is not None:
            self.perceptual.to(self.device)
        if self.discriminator is not None and self.trainer.precision == "16-mixed":
            raise ValueError(
                "training.vae_loss.gan needs gradients of both sides unscaled, which "
                "training.trainer.precision=16-mixed rounds to zero; use bf16-mixed or 32-true"
            )

    def batch_loss(self, batch: Batch, batch_number: int) -> dict[str, Tensor]:
        pixels, decoded, terms = self._reconstruct(batch, "vae")
        self.note(batch, losses=terms["loss"])
        means = {name: value.mean() for name, value in terms.items()}
        if self.discriminator is None:
            return means
        self._judging = batch_number * self.plan.batch_size >= self.loss.gan.start
        return means | self._judged(self.discriminator, means["loss"], pixels, decoded)

    @torch.no_grad()
    def validation_losses(self, batch: Batch, total: int) -> dict[str, Tensor]:
        """Without the adversarial term, which is no measure: its other side learns too."""
        return self._reconstruct(batch, "val-vae")[2]

    def _reconstruct(self, batch: Batch, purpose: str) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Pixels and what becomes of them, [B,3,H,W] each, and the terms of the loss, [B] each."""
        assert isinstance(batch, ImageBatch)
        pixels = batch.pixels
        mean, logvar = self.vae.encode(pixels).chunk(2, dim=1)  # [B,3,H,W] -> 2 x [B,C,h,w]
        logvar = logvar.clamp(LOGVAR_MIN, LOGVAR_MAX)
        noise = rng.normal(self.seed, purpose, batch.index, tuple(mean.shape[1:]))
        decoded = self.vae.decode(mean + (0.5 * logvar).exp() * noise)
        terms = vae_terms(self.loss, pixels, decoded, (mean, logvar), self.perceptual)
        return pixels, decoded, terms

    # -- the adversarial term -------------------------------------------------------------------

    def _judged(
        self, discriminator: nn.Module, loss: Tensor, pixels: Tensor, decoded: Tensor
    ) -> dict[str, Tensor]:
        """Adds both sides' gradients to `loss`, whose value stays that of the decoder's side."""
        if not self._judging:
            zero = torch.zeros((), device=loss.device)
            idle = torch.stack([p.sum() for p in discriminator.parameters()]).sum()
            names = ("gan", "gan_weight", "discriminator")
            return {"loss": loss + 0 * idle, **dict.fromkeys(names, zero)}  # DDP waits for all
        gan = score(discriminator, decoded)
        weight = self.loss.gan.weight * self._adaptive_weight(loss, gan)
        own = hinge_loss(discriminator(pixels), discriminator(decoded.detach()))
        return {
            "loss": loss + weight * gan + (own - own.detach()),
            "gan": gan,
            "gan_weight": weight,
            "discriminator": own,
        }

    def _adaptive_weight(self, loss: Tensor, gan: Tensor) -> Tensor:
        """Of the micro-batch of all ranks: on each alone it would depend on their number."""
        last = self.vae.decoder.conv_out.weight
        sides = [torch.autograd.grad(term, last, retain_graph=True)[0] for term in (loss, gan)]
        gradients = torch.stack(sides).float()
        if self.plan.world_size > 1:
            gradients = self.trainer.strategy.reduce(gradients, reduce_op="sum")
            gradients = gradients / self.plan.world_size
        return adaptive_weight(*gradients, maximum=self.loss.gan.max_weight)

    def configure_gradient_clipping(
        self, optimizer: torch.optim.Optimizer, *limits: Any, **named_limits: Any
    ) -> None:
        """Clips the discriminator's gradient by its own norm first; drops it while it waits."""
        if self.discriminator is not None:
            own = list(self.discriminator.parameters())
            if not self._judging:  # zeros would count as steps in Adam's moments
                for parameter in own:
                    parameter.grad = None
            elif self._gradient_clip is not None:  # or it would shorten the decoder's
                nn.utils.clip_grad_norm_(own, self._gradient_clip)
        super().configure_gradient_clipping(optimizer, *limits, **named_limits)

    # -- what comes out -------------------------------------------------------------------------

    def on_train_end(self) -> None:
        """vae.safetensors in the run folder, averaged where there is an EMA: what
        models.vae_weights=RUN_DIR takes."""
        averaged = {} if self.ema is None else self.ema.shadows
        if self.trainer.is_global_zero:
            own = {f"vae.{name}": value for name, value in self.vae.state_dict().items()}
            weights = {name.removeprefix("vae."): averaged.get(name, own[name]) for name in own}
            write_tensors(Path(self.trainer.default_root_dir) / VAE_FILE, weights)
