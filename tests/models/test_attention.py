"""Is attention the formula, in every dtype and path?"""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.testing import assert_close

from ldm.models.attention import GEGLU, MASKED, Attention, TextKeys, attend


def written_out(q: Tensor, k: Tensor, v: Tensor, heads: int, bias: Tensor | None) -> Tensor:
    """softmax(q k / sqrt(D) + bias) v, head by head and row by row."""
    width = q.shape[-1] // heads
    rows = []
    for b in range(q.shape[0]):
        parts = []
        for n in range(heads):
            of_head = slice(n * width, (n + 1) * width)
            scores = q[b, :, of_head] @ k[b, :, of_head].T / math.sqrt(width)
            if bias is not None:
                scores = scores + bias[b, 0]
            parts.append(scores.softmax(-1) @ v[b, :, of_head])
        rows.append(torch.cat(parts, dim=-1))
    return torch.stack(rows)


def qkv(dtype: torch.dtype = torch.float64) -> list[Tensor]:
    rng = torch.Generator().manual_seed(0)
    shapes = ((2, 6, 24), (2, 5, 24), (2, 5, 24))
    return [torch.randn(*shape, generator=rng, dtype=torch.float64).to(dtype) for shape in shapes]


@pytest.mark.parametrize("upcast", [False, True])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("heads", [1, 3, 8])
def test_is_the_formula(heads: int, masked: bool, upcast: bool) -> None:
    q, k, v = qkv()
    bias = torch.zeros(2, 1, 1, 5, dtype=q.dtype)
    bias[0, ..., 3:] = MASKED
    given = bias if masked else None
    got = attend(q, k, v, heads=heads, bias=given, upcast=upcast)
    assert_close(got, written_out(q, k, v, heads, given), rtol=0, atol=1e-12)


@pytest.mark.parametrize("bias", [None, torch.tensor([0.0, 0.0, MASKED, 0.0, MASKED])])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_gradients_are_those_of_fp32(
    dtype: torch.dtype, bias: Tensor | None
) -> None:
    """On a CPU training attention runs in fp32: only the gradients' own rounding is left."""
    q, k, v = (x.requires_grad_() for x in qkv(dtype))
    exact = [x.detach().float().requires_grad_() for x in (q, k, v)]
    tail = None if bias is None else bias.expand(2, 1, 1, 5)
    with torch.autocast("cpu", dtype=dtype):
        got = attend(q, k, v, heads=3, bias=tail)
    assert got.dtype == dtype
    got.float().square().sum().backward()
    rounded = attend(*exact, heads=3, bias=tail)
    (2 * got.detach().float() * rounded).sum().backward()
    eps = torch.finfo(dtype).eps
    for a, b in zip((q, k, v), exact, strict=True):
        assert a.grad is not None
        assert b.grad is not None
        assert_close(a.grad.float(), b.grad, rtol=eps, atol=eps)


def test_upcast_survives_scores_beyond_fp16() -> None:
    q, k, v = (x.half() for x in qkv())
    big = 200.0  # q k is near 1e5 then, and fp16 ends at 65,504
    q, k = q * big, k * big
    with torch.autocast("cpu", dtype=torch.float16):
        got = attend(q, k, v, heads=1, upcast=True)
    exact = attend(q.double(), k.double(), v.double(), heads=1)
    assert got.dtype == torch.float16
    assert_close(got.double(), exact, rtol=1e-3, atol=1e-3)  # fp16 has 11 bits


def test_known_keys_and_values_stand_for_their_context() -> None:
    torch.manual_seed(0)
    layer, other = (Attention(24, heads=3, context_width=7) for _ in range(2))
    x, context = torch.randn(2, 6, 24), torch.randn(2, 5, 7)
    keys = TextKeys({layer: layer.project(context)}, None)
    assert_close(layer(x, keys), layer(x, context), rtol=0, atol=0)
    with pytest.raises(ValueError, match=r"another network; give what .* project\(\) returns"):
        other(x, keys)


def test_geglu_is_the_exact_gelu_on_the_second_half() -> None:
    torch.manual_seed(0)
    layer = GEGLU(6, 10).double()
    x = torch.randn(3, 6, dtype=torch.float64)
    value, gate = F.linear(x, layer.proj.weight, layer.proj.bias).split(10, dim=-1)
    expected = value * gate * 0.5 * (1 + torch.erf(gate / math.sqrt(2)))
    assert_close(layer(x), expected, rtol=0, atol=1e-12)
