"""Our names of the original layout, against diffusers' own conversion of single files."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from ldm.io.compvis import (
    TEXT,
    UNET,
    VAE,
    bert_names,
    ema_name,
    unet_names,
    vae_file_shape,
    vae_names,
)
from ldm.models.text.bert import LDMBert, LDMBertConfig
from ldm.models.unet import UNet, UNetConfig
from ldm.models.vae import AutoencoderKL, VAEConfig

pytestmark = pytest.mark.reference

State = dict[str, Tensor]

ATTENDS, PLAIN = ("CrossAttnDownBlock2D", "CrossAttnUpBlock2D"), ("DownBlock2D", "UpBlock2D")


def small(*attention: bool, **fields: Any) -> UNetConfig:
    """A narrow UNet; attention by level, from the picture inwards."""
    down, up = zip(*(ATTENDS if has else PLAIN for has in attention), strict=True)
    sizes = {"num_attention_heads": 4, "cross_attention_dim": 12, "norm_num_groups": 8}
    widths = (16, 24, 32, 32)[: len(attention)]
    return UNetConfig(
        block_out_channels=widths,
        down_block_types=down,
        up_block_types=up[::-1],
        **{**sizes, **fields},
    )


UNETS = {
    "sd1": small(True, True, True, False),
    "sd2": small(
        True, True, True, False, use_linear_projection=True, num_attention_heads=(2, 3, 4, 4)
    ),
    "inpaint": small(True, True, in_channels=9),
    "deep": small(False, True, True, transformer_layers_per_block=(1, 3, 2)),
    "one_level": small(True, layers_per_block=1),
    "many_layers": small(True, False, layers_per_block=7),
}
VAES = {
    "kl_f8": VAEConfig(block_out_channels=(8, 16, 24, 24), norm_num_groups=4),
    "no_attention": VAEConfig(
        block_out_channels=(8, 16),
        norm_num_groups=4,
        layers_per_block=1,
        mid_block_add_attention=False,
    ),
    "odd": VAEConfig(
        in_channels=1,
        out_channels=2,
        latent_channels=5,
        block_out_channels=(8,),
        norm_num_groups=4,
        layers_per_block=3,
    ),
}


def numbered(module: nn.Module) -> State:
    """The weights of a network, every tensor filled with a number of its own."""
    return {
        name: torch.full_like(value, float(i))
        for i, (name, value) in enumerate(module.state_dict().items())
    }


def same(found: State, expected: State) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert_close(found[name], value, rtol=0, atol=0, msg=lambda m, name=name: f"{name}: {m}")


@pytest.mark.parametrize("name", UNETS)
def test_they_find_our_unet_under_its_original_names(name: str) -> None:
    from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint

    config = UNETS[name]
    state, names = numbered(UNet(config)), unet_names(config)
    file = {UNET + names[ours]: value for ours, value in state.items()}
    same(
        convert_ldm_unet_checkpoint(file, {"layers_per_block": config.layers_per_block}),
        state,
    )


def test_they_find_our_average_of_the_weights() -> None:
    from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint

    config = UNETS["sd1"]
    state, names = numbered(UNet(config)), unet_names(config)
    file = {UNET + names[ours]: value for ours, value in state.items()}
    file |= {ema_name(name): value + 10_000 for name, value in file.items()}
    found = convert_ldm_unet_checkpoint(
        file, {"layers_per_block": config.layers_per_block}, extract_ema=True
    )
    same(found, {name: value + 10_000 for name, value in state.items()})


@pytest.mark.parametrize("name", VAES)
def test_they_find_our_vae_under_its_original_names(name: str) -> None:
    from diffusers.loaders.single_file_utils import convert_ldm_vae_checkpoint

    config = VAES[name]
    state, names = numbered(AutoencoderKL(config)), vae_names(config)
    file = {
        VAE + names[ours]: value.reshape(vae_file_shape(ours, value.shape))
        for ours, value in state.items()
    }
    levels = len(config.block_out_channels)
    kinds = {"down_block_types": [""] * levels, "up_block_types": [""] * levels}
    same(convert_ldm_vae_checkpoint(file, kinds), state)


def test_they_find_our_ldm_bert_under_its_original_names() -> None:
    """Their conversion takes the original modules: here a tree of containers with those names."""
    from diffusers.pipelines.latent_diffusion.pipeline_latent_diffusion import (
        LDMBertConfig as TheirConfig,
    )
    from diffusers.pipelines.stable_diffusion.convert_from_ckpt import convert_ldm_bert_checkpoint

    config = LDMBertConfig(
        vocab_size=60, max_tokens=9, width=40, num_layers=5, num_heads=2, head_dim=12, ff_width=72
    )
    state, names = numbered(LDMBert(config)), bert_names(config)
    original = nn.Module()
    for ours, value in state.items():
        assert names[ours].startswith("transformer.")
        plant(original, names[ours].split("."), value)
    theirs = convert_ldm_bert_checkpoint(
        original,
        TheirConfig(
            vocab_size=60,
            max_position_embeddings=9,
            encoder_layers=5,
            encoder_ffn_dim=72,
            encoder_attention_heads=2,
            head_dim=12,
            d_model=40,
        ),
    )
    same(theirs.state_dict(), state)
    assert TEXT == "cond_stage_model."


def plant(parent: nn.Module, path: list[str], value: Tensor) -> None:
    """Put a parameter at a path; modules whose children are numbered become lists, gaps filled."""
    first, *rest = path
    if not rest:
        parent.register_parameter(first, nn.Parameter(value))
        return
    if first not in parent._modules:
        if isinstance(parent, nn.ModuleList):
            parent.extend(nn.Identity() for _ in range(len(parent), int(first)))
        parent.add_module(first, nn.ModuleList() if rest[0].isdigit() else nn.Module())
    plant(parent._modules[first], rest, value)
