"""How is attention computed on a CPU where its fused kernel is slow?

B batch, L positions that ask, M positions that are looked at, N heads, D head width, C = N D,
H = B N.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

FEW_KEYS = 32  # up to here fp32 costs no more than half precision
MOST_SCORES = 2**16  # a head: these are kept for the backward, which the fused kernel is not
HALF = (torch.bfloat16, torch.float16)


def plain_dtype(q_BLC: Tensor, k_BMC: Tensor, v_BMC: Tensor, *, upcast: bool) -> torch.dtype | None:
    """In which dtype `plain_attention` beats the fused kernel; None: in none. upcast: fp32 only.

    Fused / plain, forward and backward on one core in bf16 (torch 2.13): 2.2 for 32 rows of 64
    positions to 8 keys, 1.5 for 64 to 64 in 4 heads of 16, 1.5 for 4 rows of 256 to 256; in fp32
    2.6 for 64 to 8 and 1.5 for 64 to 24. Forward alone: 1.6 for 16 rows of 64 to 24, 0.8 for 2
    rows of 64 to 8, and left on, for the same bits with gradients and without.
    """
    length, keys = q_BLC.shape[1], k_BMC.shape[1]
    if q_BLC.device.type != "cpu" or length * keys > MOST_SCORES:
        return None
    if keys <= FEW_KEYS:
        return torch.promote_types(q_BLC.dtype, torch.float32)
    needs_grad = q_BLC.requires_grad or k_BMC.requires_grad or v_BMC.requires_grad
    half = q_BLC.dtype in HALF and not upcast
    return q_BLC.dtype if needs_grad and half else None


def plain_attention(
    q_BLC: Tensor,
    k_BMC: Tensor,
    v_BMC: Tensor,
    *,
    heads: int,
    bias: Tensor | None,
    dtype: torch.dtype,
) -> Tensor:
    """softmax(q k / sqrt(D) + bias) v per head, computed in `dtype`: [B,L,C] in q's dtype."""
    with torch.autocast(q_BLC.device.type, enabled=False):  # it would choose the dtype itself
        return _PlainAttention.apply(q_BLC, k_BMC, v_BMC, heads, bias, dtype)


class _PlainAttention(torch.autograd.Function):
    """Two batched products around a softmax over the keys.

    The scores are held as [H,M,L]: a softmax along the last axis is several times slower when
    that axis is short or odd.
    """

    @staticmethod
    def forward(
        ctx: Any,
        q_BLC: Tensor,
        k_BMC: Tensor,
        v_BMC: Tensor,
        heads: int,
        bias: Tensor | None,
        dtype: torch.dtype,
    ) -> Tensor:
        q, k, v = (_split(x, heads, dtype) for x in (q_BLC, k_BMC, v_BMC))
        scale = q.shape[-1] ** -0.5
        scores_HML = _product(k, q.transpose(1, 2), scale)
        if bias is not None:  # [B,1,1,M]
            scores_HML.unflatten(0, (-1, heads)).add_(bias.to(dtype).transpose(2, 3))
        p_HML = scores_HML.softmax(1)
        ctx.save_for_backward(q, k, v, p_HML)
        ctx.heads, ctx.scale = heads, scale
        return _join(torch.bmm(p_HML.transpose(1, 2), v), heads, q_BLC.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_BLC: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, p_HML = ctx.saved_tensors
        grad = _split(grad_BLC, ctx.heads, q.dtype)
        with torch.autocast(q.device.type, enabled=False):
            grad_v = torch.bmm(p_HML, grad)
            grad_p = torch.bmm(v, grad.transpose(1, 2))
            grad_scores = torch._softmax_backward_data(grad_p, p_HML, 1, p_HML.dtype)
            grad_q = _product(grad_scores.transpose(1, 2), k, ctx.scale)
            grad_k = _product(grad_scores, q, ctx.scale)
        joined = (_join(x, ctx.heads, grad_BLC.dtype) for x in (grad_q, grad_k, grad_v))
        return (*joined, None, None, None)


def _product(a: Tensor, b: Tensor, scale: float) -> Tensor:
    """scale a b, batched, without a pass of its own for the scale."""
    return torch.baddbmm(a.new_empty(1, 1, 1), a, b, beta=0, alpha=scale)


def _split(x_BLC: Tensor, heads: int, dtype: torch.dtype) -> Tensor:
    """[B,L,C] -> [H,L,D] in dtype, contiguous."""
    x_BNLD = x_BLC.unflatten(-1, (heads, -1)).transpose(1, 2)
    return x_BNLD.to(dtype, memory_format=torch.contiguous_format).contiguous().flatten(0, 1)


def _join(x_HLD: Tensor, heads: int, dtype: torch.dtype) -> Tensor:
    """[H,L,D] -> [B,L,C] in dtype, contiguous."""
    x_BLND = x_HLD.unflatten(0, (-1, heads)).transpose(1, 2)
    return x_BLND.to(dtype, memory_format=torch.contiguous_format).flatten(2)
