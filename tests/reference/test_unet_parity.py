"""Our UNet against diffusers' UNet2DConditionModel, at reduced width, with its very state dict."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from ldm.models.unet import UNet, UNetConfig

pytestmark = pytest.mark.reference

ATTENTION = ("CrossAttnDownBlock2D", "CrossAttnUpBlock2D")
PLAIN = ("DownBlock2D", "UpBlock2D")


def blocks(*attention: bool) -> dict[str, Any]:
    """Block types for levels with and without attention, top to bottom."""
    kinds = [ATTENTION if has else PLAIN for has in attention]
    down, up = zip(*kinds, strict=True)
    return {"down_block_types": down, "up_block_types": up[::-1]}


# every width, depth and head count differs between levels where it may, so that a mix-up shows
CONFIGS = {
    "sd1": UNetConfig(
        **blocks(True, True, False),
        block_out_channels=(16, 32, 48),
        num_attention_heads=4,
        cross_attention_dim=20,
        norm_num_groups=8,
    ),
    "sd2": UNetConfig(
        **blocks(True, True, True),
        block_out_channels=(16, 24, 48),
        num_attention_heads=(2, 3, 6),
        transformer_layers_per_block=(1, 2, 1),
        use_linear_projection=True,
        upcast_attention=True,
        cross_attention_dim=28,
        norm_num_groups=4,
    ),
    "inpaint": UNetConfig(
        **blocks(True, False),
        in_channels=9,
        block_out_channels=(16, 32),
        layers_per_block=1,
        num_attention_heads=8,
        cross_attention_dim=12,
        norm_num_groups=16,
    ),
    "tiny": UNetConfig(
        **blocks(True, True),
        sample_size=8,
        block_out_channels=(64, 128),
        layers_per_block=1,
        num_attention_heads=4,
        cross_attention_dim=128,
        norm_num_groups=8,
    ),
    "out": UNetConfig(  # attention at the lower level only; other channels out than in
        **blocks(False, True),
        in_channels=3,
        out_channels=6,
        block_out_channels=(16, 32),
        layers_per_block=3,
        num_attention_heads=2,
        cross_attention_dim=8,
        norm_num_groups=8,
    ),
}


def reference(config: UNetConfig) -> nn.Module:
    from diffusers import UNet2DConditionModel

    theirs = asdict(config)
    theirs["attention_head_dim"] = theirs.pop("num_attention_heads")  # their name for it
    del theirs["checkpointing"]
    torch.manual_seed(0)
    network = UNet2DConditionModel(**theirs)
    with torch.no_grad():  # unit norms would hide a missing or misplaced one
        for value in network.parameters():
            value.add_(0.02 * torch.randn_like(value))
    return network


def inputs(config: UNetConfig, size: tuple[int, int], seed: int) -> tuple[Tensor, Tensor, Tensor]:
    rng = torch.Generator().manual_seed(seed)
    x = torch.randn(2, config.in_channels, *size, generator=rng)
    assert config.cross_attention_dim is not None
    context = torch.randn(2, 5, config.cross_attention_dim, generator=rng)
    return x, torch.tensor([3.0, 970.5]), context


def close(got: Tensor, expected: Tensor, name: str) -> None:
    """1e-5 of the largest value: fp32 sums of some thousand terms in another order."""
    scale = max(1.0, float(expected.detach().abs().max()))
    assert_close(got / scale, expected / scale, rtol=0, atol=1e-5, msg=lambda m: f"{name}: {m}")


@pytest.mark.parametrize("size", [(8, 8), (12, 8), (9, 7)], ids=str)
@pytest.mark.parametrize("name", CONFIGS)
def test_same_names_forward_and_gradients(name: str, size: tuple[int, int]) -> None:
    config = CONFIGS[name]
    theirs = reference(config)
    ours = UNet(config)
    ours.load_state_dict(theirs.state_dict())  # strict: the names and shapes are theirs
    x, t, context = inputs(config, size, seed=1)
    leaves = [(x.clone().requires_grad_(), context.clone().requires_grad_()) for _ in range(2)]
    got = ours(leaves[0][0], t, leaves[0][1])
    expected = theirs(leaves[1][0], t, leaves[1][1]).sample
    close(got, expected, "output")

    weight = torch.randn(expected.shape, generator=torch.Generator().manual_seed(2))
    (got * weight).sum().backward()
    (expected * weight).sum().backward()
    for what, a, b in zip(("x", "context"), leaves[0], leaves[1], strict=True):
        assert a.grad is not None
        assert b.grad is not None
        close(a.grad, b.grad, f"gradient of {what}")
    expected_gradients = dict(theirs.named_parameters())
    for key, parameter in ours.named_parameters():
        gradient, expected_gradient = parameter.grad, expected_gradients[key].grad
        assert gradient is not None, f"{key} takes no part"
        assert expected_gradient is not None
        close(gradient, expected_gradient, f"gradient of {key}")


@pytest.mark.parametrize("name", ["sd1", "sd2"])
def test_same_answer_when_text_positions_are_masked(name: str) -> None:
    config = CONFIGS[name]
    theirs = reference(config)
    ours = UNet(config)
    ours.load_state_dict(theirs.state_dict())
    x, t, context = inputs(config, (8, 8), seed=3)
    mask = torch.tensor([[True, True, False, False, False], [True, False, True, True, False]])
    with torch.no_grad():
        got = ours(x, t, context, mask)
        expected = theirs(x, t, context, encoder_attention_mask=mask).sample
        unmasked = ours(x, t, context)
    close(got, expected, "output")
    assert (got - unmasked).abs().max() > 1e-3  # the mask does something


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_is_as_close_to_fp32_as_theirs(dtype: torch.dtype) -> None:
    config = CONFIGS["sd1"]
    theirs = reference(config)
    ours = UNet(config)
    ours.load_state_dict(theirs.state_dict())
    x, t, context = inputs(config, (8, 8), seed=4)
    with torch.no_grad():
        exact = theirs(x, t, context).sample
        got = ours.to(dtype)(x.to(dtype), t, context.to(dtype)).float()
        expected = theirs.to(dtype)(x.to(dtype), t, context.to(dtype)).sample.float()
    assert (got - exact).abs().mean() < 1.2 * (expected - exact).abs().mean()
