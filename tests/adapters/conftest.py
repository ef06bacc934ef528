"""Small networks that adapters change."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from ldm.adapters.lora import LoRA, LoRAConfig
from ldm.models.unet import UNet, UNetConfig


def make_unet(**changes: Any) -> UNet:
    """One level with attention, one without, all weights random: at its start it answers 0."""
    fields: dict[str, Any] = {
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
        "block_out_channels": (16, 32),
        "layers_per_block": 1,
        "num_attention_heads": 4,
        "cross_attention_dim": 12,
        "norm_num_groups": 8,
    }
    torch.manual_seed(0)
    network = UNet(UNetConfig(**{**fields, **changes}))
    with torch.no_grad():
        for value in network.parameters():
            value.add_(0.05 * torch.randn_like(value))
    return network.requires_grad_(False)


@pytest.fixture
def make_base() -> Callable[..., UNet]:
    """make_base(checkpointing=True): a frozen UNet."""
    return make_unet


@pytest.fixture
def base() -> UNet:
    return make_unet()


@pytest.fixture
def inputs() -> tuple[Tensor, Tensor, Tensor]:
    """x, t, context."""
    rng = torch.Generator().manual_seed(1)
    x = torch.randn(2, 4, 8, 8, generator=rng)
    return x, torch.tensor([3.0, 970.5]), torch.randn(2, 5, 12, generator=rng)


@pytest.fixture
def make_lora() -> Callable[..., LoRA]:
    """make_lora(base, rank=2): a LoRA that changes something, as if it were trained."""

    def make(base: UNet, seed: int = 2, **fields: Any) -> LoRA:
        torch.manual_seed(seed)
        lora = LoRA(base, LoRAConfig(**fields))
        for layer in lora.named_layers().values():
            torch.nn.init.normal_(layer.up.weight, std=0.1)
        return lora

    return make
