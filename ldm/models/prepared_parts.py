"""What do the blocks of a prepared network compute?

Every part is called with features and with `Now`, all that a step tells the blocks. One that is not
as it was built (hooked by an adapter, exchanged, patched) is called as the module that it is.

B batch, C channels, h x w size, P positions of all rows (= B h w), L positions of one, N heads,
D head width, T width of the time embedding.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ldm.models.attention import (
    GEGLU,
    Attention,
    FeedForward,
    SpatialTransformer,
    TextKeys,
    TransformerBlock,
)
from ldm.models.conv import Conv3x3, PointwiseConv2d
from ldm.models.layers import Downsample, TimeEmbedding, Upsample
from ldm.models.packed import (
    PackedConv,
    PackedLinear,
    group_norm,
    layer_norm,
    picture_of,
    rows_of,
)
from ldm.models.resnet import ResnetBlock

PARTS = {
    *(nn.Conv2d, nn.Linear, nn.GroupNorm, nn.LayerNorm, nn.Dropout, nn.Sequential),
    *(Attention, Conv3x3, Downsample, FeedForward, GEGLU, PointwiseConv2d, ResnetBlock),
    *(SpatialTransformer, TimeEmbedding, TransformerBlock, Upsample),
}
CHANNELS_LAST = torch.channels_last


@dataclass(frozen=True)
class Now:
    """What every block of one call is told.

    time [1,T] after its SiLU; biases: of each residual block's first convolution, [C], with the
    time in it; keys of the text; bias [B,1,1,M] of its mask.
    """

    time: Tensor
    biases: tuple[Tensor, ...]
    keys: TextKeys | None
    bias: Tensor | None


Part = Callable[[Tensor, Now], Tensor]  # [B,C,h,w] -> [B,C',h',w']


def as_built(module: nn.Module) -> bool:
    """Whether calling the module, and all in it, is no more than its own forward."""
    return all(type(part) in PARTS and untouched(part) for part in module.modules())


def untouched(module: nn.Module) -> bool:
    """Whether calling the module itself is no more than its class's forward."""
    hooks = (
        module._forward_pre_hooks,
        module._forward_hooks,
        module._backward_pre_hooks,
        module._backward_hooks,
    )
    own = "forward" in vars(module) or module._compiled_call_impl is not None
    return not own and not any(hooks)


def convolution(conv: nn.Module, size: tuple[int, int, int]) -> Callable[[Tensor], Tensor]:
    """[B,C,h,w] -> [B,O,h',w']. size: B, h, w."""
    if not as_built(conv) or not isinstance(conv, nn.Conv2d):
        return conv
    batch, height, width = size
    return PackedConv(conv, (batch, conv.in_channels, height, width))


class Resnet:
    """ResnetBlock. index: which of `Now.biases` is its own."""

    def __init__(self, block: ResnetBlock, size: tuple[int, int, int], index: int) -> None:
        batch, height, width = size
        self._norms = block.norm1, block.norm2
        self._conv1, self._conv2 = (
            PackedConv(conv, (batch, conv.in_channels, height, width))
            for conv in (block.conv1, block.conv2)
        )
        self._index = index
        self._shortcut: PackedLinear | None = None
        if (shortcut := block.conv_shortcut) is not None:
            weight_OC = shortcut.weight.flatten(1)
            self._shortcut = PackedLinear(weight_OC, shortcut.bias, rows=batch * height * width)

    def __call__(self, x: Tensor, now: Now) -> Tensor:
        first, second = self._norms
        h = self._conv1(F.silu(group_norm(first, x)), now.biases[self._index])
        h = F.silu(group_norm(second, h))
        if self._shortcut is not None:
            x = picture_of(self._shortcut(rows_of(x)), x)
        return self._conv2.plus(h, x)


class Transformer:
    """SpatialTransformer."""

    def __init__(self, module: SpatialTransformer, size: tuple[int, int, int]) -> None:
        batch, height, width = size
        rows = batch * height * width
        self._norm = module.norm
        self._proj_in = _Projection(module.proj_in, rows)
        self._proj_out = _Projection(module.proj_out, rows)
        self._blocks = [
            _Block(block, rows)
            for block in module.transformer_blocks  # type: ignore[arg-type]
        ]

    def __call__(self, x: Tensor, now: Now) -> Tensor:
        h = self._proj_in(rows_of(group_norm(self._norm, x)), x)
        for block in self._blocks:
            h = block(h, x.shape[0], now)
        return picture_of(self._proj_out.plus(h, x), x)


class _Projection:
    """The linear layer, or the 1x1 convolution, at an end of a SpatialTransformer: on [P,C]."""

    def __init__(self, module: nn.Module, rows: int) -> None:
        self._module = module
        self._packed: PackedLinear | None = None
        if as_built(module) and isinstance(module, (nn.Linear, PointwiseConv2d)):
            self._packed = PackedLinear(module.weight.flatten(1), module.bias, rows=rows)

    def __call__(self, x_PC: Tensor, like: Tensor) -> Tensor:
        if self._packed is not None:
            return self._packed(x_PC)
        if isinstance(self._module, nn.Conv2d):
            return rows_of(self._module(picture_of(x_PC, like)))
        return self._module(x_PC.view(like.shape[0], -1, x_PC.shape[-1])).flatten(0, 1)

    def plus(self, x_PC: Tensor, residual: Tensor) -> Tensor:
        """The sum with `residual` [B,C,h,w]: [P,C]."""
        if self._packed is not None:
            return self._packed.plus(x_PC, rows_of(residual))
        return self(x_PC, residual) + rows_of(residual)


