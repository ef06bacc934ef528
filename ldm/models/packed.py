"""How is a layer computed on a CPU whose weights stay as they are for many calls?

oneDNN computes with weights in a layout of its own and, from a plain layout, brings them into it at
every call. Here that is done once. Nothing here has a gradient or calls a hook.

B batch, C channels in, O channels out, h x w size, P rows of a matrix (= B h w).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

BLAS_UP_TO = 2**17  # weights: beside that, oneDNN's fp32 product costs more to call than it gains
WHOLE_VECTOR = 32  # bytes of a group's channels: below, group norm is slow on channels-last
OPS = (
    "_convolution_pointwise",
    "_linear_pointwise",
    "_reorder_convolution_weight",
    "_reorder_linear_weight",
)


def obstacle(dtype: torch.dtype) -> str | None:
    """Why layers of this dtype cannot be packed here; None: they can."""
    if not (torch.backends.mkldnn.is_available() and torch.backends.mkldnn.enabled):  # type: ignore[attr-defined]
        return "oneDNN is not built into this torch, or switched off"
    missing = [name for name in OPS if not hasattr(torch.ops.mkldnn, name)]
    if missing:
        return f"this torch has no {', '.join(f'mkldnn::{name}' for name in missing)}"
    if dtype not in (torch.float32, torch.bfloat16):
        return f"weights are {dtype}, packed are float32 and bfloat16"
    if dtype == torch.bfloat16 and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return "this CPU has no bfloat16 instructions"
    return None


class PackedLinear:
    """x W^T + b of [P,C]: [P,O]. rows: the P that is most usual (any works).

    fp32 products of few weights are left to the BLAS, whose calls cost half as much: 15 against
    29 us for 32 x 128 x 128 (one thread, torch 2.13); beyond, oneDNN is 1.1 to 1.3 times as fast.
    """

    def __init__(
        self, weight_OC: Tensor, bias: Tensor | None, *, rows: int, onednn: bool = False
    ) -> None:
        self._bias = bias
        few = weight_OC.dtype == torch.float32 and weight_OC.numel() < BLAS_UP_TO
        self._blas = few and not onednn
        if self._blas:
            self._weight = weight_OC.t().contiguous()
        else:
            reorder = torch.ops.mkldnn._reorder_linear_weight
            self._weight = reorder(weight_OC.contiguous(), rows)

    def __call__(self, x: Tensor) -> Tensor:
        if not self._blas:
            return self._onednn(x, "none")
        if self._bias is None:
            return torch.mm(x, self._weight)
        return torch.addmm(self._bias, x, self._weight)

    def plus(self, x: Tensor, residual: Tensor) -> Tensor:
        """The sum of the result and `residual` [P,O]."""
        if self._blas:
            return self(x).add_(residual)
        product = torch.ops.mkldnn._linear_pointwise.binary
        return product(x, residual, self._weight, self._bias, "add")

    def gelu(self, x: Tensor) -> Tensor:
        """The exact GELU of the result, in one pass; made with onednn=True."""
        return self._onednn(x, "gelu")

    def _onednn(self, x: Tensor, then: str) -> Tensor:
        product = torch.ops.mkldnn._linear_pointwise
        return product(x, self._weight, self._bias, then, [], "none")


class PackedConv:
    """A convolution of [B,C,h,w], whatever its layout: [B,O,h',w'], channels-last.

    size: (B, C, h, w) that is most usual (any works).
    """

    def __init__(self, conv: nn.Conv2d, size: tuple[int, ...]) -> None:
        self._bias = conv.bias
        geometry = list(conv.padding), list(conv.stride), list(conv.dilation), conv.groups
        reorder = torch.ops.mkldnn._reorder_convolution_weight
        self._weight = reorder(conv.weight, *geometry, list(size))
        self._geometry = geometry

    def __call__(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """bias [O]: instead of the layer's own."""
        bias = self._bias if bias is None else bias
        convolve = torch.ops.mkldnn._convolution_pointwise
        return convolve(x, self._weight, bias, *self._geometry, "none", [], None)

    def plus(self, x: Tensor, residual: Tensor) -> Tensor:
        """The sum of the result and `residual` [B,O,h',w']."""
        residual = residual.contiguous(memory_format=torch.channels_last)
        convolve = torch.ops.mkldnn._convolution_pointwise.binary
        args = (self._weight, self._bias, *self._geometry)
        return convolve(x, residual, *args, "add", 1.0, None, [], None)


def group_norm(norm: nn.GroupNorm, x: Tensor) -> Tensor:
    """`norm` of [B,C,h,w], in the layout in which it is fast.

    A group's channels are what its kernel on channels-last works on at once: of 2 channels in
    bf16 it takes 12 times as long as on the other layout, of 16 no longer (torch 2.13).
    """
    wide = norm.num_channels // norm.num_groups * x.element_size() >= WHOLE_VECTOR
    x = x if wide else x.contiguous()
    return F.group_norm(x, norm.num_groups, norm.weight, norm.bias, norm.eps)


def layer_norm(norm: nn.LayerNorm, x: Tensor) -> Tensor:
    """`norm` of [P,C]."""
    return F.layer_norm(x, norm.normalized_shape, norm.weight, norm.bias, norm.eps)


def rows_of(x: Tensor) -> Tensor:
    """[B,C,h,w] -> [P,C]; a view where the channels are the last axis in memory."""
    return x.permute(0, 2, 3, 1).reshape(-1, x.shape[1])


def picture_of(x_PC: Tensor, like: Tensor) -> Tensor:
    """[P,C] -> [B,C,h,w], channels-last, with B, h and w of `like`: a view."""
    batch, _, height, width = like.shape
    return x_PC.view(batch, height, width, -1).permute(0, 3, 1, 2)
