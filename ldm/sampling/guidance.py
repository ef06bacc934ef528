"""How strongly does the prompt steer?"""

from __future__ import annotations

import torch
from torch import Tensor

from ldm.sampling.denoiser import Denoise, Denoiser, on_rows
from ldm.types import Conditioning, Denoised, Level


def cfg(
    denoiser: Denoiser,
    cond: Conditioning,
    uncond: Conditioning,
    scale: float,
    rescale: float = 0.0,
) -> Denoise:
    """Ho & Salimans 2022: F = F_uncond + scale (F_cond - F_uncond), in one call on [2B,...].

    F, x0 and eps are affine in each other, so this is the same under every prediction.
    Scale 1 is the conditional model, at half the cost. rescale: see `rescaled`.
    """
    if not 0 <= rescale <= 1:
        raise ValueError(f"guidance rescale={rescale}; allowed: 0 (off) to 1, 0.7 is usual")
    if scale == 1:
        return lambda x, level: denoiser(x, level, cond)
    both = Conditioning.cat([uncond, cond])

    def guided(x: Tensor, level: Level) -> Denoised:
        rows = on_rows(level, x)
        twice = Level(*(torch.cat([value, value]) for value in (rows.t, rows.alpha, rows.sigma)))
        out_uncond, out_cond = denoiser.output(torch.cat([x, x]), twice, both).chunk(2)
        out = out_uncond + scale * (out_cond - out_uncond)
        if rescale > 0:
            out = rescaled(out, out_cond, rescale)
        return denoiser.objective.recover(x, out, rows)

    return guided


def rescaled(out: Tensor, out_cond: Tensor, share: float) -> Tensor:
    """Lin et al. 2023, eqs. 15-16: out moved by `share` towards the spread of out_cond."""
    axes = tuple(range(1, out.ndim))
    spread = out.std(axes, keepdim=True).clamp(min=torch.finfo(out.dtype).tiny)
    factor = out_cond.std(axes, keepdim=True) / spread
    return out * (share * factor + (1 - share))