class _Block:
    """TransformerBlock on [P,C]."""

    def __init__(self, block: TransformerBlock, rows: int) -> None:
        self._norms = block.norm1, block.norm2, block.norm3
        self._attn1 = _SelfAttention(block.attn1, rows) if as_built(block.attn1) else None
        self._attn2: _TextAttention | None = None
        if block.attn2 is not None and as_built(block.attn2):
            self._attn2 = _TextAttention(block.attn2, rows)
        self._ff = _FeedForward(block.ff, rows) if as_built(block.ff) else None
        self._block = block

    def __call__(self, x: Tensor, batch: int, now: Now) -> Tensor:
        norm1, norm2, norm3 = self._norms
        h = layer_norm(norm1, x)
        if self._attn1 is not None:
            x = self._attn1(h, x, batch)
        else:
            h = h.view(batch, -1, h.shape[-1])
            x = x + self._block.attn1(h, h).flatten(0, 1)
        if norm2 is not None and self._block.attn2 is not None:
            h = layer_norm(norm2, x)
            if self._attn2 is not None:
                x = self._attn2(h, x, batch, now)
            else:
                h = h.view(batch, -1, h.shape[-1])
                x = x + self._block.attn2(h, now.keys, now.bias).flatten(0, 1)
        h = layer_norm(norm3, x)
        if self._ff is not None:
            return self._ff(h, x)
        return x + self._block.ff(h.view(batch, -1, h.shape[-1])).flatten(0, 1)


class _SelfAttention:
    """Attention of [P,C] to itself, plus a residual; its three products are one."""

    def __init__(self, attention: Attention, rows: int) -> None:
        layers = attention.to_q, attention.to_k, attention.to_v
        self._qkv = PackedLinear(torch.cat([x.weight for x in layers]), None, rows=rows)
        self._out = _packed(attention.to_out[0], rows)
        self._heads, self._upcast = attention.heads, attention.upcast

    def __call__(self, x_PC: Tensor, residual_PC: Tensor, batch: int) -> Tensor:
        qkv = self._qkv(x_PC).view(batch, -1, 3, self._heads, x_PC.shape[-1] // self._heads)
        q_BNLD, k_BNLD, v_BNLD = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        return self._out.plus(_attend(q_BNLD, k_BNLD, v_BNLD, None, self._upcast), residual_PC)


class _TextAttention:
    """Attention of [P,C] to the keys of a text, plus a residual."""

    def __init__(self, attention: Attention, rows: int) -> None:
        self._attention = attention
        self._q = _packed(attention.to_q, rows)
        self._out = _packed(attention.to_out[0], rows)

    def __call__(self, x_PC: Tensor, residual_PC: Tensor, batch: int, now: Now) -> Tensor:
        assert now.keys is not None  # the network has checked it
        split = (batch, -1, self._attention.heads, x_PC.shape[-1] // self._attention.heads)
        found = (self._q(x_PC), *now.keys.of(self._attention))
        q_BNLD, k_BNMD, v_BNMD = (x.view(split).transpose(1, 2) for x in found)
        out_PC = _attend(q_BNLD, k_BNMD, v_BNMD, now.bias, self._attention.upcast)
        return self._out.plus(out_PC, residual_PC)


def _attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, upcast: bool) -> Tensor:
    """q [B,N,L,D], k and v [B,N,M,D]: [P,C]."""
    dtype = q.dtype
    if upcast:
        q, k, v = q.float(), k.float(), v.float()
    bias = None if bias is None else bias.to(q.dtype)
    out_BNLD = F.scaled_dot_product_attention(q, k, v, bias)
    return out_BNLD.transpose(1, 2).flatten(2).flatten(0, 1).to(dtype)


class _FeedForward:
    """FeedForward of [P,C], plus a residual; the gate's GELU is made with its product."""

    def __init__(self, module: FeedForward, rows: int) -> None:
        first, _, last = module.net
        value_IC, gate_IC = first.proj.weight.chunk(2)
        value_bias, gate_bias = first.proj.bias.chunk(2)
        self._value = PackedLinear(value_IC, value_bias, rows=rows, onednn=True)
        self._gate = PackedLinear(gate_IC, gate_bias, rows=rows, onednn=True)
        self._last = _packed(last, rows)

    def __call__(self, x_PC: Tensor, residual_PC: Tensor) -> Tensor:
        return self._last.plus(self._value(x_PC).mul_(self._gate.gelu(x_PC)), residual_PC)


def _packed(layer: nn.Linear, rows: int) -> PackedLinear:
    return PackedLinear(layer.weight, layer.bias, rows=rows)
