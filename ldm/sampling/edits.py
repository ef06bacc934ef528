"""How is a denoiser changed so that any solver edits an image?"""

from __future__ import annotations

from torch import Tensor

from ldm.sampling.denoiser import Denoise
from ldm.types import Denoised, Level


def inpaint(denoise: Denoise, known: Tensor, mask: Tensor, noise: Tensor) -> Denoise:
    """Believes (x0, eps) = (known, noise) where mask is 0, and the denoiser where it is 1.

    So every solver carries the known region to each level with the same noise. known: clean latents
    [B,C,h,w]; noise: the start noise, same shape; mask: [B,1,h,w] or alike, between 0 and 1.
    """

    def inpainted(x: Tensor, level: Level) -> Denoised:
        belief = denoise(x, level)
        return Denoised(
            x0=mask * belief.x0 + (1 - mask) * known,
            eps=mask * belief.eps + (1 - mask) * noise,
        )

    return inpainted
