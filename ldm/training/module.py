"""How is the diffusion network trained on one batch?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from ldm import rng
from ldm.adapters.attach import Adapter
from ldm.diffusion.objective import Objective
from ldm.training.base import Batch, TrainedModule
from ldm.training.capabilities import in_a_line
from ldm.training.compiling import compile_in_place
from ldm.training.dropout import drop_context
from ldm.training.encoders import FrozenEncoders
from ldm.training.optim import OptimSettings
from ldm.training.plan import Plan
from ldm.training.prior import PriorLoss
from ldm.training.support import COMPILE, Fallback
from ldm.types import Conditioning, Level

NUM_BINS = 10


class DiffusionModule(TrainedModule):
    """Ho et al. 2020 in the latents of Rombach et al. 2022: design.md, "A training example".

    The encoders are a plain object, not a submodule; the network is `self.unet`.
    """

    def __init__(
        self,
        unet: nn.Module,
        encoders: FrozenEncoders,
        objective: Objective,
        *,
        plan: Plan,
        optim: OptimSettings,
        seed: int,
        card: dict[str, Any],
        caption_dropout: float,
        gradient_clip: float | None,
        ema_half_life: float | None,
        channels_last: bool = False,
        compile: bool = False,
        adapters: Mapping[str, Adapter] | None = None,
        train: Sequence[str] = ("unet",),
        prior: PriorLoss | None = None,
    ) -> None:
        """adapters: attached already, by `unet` or `text`; train: whose own weights are trained.

        prior: how rows are weighted when some of them are class pictures; None: all alike.
        """
        networks = [unet, *(adapters or {}).values()]
        networks += [encoders.text.module] if "text" in train else []
        has_dropout = any(
            isinstance(m, nn.Dropout) and m.p > 0 for net in networks for m in net.modules()
        )
        super().__init__(
            plan=plan,
            optim=optim,
            seed=seed,
            card=card,
            gradient_clip=gradient_clip,
            has_dropout=has_dropout,
        )
        memory_format = torch.channels_last if channels_last else torch.contiguous_format
        self.unet = unet.to(memory_format=memory_format)  # type: ignore[call-overload]
        self.adapters = nn.ModuleDict(adapters)
        self.encoders = encoders
        self.objective = objective
        self.caption_dropout = caption_dropout
        self.prior = prior
        self._memory_format = memory_format
        self._compile = compile
        self._choose_trained(train)
        self.start_ema(ema_half_life)

    def _choose_trained(self, train: Sequence[str]) -> None:
        """Gradients for what is trained alone; a text encoder that is becomes a submodule."""
        if "unet" not in train:
            self.unet.requires_grad_(False)
        if "text" in train:  # its gradients are allowed by who built it (app/adapting.py)
            self.text = self.encoders.text.module

    @property
    def validation_names(self) -> tuple[str, ...]:
        return ("loss", *(f"loss/t{number}" for number in range(NUM_BINS)))

    def extra_metrics(self) -> dict[str, float]:
        finite = self.encoders.take_finite()
        if not finite and self.plan.nonfinite == "raise":
            raise RuntimeError(
                "the VAE gave latents that are not finite since the last log line; run it in fp32 "
                "or bf16 (models.vae_dtype), and check the pictures of the data set"
            )
        return {**super().extra_metrics(), "captions_cut": float(self.encoders.text.truncated)}

    def configure_model(self) -> None:
        if self._compile and all(one["key"] != COMPILE for one in self.fallbacks):
            compile_in_place(self.unet, self._not_compiled)

    def _not_compiled(self, error: Exception) -> None:
        self.fall_back(Fallback(COMPILE, True, False, f"the compiler: {in_a_line(error)}"))

    def setup(self, stage: str) -> None:
        super().setup(stage)
        self.encoders.to(self.device)

    def batch_loss(self, batch: Batch, batch_number: int) -> dict[str, Tensor]:
        x0 = self.encoders.latents(batch)  # [B,C,h,w]
        cond = self.encoders.conditioning(batch)  # [B,L,D]
        cond = replace(self._drop(cond, batch.index), concat=self.encoders.concat(batch, "mask"))
        t = self._times(batch.index, batch_number)  # [B]
        eps = self._noise(x0, batch.index)
        losses = self.losses(x0, eps, self.objective.schedule.at(t), cond, batch.index)
        self.note(batch, losses=losses, t=t, latents=x0, context=cond.context)
        if self.prior is None:
            return {"loss": losses.mean()}
        size = self.plan.batch_size
        return self.prior(losses, batch.index, batch_number=batch_number, batch_size=size)

    def losses(
        self, x0: Tensor, eps: Tensor, level: Level, cond: Conditioning, index: Tensor
    ) -> Tensor:
        """The objective's loss of every row, [B] fp32."""
        shape = tuple(x0.shape[1:])
        shown = eps
        if self.training and self.objective.input_perturbation:
            extra = rng.normal(self.seed, "perturbation", index, shape)
            shown = self.objective.perturbed(eps, extra)
        x = self.objective.add_noise(x0, shown, level)
        return self.objective.loss(self._network(x, level, cond), x0, eps, level)

    def _network(self, x: Tensor, level: Level, cond: Conditioning) -> Tensor:
        net_input = self.objective.net_input(x, level)
        if cond.concat is not None:
            net_input = torch.cat([net_input, cond.concat], dim=1)
        net_input = net_input.contiguous(memory_format=self._memory_format)
        return self.unet(net_input, self.objective.net_time(level), cond.context, cond.mask)

    def _drop(self, cond: Conditioning, index: Tensor) -> Conditioning:
        if not self.caption_dropout:
            return cond
        mask = rng.uniform(self.seed, "caption-dropout", index) < self.caption_dropout
        return drop_context(cond, self.encoders.null(), mask)

    def _times(self, index: Tensor, batch_number: int) -> Tensor:
        """t [B]; place: where pi_k puts each sample of global batch k, the same on all ranks."""
        size = self.plan.batch_size
        order = rng.permutation(self.seed, "place", batch_number, size).to(index.device)
        u = rng.uniform(self.seed, "time", index)
        return self.objective.times.sample(u, order[index % size], size, self.objective.schedule)

    def _noise(self, x0: Tensor, index: Tensor) -> Tensor:
        shape = tuple(x0.shape[1:])
        eps = rng.normal(self.seed, "noise", index, shape)
        if self.objective.offset_noise:
            offset = rng.normal(self.seed, "offset", index, (shape[0], 1, 1))
            eps = self.objective.shaped_noise(eps, offset)
        return eps

    @torch.no_grad()
    def validation_losses(self, batch: Batch, total: int) -> dict[str, Tensor]:
        """Plain MSE on the network's output at a time fixed by the sample's index alone.

        `loss` [B] and `bin` [B]: which tenth of the time range the row's t lies in.
        """
        x0 = self.encoders.latents(batch)
        cond = self.encoders.conditioning(batch)
        cond = replace(cond, concat=self.encoders.concat(batch, "val-mask"))
        place = rng.permutation(self.seed, "val-place", 0, total).to(batch.index.device)
        fraction = (
            place[batch.index % total] + rng.uniform(self.seed, "val-time", batch.index)
        ) / total
        level = self.objective.schedule.at(self.objective.schedule.training_time(fraction))
        eps = rng.normal(self.seed, "val-noise", batch.index, tuple(x0.shape[1:]))
        x = self.objective.add_noise(x0, eps, level)
        out = self._network(x, level, cond).float()
        error = (out - self.objective.target(x0, eps, level)).square().flatten(1).mean(1)
        return {"loss": error, "bin": (fraction * NUM_BINS).long().clamp(max=NUM_BINS - 1)}
