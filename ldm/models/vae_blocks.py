"""What are the encoder and the decoder of the autoencoder made of?

B batch, C channels, h x w size, N positions (= h w).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from ldm.models.attention import attend
from ldm.models.layers import Downsample, Upsample, run
from ldm.models.resnet import ResnetBlock

NORM_EPS = 1e-6


class Encoder(nn.Module):
    """Pixels to moments before the 1x1 quant convolution: [B,3,H,W] -> [B,2C,h,w]."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        widths: Sequence[int],
        *,
        layers: int,
        groups: int,
        attention: bool,
        checkpointing: bool,
    ) -> None:
        super().__init__()
        self.checkpointing = checkpointing
        self.conv_in = nn.Conv2d(in_channels, widths[0], 3, padding=1)
        self.down_blocks = nn.ModuleList()
        width = widths[0]
        for level, out in enumerate(widths):
            last = level == len(widths) - 1
            self.down_blocks.append(DownBlock(width, out, layers, groups=groups, halve=not last))
            width = out
        self.mid_block = MidBlock(width, groups=groups, attention=attention)
        self.conv_norm_out = nn.GroupNorm(groups, width, eps=NORM_EPS)
        self.conv_out = nn.Conv2d(width, out_channels, 3, padding=1)

    def forward(self, pixels: Tensor) -> Tensor:
        h = self.conv_in(pixels)
        for block in self.down_blocks:
            h = run(block, h, checkpointing=self.checkpointing)
        h = run(self.mid_block, h, checkpointing=self.checkpointing)
        return self.conv_out(F.silu(self.conv_norm_out(h)))


class Decoder(nn.Module):
    """Latents after the 1x1 post-quant convolution to pixels: [B,C,h,w] -> [B,3,H,W]."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        widths: Sequence[int],
        *,
        layers: int,
        groups: int,
        attention: bool,
        checkpointing: bool,
    ) -> None:
        super().__init__()
        self.checkpointing = checkpointing
        width = widths[-1]
        self.conv_in = nn.Conv2d(in_channels, width, 3, padding=1)
        self.mid_block = MidBlock(width, groups=groups, attention=attention)
        self.up_blocks = nn.ModuleList()
        for level, out in enumerate(reversed(widths)):
            last = level == len(widths) - 1
            self.up_blocks.append(UpBlock(width, out, layers + 1, groups=groups, double=not last))
            width = out
        self.conv_norm_out = nn.GroupNorm(groups, width, eps=NORM_EPS)
        self.conv_out = nn.Conv2d(width, out_channels, 3, padding=1)

    def forward(self, z: Tensor) -> Tensor:
        h = run(self.mid_block, self.conv_in(z), checkpointing=self.checkpointing)
        for block in self.up_blocks:
            h = run(block, h, checkpointing=self.checkpointing)
        return self.conv_out(F.silu(self.conv_norm_out(h)))


class DownBlock(nn.Module):
    """Residual blocks, then half the size (not at the last level)."""

    def __init__(self, width: int, out: int, layers: int, *, groups: int, halve: bool) -> None:
        super().__init__()
        self.resnets = _resnets(width, out, layers, groups)
        self.downsamplers = nn.ModuleList([Downsample(out, asymmetric=True)] if halve else [])

    def forward(self, h: Tensor) -> Tensor:
        for resnet in self.resnets:
            h = resnet(h)
        for downsample in self.downsamplers:
            h = downsample(h)
        return h


class UpBlock(nn.Module):
    """Residual blocks, then twice the size (not at the last level)."""

    def __init__(self, width: int, out: int, layers: int, *, groups: int, double: bool) -> None:
        super().__init__()
        self.resnets = _resnets(width, out, layers, groups)
        self.upsamplers = nn.ModuleList([Upsample(out)] if double else [])

    def forward(self, h: Tensor) -> Tensor:
        for resnet in self.resnets:
            h = resnet(h)
        for upsample in self.upsamplers:
            h = upsample(h)
        return h


class MidBlock(nn.Module):
    """Residual block, attention over all positions (optional), residual block."""

    def __init__(self, width: int, *, groups: int, attention: bool) -> None:
        super().__init__()
        self.resnets = _resnets(width, width, 2, groups)
        self.attentions = nn.ModuleList([PixelAttention(width, groups)] if attention else [])

    def forward(self, h: Tensor) -> Tensor:
        first, second = self.resnets
        h = first(h)
        for attention in self.attentions:
            h = attention(h)
        return second(h)


class PixelAttention(nn.Module):
    """Single-head self-attention over positions, with its own norm and skip: [B,C,h,w] -> same."""

    def __init__(self, width: int, groups: int) -> None:
        super().__init__()
        self.group_norm = nn.GroupNorm(groups, width, eps=NORM_EPS)
        self.to_q = nn.Linear(width, width)
        self.to_k = nn.Linear(width, width)
        self.to_v = nn.Linear(width, width)
        self.to_out = nn.Sequential(nn.Linear(width, width))

    def forward(self, x: Tensor) -> Tensor:
        h_BNC = self.group_norm(x).flatten(2).transpose(1, 2)
        q_BNC, k_BNC, v_BNC = self.to_q(h_BNC), self.to_k(h_BNC), self.to_v(h_BNC)
        out_BNC = self.to_out(attend(q_BNC, k_BNC, v_BNC, heads=1))
        return x + out_BNC.transpose(1, 2).reshape(x.shape)


def _resnets(width: int, out: int, layers: int, groups: int) -> nn.ModuleList:
    return nn.ModuleList(
        ResnetBlock(width if i == 0 else out, out, groups=groups, eps=NORM_EPS)
        for i in range(layers)
    )
