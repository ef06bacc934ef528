"""How strongly does the prompt steer, and at which noise levels?"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ldm.sampling.denoiser import Denoise, Denoiser, on_rows
from ldm.types import Conditioning, Denoised, Level


@dataclass(frozen=True, kw_only=True)
class Guidance:
    """Everything that `guided` can be told; all problems are raised at once.

    scale: of classifier-free guidance; 1 is the conditional model alone. rescale: see `rescaled`.
    interval: (low, high) in sigma/alpha, see `within`; None is everywhere. threshold: a share of
    the values, see `thresholded`; None is off. threshold_floor: the bound that clean values keep
    anyway, 1 for pixels; for latents the largest usual |x0|.
    """

    scale: float = 7.5
    rescale: float = 0.0
    interval: tuple[float, float] | None = None
    threshold: float | None = None
    threshold_floor: float = 1.0

    def __post_init__(self) -> None:
        if problems := self.problems():
            raise ValueError("\n".join(problems))

    def problems(self) -> list[str]:
        """What is wrong with the values, one line each."""
        found = []
        if not 0 <= self.scale < math.inf:
            found.append(f"guidance={self.scale}; use 1 (the prompt alone) or more, 7.5 is usual")
        if not 0 <= self.rescale <= 1:
            found.append(f"guidance rescale={self.rescale}; allowed: 0 (off) to 1, 0.7 is usual")
        if self.interval is not None and not _rises(self.interval):
            found.append(
                f"guidance interval={self.interval}; give (low, high) in sigma/alpha with "
                "0 <= low < high, as (0.28, 5.42)"
            )
        if self.threshold is not None and not 0 < self.threshold <= 1:
            found.append(
                f"threshold={self.threshold}; allowed: above 0 to 1, 0.995 is usual; None is off"
            )
        if not 0 < self.threshold_floor < math.inf:
            found.append(
                f"threshold_floor={self.threshold_floor}; use a bound above 0, 1 for pixels"
            )
        return found


def guided(
    denoiser: Denoiser, cond: Conditioning, uncond: Conditioning, guidance: Guidance
) -> Denoise:
    """`cfg` with all that `guidance` says: rescaled, within its interval, thresholded."""
    denoise = cfg(denoiser, cond, uncond, guidance.scale, guidance.rescale)
    if guidance.interval is not None:
        alone = cfg(denoiser, cond, uncond, scale=1.0)
        denoise = within(guidance.interval, denoise, otherwise=alone)
    if guidance.threshold is not None:
        denoise = thresholded(denoise, guidance.threshold, guidance.threshold_floor)
    return denoise


def cfg(
    denoiser: Denoiser,
    cond: Conditioning,
    uncond: Conditioning,
    scale: float,
    rescale: float = 0.0,
) -> Denoise:
    """Ho & Salimans 2022: F = F_uncond + scale (F_cond - F_uncond), in one call on [2B,...].

    F, x0 and eps are affine in each other, so this is the same under every prediction.
    Scale 1 is the conditional model, at half the cost. uncond may hold negative prompts.
    """
    Guidance(scale=scale, rescale=rescale)
    if scale == 1:
        return lambda x, level: denoiser(x, level, cond)
    both = _stacked(uncond, cond)

    def denoise(x: Tensor, level: Level) -> Denoised:
        rows = on_rows(level, x)
        twice = Level(*(torch.cat([value, value]) for value in (rows.t, rows.alpha, rows.sigma)))
        out_uncond, out_cond = denoiser.output(torch.cat([x, x]), twice, both).chunk(2)
        out = out_uncond + scale * (out_cond - out_uncond)
        if rescale > 0:
            out = rescaled(out, out_cond, rescale)
        return denoiser.objective.recover(x, out, rows)

    return denoise


def rescaled(out: Tensor, out_cond: Tensor, share: float) -> Tensor:
    """Lin et al. 2023, eqs. 15-16: out moved by `share` towards the spread of out_cond."""
    axes = tuple(range(1, out.ndim))
    spread = out.std(axes, keepdim=True).clamp(min=torch.finfo(out.dtype).tiny)
    factor = out_cond.std(axes, keepdim=True) / spread
    return out * (share * factor + (1 - share))


def within(interval: tuple[float, float], inside: Denoise, otherwise: Denoise) -> Denoise:
    """Kynkäänniemi et al. 2024, eq. 5: `inside` where low < sigma/alpha <= high.

    sigma/alpha is the paper's sigma and means the same under every schedule; high may be infinite.
    """
    low, high = interval

    def denoise(x: Tensor, level: Level) -> Denoised:
        ratio = level.sigma / level.alpha
        chosen = (ratio > low) & (ratio <= high)
        if bool(chosen.all()):
            return inside(x, level)
        if not bool(chosen.any()):
            return otherwise(x, level)
        one, other = inside(x, level), otherwise(x, level)  # rows at levels of their own
        rows = chosen.to(x.device).reshape(-1, *[1] * (x.ndim - 1))
        return Denoised(torch.where(rows, one.x0, other.x0), torch.where(rows, one.eps, other.eps))

    return denoise


def thresholded(denoise: Denoise, share: float, floor: float = 1.0) -> Denoise:
    """Saharia et al. 2022, section 2.3: x0 clipped to the bound of most of its values, then shrunk.

    The bound is the quantile `share` of a row's |x0|, where it is above `floor`; what it leaves is
    scaled to floor. eps follows, so that x stays alpha x0 + sigma eps.
    """

    def clipped(x: Tensor, level: Level) -> Denoised:
        belief, rows = denoise(x, level), on_rows(level, x).expand(x)
        bound = belief.x0.abs().flatten(1).quantile(share, dim=1).clamp(min=floor)
        bound = bound.reshape(-1, *[1] * (x.ndim - 1))
        x0 = belief.x0.clamp(-bound, bound) * (floor / bound)
        x0 = torch.where(rows.sigma > 0, x0, belief.x0)  # without noise x itself is x0
        ratio = torch.where(rows.sigma > 0, rows.alpha / rows.sigma, 0)
        return Denoised(x0, belief.eps + ratio * (belief.x0 - x0))

    return clipped


def _stacked(uncond: Conditioning, cond: Conditioning) -> Conditioning:
    """Both as one batch, unconditional rows first."""
    problems = []
    for name in ("context", "mask", "concat"):
        a, b = getattr(uncond, name), getattr(cond, name)
        if (a is None) != (b is None):
            lacking = "negative" if a is None else "prompt"
            problems.append(f"the {lacking} side has no {name}, the other has; give both or none")
        elif a is not None and b is not None and a.shape != b.shape:
            problems.append(
                f"{name} is {list(a.shape)} on the negative side and {list(b.shape)} on the "
                "prompt's; give as many rows, and encode both to as many tokens (77-token chunks)"
            )
    if problems:
        raise ValueError("\n".join(problems))
    return Conditioning.cat([uncond, cond])


def _rises(interval: tuple[float, float]) -> bool:
    return len(interval) == 2 and 0 <= interval[0] < interval[1]
