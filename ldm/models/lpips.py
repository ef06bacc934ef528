"""How different do two pictures look?

Zhang et al. 2018, "The Unreasonable Effectiveness of Deep Features as a Perceptual Metric" (LPIPS),
on the features of VGG16 (Simonyan & Zisserman 2014). B batch, C channels, h x w size.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

WIDTHS = (64, 128, 256, 512, 512)  # of VGG16's five blocks
DEPTHS = (2, 2, 3, 3, 3)  # convolutions in each
# of the paper's code: pictures in [-1,1] to what VGG16 was trained on
SHIFT = (-0.030, -0.088, -0.188)
SCALE = (0.458, 0.448, 0.450)


class LPIPS(nn.Module):
    """Eq. 1 of the paper: weighted squared distances of unit-length features of five layers.

    `features` is numbered as in torchvision's vgg16. Inputs [B,3,H,W] in [-1,1] of 16 px or more,
    output [B] fp32, 0 for equal pictures.
    """

    shift: Tensor
    scale: Tensor

    def __init__(self, widths: Sequence[int] = WIDTHS) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        self.taps: list[int] = []
        width = 3
        for block, (out, depth) in enumerate(zip(widths, DEPTHS, strict=True)):
            if block:
                layers.append(nn.MaxPool2d(2))
            for _ in range(depth):
                layers += [nn.Conv2d(width, out, 3, padding=1), nn.ReLU(inplace=True)]
                width = out
            self.taps.append(len(layers) - 1)
        self.features = nn.Sequential(*layers)
        self.heads = nn.ModuleList(nn.Conv2d(c, 1, 1, bias=False) for c in widths)
        self.register_buffer("shift", torch.tensor(SHIFT)[:, None, None], persistent=False)
        self.register_buffer("scale", torch.tensor(SCALE)[:, None, None], persistent=False)

    def forward(self, one: Tensor, other: Tensor) -> Tensor:
        layers = zip(self.unit_features(one), self.unit_features(other), self.heads, strict=True)
        distances = [  # each [B,h,w], at the layer's own size
            ((a - b).square() * head.weight.float()[0]).sum(1) for a, b, head in layers
        ]
        return torch.stack([d.flatten(1).mean(1) for d in distances]).sum(0)

    def unit_features(self, pixels: Tensor) -> list[Tensor]:
        """[B,C,h,w] fp32 of the five layers, of length 1 along C."""
        found = []
        x = (pixels - self.shift) / self.scale
        for number, layer in enumerate(self.features):
            x = layer(x)
            if number in self.taps:
                found.append(F.normalize(x.float(), dim=1, eps=1e-10))
        return found
