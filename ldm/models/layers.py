"""Which small parts do the UNet and the autoencoder share?

B batch, C channels, h x w size, T width of the time embedding.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

Item = TypeVar("Item")


def run(module: nn.Module, *inputs: object, checkpointing: bool) -> Tensor:
    """module(*inputs); with checkpointing its activations are computed again in the backward."""
    if checkpointing and torch.is_grad_enabled():
        return checkpoint(module, *inputs, use_reentrant=False)
    return module(*inputs)


def time_features(t: Tensor, width: int) -> Tensor:
    """Ho et al. 2020 (Transformer) features, cosines first: t [B] -> [B,width] fp32."""
    half = width // 2
    exponent = torch.arange(half, dtype=torch.float32, device=t.device) / half
    angle = t.float()[:, None] * torch.exp(-math.log(10_000.0) * exponent)
    return torch.cat((angle.cos(), angle.sin()), dim=-1)


class TimeEmbedding(nn.Module):
    """Two linear layers on the time features: [B,C] -> [B,T]."""

    def __init__(self, in_width: int, width: int) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(in_width, width)
        self.linear_2 = nn.Linear(width, width)

    def forward(self, features: Tensor) -> Tensor:
        return self.linear_2(F.silu(self.linear_1(features)))


class Downsample(nn.Module):
    """A 3x3 convolution of stride 2: [B,C,h,w] -> [B,C,h/2,w/2].

    `asymmetric` pads one row below and one column to the right only, as the KL autoencoders do.
    """

    def __init__(self, channels: int, *, asymmetric: bool = False) -> None:
        super().__init__()
        self.asymmetric = asymmetric
        self.conv = nn.Conv2d(channels, channels, 3, stride=2, padding=0 if asymmetric else 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1)) if self.asymmetric else x)


class Upsample(nn.Module):
    """Nearest neighbour to twice the size (or `size`), then a 3x3 convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor, size: tuple[int, int] | None = None) -> Tensor:
        if size is None:
            return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))
        return self.conv(F.interpolate(x, size=size, mode="nearest"))


def as_tuple(value: Item | Iterable[Item], length: int) -> tuple[Item, ...]:
    """One value for every level, or the values given one by one (YAML has lists)."""
    return tuple(value) if isinstance(value, Iterable) else (value,) * length


def raise_all(owner: str, problems: list[str]) -> None:
    """One error with every problem found in a configuration; nothing when there is none."""
    if problems:
        raise ValueError(f"{owner}: " + "; ".join(problems))


def group_problems(channels: Iterable[int], groups: int) -> list[str]:
    """Why `groups` cannot normalise these channel counts."""
    if groups < 1:
        return [f"norm_num_groups={groups}; give a positive number"]
    odd = sorted({c for c in channels if c < 1 or c % groups})
    if not odd:
        return []
    return [f"block_out_channels has {odd}, not positive multiples of norm_num_groups={groups}"]
