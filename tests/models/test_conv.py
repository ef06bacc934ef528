"""Are the convolutions that are computed as products still convolutions?"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from ldm.models import conv
from ldm.models.conv import Conv3x3, PointwiseConv2d


def gradients(layer: nn.Conv2d, x: Tensor, grad: Tensor) -> list[Tensor]:
    """Output, then the gradients of input, weight and bias."""
    x = x.detach().requires_grad_()
    y = layer(x)
    return [y, *torch.autograd.grad(y, (x, layer.weight, layer.bias), grad.to(y.dtype))]


def pair(ours: nn.Conv2d) -> nn.Conv2d:
    """torch's own with the same weights."""
    theirs = nn.Conv2d(ours.in_channels, ours.out_channels, ours.kernel_size, padding=ours.padding)
    theirs.load_state_dict(ours.state_dict())
    return theirs.to(ours.weight.dtype)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("size", [(1, 1), (3, 5)], ids=str)
def test_pointwise_is_a_convolution(
    size: tuple[int, int], memory_format: torch.memory_format
) -> None:
    torch.manual_seed(0)
    ours = PointwiseConv2d(6, 10).double()
    x = torch.randn(2, 6, *size, dtype=torch.float64).contiguous(memory_format=memory_format)
    grad = torch.randn(2, 10, *size, dtype=torch.float64)
    assert ours(x).is_contiguous(memory_format=memory_format)
    for got, expected in zip(gradients(ours, x, grad), gradients(pair(ours), x, grad), strict=True):
        assert_close(got, expected, rtol=0, atol=1e-12)  # float64: only rounding


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=str)
def test_gradients_over_few_positions_are_those_of_a_convolution(
    monkeypatch: pytest.MonkeyPatch, memory_format: torch.memory_format
) -> None:
    monkeypatch.setattr(conv, "MANY_WEIGHTS", 1)
    torch.manual_seed(0)
    ours = Conv3x3(6, 10).double().to(memory_format=memory_format)  # type: ignore[call-overload]
    x = torch.randn(2, 6, 3, 5, dtype=torch.float64).contiguous(memory_format=memory_format)
    grad = torch.randn(2, 10, 3, 5, dtype=torch.float64)
    results = gradients(ours, x, grad)
    assert "FewPositions" in type(results[0].grad_fn).__name__
    for got, expected in zip(results, gradients(pair(ours), x, grad), strict=True):
        assert_close(got, expected, rtol=0, atol=1e-12)  # float64: only rounding


def test_under_autocast_few_positions_round_as_a_convolution_does(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    torch.manual_seed(0)
    ours = Conv3x3(64, 32)
    x, grad = torch.randn(2, 64, 4, 4), torch.randn(2, 32, 4, 4)
    exact = gradients(pair(ours), x, grad)
    with torch.autocast("cpu", torch.bfloat16):
        kernel = gradients(ours, x, grad)
        monkeypatch.setattr(conv, "MANY_WEIGHTS", 1)
        product = gradients(ours, x, grad)
    for got, theirs, expected in zip(product, kernel, exact, strict=True):
        assert got.dtype == theirs.dtype
        error, allowed = (
            float((y.detach().float() - expected.detach()).norm()) for y in (got, theirs)
        )
        assert error <= 1.05 * allowed


def test_large_weights_over_few_positions_alone_are_products() -> None:
    torch.manual_seed(0)
    small, large = Conv3x3(8, 8), Conv3x3(512, 256)
    name = "FewPositionsBackward"
    assert type(large(torch.randn(4, 512, 4, 4)).grad_fn).__name__.endswith(name)
    assert not type(large(torch.randn(5, 512, 4, 4)).grad_fn).__name__.endswith(name)
    assert not type(small(torch.randn(4, 8, 4, 4)).grad_fn).__name__.endswith(name)
    assert large.requires_grad_(False)(torch.randn(1, 512, 4, 4)).grad_fn is None


def test_a_frozen_layer_still_hands_gradients_on() -> None:
    layer = Conv3x3(512, 256).requires_grad_(False)
    x = torch.randn(1, 512, 2, 2, requires_grad=True)
    layer(x).sum().backward()
    assert x.grad is not None
    assert x.grad.abs().sum() > 0
