"""Which patches of a picture look real?

Isola et al. 2017 ("pix2pix"), sec. 3.2.2 and 6.1.2: the discriminator of VQGAN (Esser et al. 2021)
and of the published KL autoencoders. B batch, H x W picture, h x w patches.
"""

from __future__ import annotations

import math

from torch import Tensor, nn


class PatchDiscriminator(nn.Module):
    """Convolutions alone: [B,3,H,W] -> logits [B,1,h,w], each of a 70 x 70 patch (3 layers).

    Group norm (Wu & He 2018) stands where the paper has batch norm, with the same parameters: what
    a picture is worth must not depend on those it shares a micro-batch with, or a run would be
    another one with other devices or accumulation.
    """

    def __init__(self, *, channels: int = 3, width: int = 64, layers: int = 3) -> None:
        """layers: with stride 2; each doubles the width, up to 8 times."""
        super().__init__()
        self.layers = layers
        stages: list[nn.Module] = [nn.Conv2d(channels, width, 4, 2, 1), nn.LeakyReLU(0.2)]
        now = width
        for number in range(1, layers + 1):
            out, stride = width * min(2**number, 8), 2 if number < layers else 1
            stages.append(nn.Conv2d(now, out, 4, stride, 1, bias=False))
            stages += [nn.GroupNorm(math.gcd(32, out), out), nn.LeakyReLU(0.2)]
            now = out
        stages.append(nn.Conv2d(now, 1, 4, 1, 1))
        self.main = nn.Sequential(*stages)
        for module in self.main:
            if isinstance(module, nn.Conv2d):  # of the paper, sec. 6.2
                nn.init.normal_(module.weight, 0.0, 0.02)

    @property
    def smallest(self) -> int:
        """px of the smallest picture that gives a logit."""
        return 3 * 2**self.layers

    def forward(self, pixels: Tensor) -> Tensor:
        return self.main(pixels)
