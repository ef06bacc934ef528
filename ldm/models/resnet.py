"""What is a residual block?

B batch, C channels, h x w size, T width of the time embedding.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from ldm.models.conv import Conv3x3


class ResnetBlock(nn.Module):
    """norm, SiLU, conv, (+ time), norm, SiLU, dropout, conv, + skip: [B,C,h,w] -> [B,C',h,w].

    forward takes `time` [B,T] *after* its SiLU: every block needs the same activation of it, so the
    network computes it once. time_width None: a block that knows no time (the autoencoder).
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        groups: int,
        eps: float,
        time_width: int | None = None,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(groups, in_channels, eps=eps)
        self.conv1 = Conv3x3(in_channels, out_channels)
        self.time_emb_proj = None if time_width is None else nn.Linear(time_width, out_channels)
        self.norm2 = nn.GroupNorm(groups, out_channels, eps=eps)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = Conv3x3(out_channels, out_channels)
        change = in_channels != out_channels
        self.conv_shortcut = nn.Conv2d(in_channels, out_channels, 1) if change else None

    def forward(self, x: Tensor, time: Tensor | None = None) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        if self.time_emb_proj is not None:
            h = h + self.time_emb_proj(time)[:, :, None, None]
        h = self.conv2(self.dropout(F.silu(self.norm2(h))))
        return h + (x if self.conv_shortcut is None else self.conv_shortcut(x))
