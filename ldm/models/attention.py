"""How do positions look at each other, and at the text?

B batch, L positions that ask, M positions that are looked at, N heads, D head width, C = N D.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ldm.models.conv import PointwiseConv2d
from ldm.models.plain_attention import HALF, plain_attention, plain_dtype

MASKED = -1e4  # exp(-1e4) is 0 in every dtype; finite, so a row with nothing to look at is no NaN


def attend(
    q_BLC: Tensor,
    k_BMC: Tensor,
    v_BMC: Tensor,
    *,
    heads: int,
    bias: Tensor | None = None,
    upcast: bool = False,
) -> Tensor:
    """softmax(q k / sqrt(D) + bias) v, per head. bias [B,1,1,M] is added to the scores."""
    plain = plain_dtype(q_BLC, k_BMC, v_BMC, upcast=upcast)
    if plain is not None:
        return plain_attention(q_BLC, k_BMC, v_BMC, heads=heads, bias=bias, dtype=plain)
    q_BNLD, k_BNMD, v_BNMD = (
        x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (q_BLC, k_BMC, v_BMC)
    )
    if upcast or _slow_backward(q_BLC, k_BMC, v_BMC):
        out_BNLD = _attend_fp32(q_BNLD, k_BNMD, v_BNMD, bias).to(q_BLC.dtype)
    else:
        bias = None if bias is None else bias.to(q_BLC.dtype)
        out_BNLD = F.scaled_dot_product_attention(q_BNLD, k_BNMD, v_BNMD, bias)
    return out_BNLD.transpose(1, 2).flatten(2)


def _slow_backward(q: Tensor, k: Tensor, v: Tensor) -> bool:
    """Half precision in training on a CPU, where fp32 attention is faster as well as exacter.

    Forward + backward on 2 cores, bf16 against fp32 with its casts: 138 and 75 ms for 4 rows of
    1,024 positions in 8 heads (torch 2.13).
    """
    needs_grad = q.requires_grad or k.requires_grad or v.requires_grad
    return needs_grad and q.dtype in HALF and q.device.type == "cpu"


def _attend_fp32(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Tensor:
    dtype = torch.promote_types(q.dtype, torch.float32)
    bias = None if bias is None else bias.to(dtype)
    with torch.autocast(q.device.type, enabled=False):  # it would cast them back
        return F.scaled_dot_product_attention(q.to(dtype), k.to(dtype), v.to(dtype), bias)


class Attention(nn.Module):
    """Multi-head attention of x [B,L,C] to context [B,M,D_context], or to x itself."""

    def __init__(
        self,
        width: int,
        *,
        heads: int,
        context_width: int | None = None,
        dropout: float = 0.0,
        upcast: bool = False,
    ) -> None:
        super().__init__()
        self.heads = heads
        self.upcast = upcast
        context_width = width if context_width is None else context_width
        self.to_q = nn.Linear(width, width, bias=False)
        self.to_k = nn.Linear(context_width, width, bias=False)
        self.to_v = nn.Linear(context_width, width, bias=False)
        self.to_out = nn.Sequential(nn.Linear(width, width), nn.Dropout(dropout))

    def project(self, context: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of a context, [B,M,C] each."""
        return self.to_k(context), self.to_v(context)  # called as modules: adapters hook them

    def forward(self, x: Tensor, context: Tensor | TextKeys, bias: Tensor | None = None) -> Tensor:
        q_BLC = self.to_q(x)
        if isinstance(context, TextKeys):
            k_BMC, v_BMC = context.of(self)
        else:
            k_BMC, v_BMC = self.project(context)
        out_BLC = attend(q_BLC, k_BMC, v_BMC, heads=self.heads, bias=bias, upcast=self.upcast)
        return self.to_out(out_BLC)


@dataclass(frozen=True, eq=False)
class TextKeys:
    """What one network makes of one text: keys and values [B,M,C] of each attention to it.

    They hold as long as the weights and adapters do. mask: [B,M] bool, or None (all).
    """

    pairs: Mapping[Attention, tuple[Tensor, Tensor]]
    mask: Tensor | None

    def of(self, attention: Attention) -> tuple[Tensor, Tensor]:
        if attention not in self.pairs:
            raise ValueError("TextKeys of another network; give what this one's project() returns")
        return self.pairs[attention]


