"""How do the rest of the program and an autoencoder talk: which dtype, which scale?

B batch, C latent channels, H x W image size, h x w latent size.
"""

from __future__ import annotations

from typing import Self

import torch
from torch import Tensor

from ldm.models.vae import Autoencoder, ForeignVAE, sample_moments


class Codec:
    """An autoencoder with the one number that scales its latents (x0 = scale * z).

    The autoencoder runs in its own dtype with autocast off: under bf16 or fp16 autocast its wide
    activations lose the picture or overflow. Everything that comes out is fp32.
    """

    def __init__(self, vae: Autoencoder, scale: float) -> None:
        if not scale > 0:
            raise ValueError(f"scale={scale}; give a positive number (0.18215 for SD 1 and 2)")
        self.vae = vae
        self.scale = float(scale)
        self.latent_channels = vae.latent_channels
        self.factor = vae.factor

    @property
    def dtype(self) -> torch.dtype:
        """What the autoencoder computes in (fp32 when it has no weights)."""
        return next((p.dtype for p in self.vae.parameters()), torch.float32)

    def problems(self) -> list[str]:
        """Why it makes no pixels of latents."""
        return [self.vae.MISSING] if isinstance(self.vae, ForeignVAE) else []

    def moments(self, pixels: Tensor) -> Tensor:
        """Pixels [B,3,H,W] in [-1,1] to moments [B,2C,h,w] fp32, not scaled."""
        with torch.autocast(pixels.device.type, enabled=False):
            return self.vae.encode(pixels.to(self.dtype)).float()

    def latents(self, moments: Tensor, noise: Tensor) -> Tensor:
        """Moments [B,2C,h,w] and normals [B,C,h,w] to x0 [B,C,h,w] fp32."""
        return sample_moments(moments.float(), noise.float()) * self.scale

    def decode(self, x0: Tensor) -> Tensor:
        """x0 [B,C,h,w] to pixels [B,3,H,W] fp32 around [-1,1], not clamped."""
        z = x0.float() / self.scale
        with torch.autocast(z.device.type, enabled=False):
            return self.vae.decode(z.to(self.dtype)).float()

    def to(self, device: torch.device | str) -> Self:
        """Move the autoencoder; the same codec."""
        self.vae.to(device)
        return self
