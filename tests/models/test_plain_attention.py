"""Is the attention of CPU training the formula, with the gradients of the fused kernel?"""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.testing import assert_close

from ldm.models.attention import MASKED, attend
from ldm.models.plain_attention import FEW_KEYS, MOST_SCORES, plain_attention, plain_dtype

FP32, BF16 = torch.float32, torch.bfloat16


def draw(length: int, keys: int, width: int) -> list[Tensor]:
    """q, k, v and a gradient of the output, float64."""
    rng = torch.Generator().manual_seed(0)
    sizes = (length, keys, keys, length)
    return [torch.randn(2, size, width, generator=rng, dtype=torch.float64) for size in sizes]


def fused(q: Tensor, k: Tensor, v: Tensor, heads: int, bias: Tensor | None) -> Tensor:
    split = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (q, k, v))
    return F.scaled_dot_product_attention(*split, bias).transpose(1, 2).flatten(2)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(("length", "keys", "heads"), [(6, 5, 1), (4, 4, 3), (1, 7, 6)])
def test_output_and_gradients_are_those_of_the_fused_kernel(
    length: int, keys: int, heads: int, masked: bool
) -> None:
    q, k, v, grad = draw(length, keys, 24)
    bias = torch.zeros(2, 1, 1, keys, dtype=q.dtype)
    bias[0, ..., 3:] = MASKED
    given = bias if masked else None
    leaves = [x.requires_grad_() for x in (q, k, v)]
    got = plain_attention(q, k, v, heads=heads, bias=given, dtype=torch.float64)
    expected = fused(q, k, v, heads, given)
    assert_close(got, expected, rtol=0, atol=1e-12)  # float64: only rounding
    for a, b in zip(
        torch.autograd.grad(got, leaves, grad),
        torch.autograd.grad(expected, leaves, grad),
        strict=True,
    ):
        assert_close(a, b, rtol=0, atol=1e-12)


def test_half_precision_adds_little_to_the_rounding_of_its_inputs() -> None:
    """Scores in bf16 err about as much as q and k, rounded to bf16, make them err anyway."""
    exact = [x.requires_grad_() for x in draw(64, 64, 64)[:3]]
    grad = draw(64, 64, 64)[3]
    expected = fused(*exact, 4, None)
    expected = [expected, *torch.autograd.grad(expected, exact, grad)]

    def errors(dtype: torch.dtype) -> list[float]:
        inputs = [x.detach().to(BF16).requires_grad_() for x in exact]
        y = plain_attention(*inputs, heads=4, bias=None, dtype=dtype)
        got = [y, *torch.autograd.grad(y, inputs, grad.to(BF16))]
        return [
            float((a.detach().double() - b.detach()).norm())
            for a, b in zip(got, expected, strict=True)
        ]

    for half, full in zip(errors(BF16), errors(FP32), strict=True):
        assert half < 2 * full


@pytest.mark.parametrize(
    ("dtype", "length", "keys", "upcast", "expected"),
    [
        (FP32, 64, 8, False, FP32),
        (BF16, 64, 8, False, FP32),
        (FP32, 64, 64, False, None),
        (BF16, 64, 64, False, BF16),
        (BF16, 64, 64, True, None),
        (BF16, 64, 8, True, FP32),
        (BF16, MOST_SCORES // 8 + 1, 8, False, None),
    ],
)
def test_the_choice(
    dtype: torch.dtype, length: int, keys: int, upcast: bool, expected: torch.dtype | None
) -> None:
    q, k = torch.empty(1, length, 8, dtype=dtype), torch.empty(1, keys, 8, dtype=dtype)
    assert plain_dtype(q, k.requires_grad_(), k, upcast=upcast) is expected
    if keys > FEW_KEYS:  # without a backward the fused kernel is not slow
        assert plain_dtype(q, k.detach(), k.detach(), upcast=upcast) is None


def test_autocast_does_not_choose_the_dtype() -> None:
    q, k, v, _ = (x.float() for x in draw(6, 5, 24))
    leaves = [x.requires_grad_() for x in (q, k, v)]
    with torch.autocast("cpu", BF16):
        got = attend(*leaves, heads=3)
        gradients = torch.autograd.grad(got.sum(), leaves)
    expected = fused(*leaves, 3, None)
    assert_close(got, expected, rtol=0, atol=1e-6)  # fp32
    for a, b in zip(gradients, torch.autograd.grad(expected.sum(), leaves), strict=True):
        assert_close(a, b, rtol=0, atol=1e-6)
