"""How do conditioning and noise become latents, from nothing or from a picture?"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from ldm.diffusion.objective import Objective
from ldm.models.prepared import PreparedUNet, prepared
from ldm.pipeline.noise import Noise
from ldm.pipeline.options import Settings
from ldm.sampling.denoiser import Denoise, Denoiser
from ldm.sampling.edits import inpaint
from ldm.sampling.guidance import guided
from ldm.sampling.levels import Levels
from ldm.sampling.presets import Sampler, get_sampler
from ldm.sampling.solvers import ddim
from ldm.sampling.solvers.moves import OnStep
from ldm.types import Conditioning

PREPARED_FROM = 10  # steps: preparing a network costs what it saves in about 5


@dataclass(frozen=True)
class Source:
    """What pictures are made from beside noise; nothing of it is used where strength is 1.

    x0: clean latents [B,C,h,w]. strength: the share of the steps that are taken. mask: [B,1,h,w],
    1 is drawn anew and 0 kept exactly (strength 1 keeps it as well); None: all may change.
    """

    x0: Tensor
    strength: float
    mask: Tensor | None = None


@dataclass(frozen=True)
class Model:
    """A network in its own dtype, with what it was trained for.

    prepare: whether the network may be made ready for the many calls of one sampling, on a CPU,
    where it pays; ready: it is, and the latents are to be brought into this dtype for it.
    """

    unet: nn.Module | PreparedUNet
    objective: Objective
    prepare: bool = True
    ready: torch.dtype | None = None

    @property
    def dtype(self) -> torch.dtype:
        if self.ready is not None:
            return self.ready
        return next(self.unet.parameters()).dtype  # type: ignore[union-attr]

    def project(self, context: Tensor, mask: Tensor | None) -> Any:
        """As UNet.project."""
        return self.unet.project(context.to(self.dtype), mask)  # type: ignore[operator]

    def __call__(
        self, x: Tensor, t: Tensor, context: Any = None, mask: Tensor | None = None
    ) -> Tensor:
        """Latents are float32 from step to step; only the network computes in less."""
        if isinstance(context, Tensor):
            context = context.to(self.dtype)
        out: Tensor = self.unet(x.to(self.dtype), t, context, mask)
        return out

    def denoise(
        self, cond: Conditioning, uncond: Conditioning, settings: Settings, *, steps: int
    ) -> Denoise:
        """With guidance; made anew for each batch, so what is prepared is never out of date."""
        model = self._ready() if self.prepare and steps >= PREPARED_FROM else self
        return guided(Denoiser(model, self.objective), cond, uncond, settings.guidance)

    def _ready(self) -> Model:
        if isinstance(self.unet, PreparedUNet):
            return self
        return replace(self, unet=prepared(self.unet), ready=self.dtype)

    def levels(self, settings: Settings) -> tuple[Sampler, Levels]:
        """The sampler and its levels, from much noise to little."""
        sampler = get_sampler(settings.sampler, settings.grid)
        return sampler, sampler.grid(self.objective.schedule, steps=settings.steps)


def solve(
    model: Model,
    cond: Conditioning,
    uncond: Conditioning,
    noise: Noise,
    settings: Settings,
    *,
    source: Source | None = None,
    start: Tensor | None = None,
    on_step: OnStep | None = None,
) -> Tensor:
    """x0 [B,C,h,w]. start: latents at the sampler's first level, instead of noise."""
    sampler, levels = model.levels(settings)
    eps = noise.start()
    x = sampler.start(eps, levels) if start is None else start
    if source is not None and source.strength < 1:
        levels = levels.truncate(source.strength)
        if levels.steps == 0:
            return source.x0
        first = levels.at(0)
        x = first.alpha * source.x0 + first.sigma * eps
    denoise = model.denoise(cond, uncond, settings, steps=levels.steps)
    mask = None if source is None else source.mask
    if source is None or mask is None:
        return sampler.solve(
            denoise, x, levels, eta=settings.eta, noise=noise.step, on_step=on_step
        )
    denoise = inpaint(denoise, source.x0, mask, eps)
    x0 = sampler.solve(denoise, x, levels, eta=settings.eta, noise=noise.step, on_step=on_step)
    return torch.where(mask > 0, x0, source.x0)  # the last level may hold a little noise


def invert(model: Model, cond: Conditioning, x0: Tensor, settings: Settings) -> Tensor:
    """Song et al. 2021, section 4.3: DDIM from little noise to much. -> x at the first level.

    Without guidance, which the way back could not undo.
    """
    plain = replace(settings, guidance=replace(settings.guidance, scale=1.0))
    _, levels = model.levels(settings)
    denoise = model.denoise(cond, cond, plain, steps=levels.steps)
    return ddim(denoise, x0, levels.reversed())


def watched_steps(model: Model, settings: Settings, source: Source | None, count: int) -> list[int]:
    """Which steps to look at: `count` of them, evenly, the first and the last among them."""
    _, levels = model.levels(settings)
    if source is not None:
        levels = levels.truncate(source.strength)
    last = levels.steps - 1
    if count > last:
        return list(range(last + 1))
    return [round(last - i * last / max(count - 1, 1)) for i in reversed(range(count))]