class GEGLU(nn.Module):
    """Shazeer 2020: a linear layer whose one half gates the other through an exact GELU."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.proj = nn.Linear(width, 2 * inner)

    def forward(self, x: Tensor) -> Tensor:
        value, gate = self.proj(x).chunk(2, dim=-1)
        return value * F.gelu(gate)


class FeedForward(nn.Module):
    """GEGLU to four times the width and back: [B,L,C] -> [B,L,C]."""

    def __init__(self, width: int, dropout: float = 0.0) -> None:
        super().__init__()
        inner = 4 * width
        self.net = nn.Sequential(GEGLU(width, inner), nn.Dropout(dropout), nn.Linear(inner, width))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


class TransformerBlock(nn.Module):
    """Self-attention, attention to the text (absent when context_width is None), feed-forward."""

    def __init__(
        self,
        width: int,
        *,
        heads: int,
        context_width: int | None,
        dropout: float = 0.0,
        upcast: bool = False,
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attn1 = Attention(width, heads=heads, dropout=dropout, upcast=upcast)
        self.norm2: nn.LayerNorm | None = None
        self.attn2: Attention | None = None
        if context_width is not None:
            self.norm2 = nn.LayerNorm(width)
            self.attn2 = Attention(
                width, heads=heads, context_width=context_width, dropout=dropout, upcast=upcast
            )
        self.norm3 = nn.LayerNorm(width)
        self.ff = FeedForward(width, dropout)

    def forward(self, x: Tensor, context: Tensor | TextKeys | None, bias: Tensor | None) -> Tensor:
        h = self.norm1(x)
        x = x + self.attn1(h, h)
        del h  # or it stays in memory, in fp32 on a GPU, for as long as the rest takes
        if self.attn2 is not None and self.norm2 is not None:
            x = x + self.attn2(self.norm2(x), context, bias)
        return x + self.ff(self.norm3(x))


class SpatialTransformer(nn.Module):
    """Transformer blocks over the positions of a feature map, with a skip: [B,C,h,w] -> same.

    linear: the projections act on positions (SD 2) instead of being 1x1 convolutions (SD 1).
    """

    def __init__(
        self,
        width: int,
        *,
        heads: int,
        depth: int,
        context_width: int | None,
        groups: int,
        linear: bool = False,
        dropout: float = 0.0,
        upcast: bool = False,
    ) -> None:
        super().__init__()
        self.linear = linear
        self.norm = nn.GroupNorm(groups, width, eps=1e-6)
        self.proj_in = nn.Linear(width, width) if linear else PointwiseConv2d(width, width)
        self.transformer_blocks = nn.ModuleList(
            TransformerBlock(
                width, heads=heads, context_width=context_width, dropout=dropout, upcast=upcast
            )
            for _ in range(depth)
        )
        self.proj_out = nn.Linear(width, width) if linear else PointwiseConv2d(width, width)

    def forward(
        self, x: Tensor, context: Tensor | TextKeys | None, bias: Tensor | None = None
    ) -> Tensor:
        h_BLC = self._into(self.norm(x))  # nothing else holds the norm's output meanwhile
        for block in self.transformer_blocks:
            h_BLC = block(h_BLC, context, bias)
        if self.linear:
            return x + _picture(self.proj_out(h_BLC), x)
        return x + self.proj_out(_picture(h_BLC, x))

    def _into(self, x: Tensor) -> Tensor:
        if self.linear:
            h_BLC: Tensor = self.proj_in(_positions(x))
            return h_BLC
        return _positions(self.proj_in(x.contiguous(memory_format=torch.channels_last)))


def _positions(x: Tensor) -> Tensor:
    """[B,C,h,w] -> [B,hw,C], contiguous: every block after it would copy otherwise."""
    return x.flatten(2).transpose(1, 2).contiguous()


def _picture(h_BLC: Tensor, like: Tensor) -> Tensor:
    """[B,hw,C] -> [B,C,h,w]."""
    return h_BLC.transpose(1, 2).reshape(like.shape)
