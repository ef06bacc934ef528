"""How well does a model explain one picture with its own caption, with none, and with others?

K noise levels, A other captions, C latent channels, h x w latent size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from ldm import rng
from ldm.images import from_pil
from ldm.pipeline import Pipeline, SamplingOptions
from ldm.pipeline.drawing import Request, concat
from ldm.sampling.denoiser import Denoiser
from ldm.types import Conditioning, Level

SEED = 0
SIDE = 4  # of the small latents by which pictures are compared


@dataclass(frozen=True)
class Explained:
    """losses: [2 + A, K] float64, with the own caption, with none, with each of the others.

    latent: [C * 16] float32, the latents made small.
    """

    losses: Tensor
    latent: Tensor


class Meter:
    """Measures pictures with one model, each by itself: its numbers depend on nothing else.

    bins, draws: K = bins * draws, as `draws` levels lie in each of the equal parts of the time
    range; all pictures have the same levels, so that their losses can be compared.
    """

    def __init__(self, pipe: Pipeline, *, bins: int, draws: int, batch_size: int) -> None:
        self.pipe = pipe
        self.batch_size = batch_size
        place = torch.arange(bins * draws)
        share = (place + rng.uniform(SEED, "suspects-time", place).double()) / len(place)
        schedule = pipe.objective.schedule
        self.level = schedule.at(schedule.training_time(share.float().to(pipe.device)))  # [K]

    @torch.inference_mode()
    def explain(self, number: int, picture: Image.Image, captions: Sequence[str]) -> Explained:
        """captions: the own one first; number: keys the noise, the same for all captions."""
        pipe = self.pipe
        x0 = pipe.parts.latents(from_pil([picture]), tiled=None).float()  # [1,C,h,w]
        told = pipe.text.encode(list(captions))
        cond = Conditioning.cat(
            [told.rows(slice(0, 1)), pipe.text.null(1), told.rows(slice(1, None))]
        )
        levels = len(self.level.t)
        keys = number * levels + torch.arange(levels, device=pipe.device)
        eps = rng.normal(SEED, "suspects-noise", keys, tuple(x0.shape[1:]))  # [K,C,h,w]
        losses = self._losses(x0, eps, cond.to(pipe.device))
        return Explained(losses.cpu(), small_latent(x0)[0].cpu())

    def _losses(self, x0: Tensor, eps: Tensor, cond: Conditioning) -> Tensor:
        """[captions,K] float64: errors of the network's own output, in batches of one size."""
        objective = self.pipe.objective
        levels, count = len(eps), len(eps) * _count(cond)
        x = objective.add_noise(x0, eps, self.level)
        target = objective.target(x0.expand_as(eps), eps, self.level)
        denoiser = Denoiser(self.pipe.parts.model, objective)
        size = min(self.batch_size, count)
        known = self._nothing_known(x0, size)
        errors = []
        for part in torch.arange(count, device=x.device).split(size):
            rows = torch.cat([part, part[-1:].expand(size - len(part))])  # a full batch
            at = rows % levels
            told = replace(cond.rows(rows // levels), concat=known)
            level = Level(*(v[at] for v in (self.level.t, self.level.alpha, self.level.sigma)))
            error = denoiser.output(x[at], level, told) - target[at]
            errors.append(error.double().square().flatten(1).mean(1)[: len(part)])
        return torch.cat(errors).reshape(-1, levels)

    def _nothing_known(self, x0: Tensor, count: int) -> Tensor | None:
        """What an inpainting network is told where everything is drawn anew; None for others."""
        height, width = (side * self.pipe.codec.factor for side in x0.shape[-2:])
        settings = SamplingOptions().settled(self.pipe.defaults)
        return concat(self.pipe.parts, Request(settings=settings, size=(height, width)), count)


def small_latent(x0: Tensor) -> Tensor:
    """[B,C,h,w] -> [B,C*16]: means of a coarse grid, what copies of a picture have in common."""
    return adaptive_avg_pool2d(x0, SIDE).flatten(1)


def _count(cond: Conditioning) -> int:
    assert cond.context is not None  # the request sees to it that the model reads captions
    return len(cond.context)
