"""What are the levels of the UNet made of?

B batch, C channels, h x w size, T width of the time embedding, M text positions, D context width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ldm.models.attention import SpatialTransformer, TextKeys
from ldm.models.layers import Downsample, Upsample, run
from ldm.models.resnet import ResnetBlock


@dataclass(frozen=True, kw_only=True)
class LevelShape:
    """What the blocks of one level share. depth 0: no attention at this level."""

    time_width: int
    context_width: int | None
    groups: int
    heads: int
    depth: int
    linear: bool
    upcast: bool
    dropout: float
    checkpointing: bool

    def resnet(self, in_channels: int, out_channels: int) -> ResnetBlock:
        return ResnetBlock(
            in_channels,
            out_channels,
            groups=self.groups,
            eps=1e-5,
            time_width=self.time_width,
            dropout=self.dropout,
        )

    def attention(self, width: int) -> SpatialTransformer:
        return SpatialTransformer(
            width,
            heads=self.heads,
            depth=self.depth,
            context_width=self.context_width,
            groups=self.groups,
            linear=self.linear,
            dropout=self.dropout,
            upcast=self.upcast,
        )

    def attentions(self, width: int, count: int) -> nn.ModuleList:
        return nn.ModuleList(self.attention(width) for _ in range(count if self.depth else 0))


@dataclass(frozen=True)
class Condition:
    """What every block of one forward is told.

    time [B,T] after its SiLU; context [B,M,D], or its keys and values; bias [B,1,1,M].
    """

    time: Tensor
    context: Tensor | TextKeys | None
    bias: Tensor | None


class _Pairs(nn.Module):
    """Residual blocks, each followed by attention where the level has it."""

    resnets: nn.ModuleList
    attentions: nn.ModuleList
    checkpointing: bool

    def pair(self, index: int, h: Tensor, cond: Condition) -> Tensor:
        h = run(self.resnets[index], h, cond.time, checkpointing=self.checkpointing)
        if not self.attentions:
            return h
        inputs = (h, cond.context, cond.bias)
        return run(self.attentions[index], *inputs, checkpointing=self.checkpointing)


class DownBlock(_Pairs):
    """Pairs, then half the size (not at the last level); every result is kept as a skip."""

    def __init__(
        self, in_width: int, width: int, layers: int, level: LevelShape, halve: bool
    ) -> None:
        super().__init__()
        self.checkpointing = level.checkpointing
        self.resnets = nn.ModuleList(
            level.resnet(in_width if i == 0 else width, width) for i in range(layers)
        )
        self.attentions = level.attentions(width, layers)
        self.downsamplers = nn.ModuleList([Downsample(width)] if halve else [])

    def forward(self, h: Tensor, cond: Condition) -> tuple[Tensor, list[Tensor]]:
        skips = []
        for index in range(len(self.resnets)):
            h = self.pair(index, h, cond)
            skips.append(h)
        for downsample in self.downsamplers:
            h = downsample(h)
            skips.append(h)
        return h, skips


class MidBlock(nn.Module):
    """Residual block, attention, residual block."""

    def __init__(self, width: int, level: LevelShape) -> None:
        super().__init__()
        self.checkpointing = level.checkpointing
        self.resnets = nn.ModuleList(level.resnet(width, width) for _ in range(2))
        self.attentions = nn.ModuleList([level.attention(width)])

    def forward(self, h: Tensor, cond: Condition) -> Tensor:
        first, second = self.resnets
        h = run(first, h, cond.time, checkpointing=self.checkpointing)
        inputs = (h, cond.context, cond.bias)
        h = run(self.attentions[0], *inputs, checkpointing=self.checkpointing)
        return run(second, h, cond.time, checkpointing=self.checkpointing)


class UpBlock(_Pairs):
    """Pairs, each after joining a skip on the channel axis, then up to the size of the next skip.

    skip_widths: channels of the skips in the order in which they are joined.
    """

    def __init__(
        self, in_width: int, width: int, skip_widths: Sequence[int], level: LevelShape, double: bool
    ) -> None:
        super().__init__()
        self.checkpointing = level.checkpointing
        self.resnets = nn.ModuleList(
            level.resnet((in_width if i == 0 else width) + skip, width)
            for i, skip in enumerate(skip_widths)
        )
        self.attentions = level.attentions(width, len(skip_widths))
        self.upsamplers = nn.ModuleList([Upsample(width)] if double else [])

    def forward(
        self, h: Tensor, skips: Sequence[Tensor], cond: Condition, size: tuple[int, int]
    ) -> Tensor:
        for index, skip in enumerate(skips):
            h = self.pair(index, torch.cat((h, skip), dim=1), cond)
        for upsample in self.upsamplers:
            h = upsample(h, size)  # of the next skip: an odd size has no exact double
        return h
