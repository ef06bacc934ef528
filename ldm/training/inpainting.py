"""What is a network that inpaints told beside the noisy latents while it is trained?

B rows, C latent channels, h x w latent size, H x W picture size in px.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ldm import rng
from ldm.data.masks import random_masks
from ldm.models.codec import Codec
from ldm.pipeline.inputs import hidden
from ldm.types import ImageBatch


@dataclass(frozen=True, kw_only=True)
class InpaintingSettings:
    """Which masks are trained on. full, boxes: probabilities; strokes take the rest.

    Stable Diffusion hides everything in a quarter of the cases.
    """

    full: float = 0.25
    boxes: float = 0.375

    def problems(self) -> list[str]:
        """Everything wrong with the values, each with what is allowed."""
        found = [
            f"training.inpainting.{name}={value}; allowed: 0 to 1"
            for name, value in (("full", self.full), ("boxes", self.boxes))
            if not 0 <= value <= 1
        ]
        if not found and self.full + self.boxes > 1:
            found.append(
                f"training.inpainting: full={self.full} and boxes={self.boxes} are more than 1 "
                "together; strokes take what they leave"
            )
        return found

    def masks(self, batch: ImageBatch, seed: int, purpose: str) -> Tensor:
        """[B,1,H,W]: 1 is painted anew. Keyed by (seed, purpose, the sample's index)."""
        size = (batch.pixels.shape[2], batch.pixels.shape[3])
        return random_masks(seed, purpose, batch.index, size, full=self.full, boxes=self.boxes)


def joined(codec: Codec, batch: ImageBatch, mask: Tensor, seed: int) -> Tensor:
    """[B,1+C,h,w]: the mask, then the latents of the picture with mid-grey where the mask is 1.

    As Rombach et al.'s inpainting models were trained: the nearest pixel of the mask for a latent
    position (what `pipeline.inputs.mask_latents` does when sampling), and latents drawn from the
    posterior. Sampling takes its mean, which is the middle of what is drawn here.
    mask: [B,1,H,W] of 0 and 1.
    """
    moments = codec.moments(hidden(batch.pixels, mask))  # [B,2C,h,w]
    shape = (moments.shape[1] // 2, *moments.shape[2:])
    kept = codec.latents(moments, rng.normal(seed, "vae-kept", batch.index, shape))
    return torch.cat([F.interpolate(mask, size=shape[1:], mode="nearest"), kept], dim=1)


def inpainting_problems(
    settings: InpaintingSettings | None, *, in_channels: int, latent_channels: int, cached: bool
) -> list[str]:
    """Where network, data and `training.inpainting` (None: not trained to inpaint) do not fit.

    in_channels: of the network; cached: the data are latents.
    """
    wide = 2 * latent_channels + 1
    found = []
    if settings is None and in_channels == wide:
        found.append(
            f"models.unet.in_channels={wide} is a network that inpaints, and nothing says which "
            "masks to train it on; add +training/inpainting=masks, or use "
            f"models.unet.in_channels={latent_channels}"
        )
    elif settings is None and in_channels != latent_channels:
        found.append(
            f"models.unet.in_channels={in_channels}, but the VAE has {latent_channels} latent "
            f"channels; use {latent_channels}, or {wide} to inpaint (+training/inpainting=masks)"
        )
    elif settings is not None and in_channels != wide:
        found.append(
            f"training.inpainting trains a network of {wide} input channels ({latent_channels} "
            f"noisy, 1 mask, {latent_channels} of the masked picture), but "
            f"models.unet.in_channels={in_channels}; use {wide}, with widen=[conv_in] when "
            "init_from has fewer"
        )
    if settings is not None and cached:
        found.append(
            "training.inpainting encodes every picture with another mask at each visit, which "
            "cached latents cannot give; use data.format=images"
        )
    return found
