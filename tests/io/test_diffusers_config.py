"""Do diffusers' config.json files say the same before and after?"""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from ldm.io.detect import (
    diffusers_unet_config,
    diffusers_unet_json,
    diffusers_vae_config,
    diffusers_vae_json,
)
from ldm.models.unet import UNetConfig
from ldm.models.vae import VAEConfig

# what the published folders say (sd-legacy/stable-diffusion-v1-5, stabilityai/stable-diffusion-2-1)
SD1 = {
    "_class_name": "UNet2DConditionModel",
    "_diffusers_version": "0.6.0",
    "act_fn": "silu",
    "attention_head_dim": 8,
    "block_out_channels": [320, 640, 1280, 1280],
    "center_input_sample": False,
    "cross_attention_dim": 768,
    "down_block_types": ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"],
    "downsample_padding": 1,
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "in_channels": 4,
    "layers_per_block": 2,
    "mid_block_scale_factor": 1,
    "norm_eps": 1e-05,
    "norm_num_groups": 32,
    "out_channels": 4,
    "sample_size": 64,
    "up_block_types": ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3,
}
SD2 = {
    **SD1,
    "_diffusers_version": "0.10.0.dev0",
    "attention_head_dim": [5, 10, 20, 20],
    "cross_attention_dim": 1024,
    "dual_cross_attention": False,
    "num_class_embeds": None,
    "only_cross_attention": False,
    "sample_size": 96,
    "upcast_attention": True,
    "use_linear_projection": True,
}
VAE = {
    "_class_name": "AutoencoderKL",
    "_diffusers_version": "0.6.0",
    "act_fn": "silu",
    "block_out_channels": [128, 256, 512, 512],
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "in_channels": 3,
    "latent_channels": 4,
    "layers_per_block": 2,
    "norm_num_groups": 32,
    "out_channels": 3,
    "sample_size": 512,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
}
OUR_SD2 = UNetConfig(
    sample_size=96,
    num_attention_heads=(5, 10, 20, 20),
    cross_attention_dim=1024,
    use_linear_projection=True,
    upcast_attention=True,
)
ODD = UNetConfig(
    sample_size=7,
    in_channels=9,
    out_channels=6,
    block_out_channels=(16, 32),
    down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
    up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    layers_per_block=3,
    num_attention_heads=(2, 4),
    transformer_layers_per_block=(1, 2),
    cross_attention_dim=20,
    norm_num_groups=8,
    dropout=0.25,
)
PLAIN = replace(
    ODD,
    down_block_types=("DownBlock2D",) * 2,
    up_block_types=("UpBlock2D",) * 2,
    cross_attention_dim=None,
)
ODD_VAE = VAEConfig(
    in_channels=1,
    out_channels=2,
    latent_channels=5,
    block_out_channels=(8, 16),
    layers_per_block=3,
    norm_num_groups=4,
    mid_block_add_attention=False,
    scaling_factor=0.5,
)


def test_published_unets() -> None:
    assert diffusers_unet_config(SD1) == UNetConfig()
    assert diffusers_unet_config({**SD1, "in_channels": 9}) == replace(UNetConfig(), in_channels=9)
    assert diffusers_unet_config(SD2) == OUR_SD2


def test_what_is_left_out_has_diffusers_default() -> None:
    assert diffusers_unet_config({}) == replace(UNetConfig(), cross_attention_dim=1280)
    expected = VAEConfig(block_out_channels=(64,), layers_per_block=1)
    assert diffusers_vae_config({}) == expected


@pytest.mark.parametrize(
    "config", [UNetConfig(), OUR_SD2, ODD, PLAIN], ids=["sd1", "sd2", "odd", "plain"]
)
def test_a_unet_is_the_same_after_a_round_trip(config: UNetConfig) -> None:
    assert diffusers_unet_config(json.loads(json.dumps(diffusers_unet_json(config)))) == config


def test_attention_without_text_is_not_written() -> None:
    with pytest.raises(ValueError, match="has none without text"):
        diffusers_unet_json(replace(ODD, cross_attention_dim=None))


def test_what_is_written_for_published_unets_is_what_they_say() -> None:
    for published in (SD1, SD2):
        written = diffusers_unet_json(diffusers_unet_config(published))
        said = {key: value for key, value in published.items() if key != "_diffusers_version"}
        assert said.items() <= written.items()


@pytest.mark.parametrize(
    ("change", "field", "value"),
    [
        ({"num_attention_heads": 4}, "num_attention_heads", (4,) * 4),  # wins over the other name
        ({"only_cross_attention": [False] * 4}, "layers_per_block", 2),
        ({"layers_per_block": [3, 3, 3, 3]}, "layers_per_block", 3),
        ({"cross_attention_dim": [5, 5, 5, 5]}, "cross_attention_dim", 5),
        ({"cross_attention_dim": None}, "cross_attention_dim", None),
        ({"sample_size": None}, "sample_size", 64),
        ({"sample_size": [96, 96]}, "sample_size", 96),
        ({"act_fn": "swish"}, "norm_num_groups", 32),  # SiLU's other name
        ({"_name_or_path": "x", "decay": 0.99, "power": 0.75}, "norm_num_groups", 32),
        ({"projection_class_embeddings_input_dim": 2816}, "norm_num_groups", 32),
        ({"of_tomorrow": None, "of_next_week": False}, "norm_num_groups", 32),
        ({"upcast_attention": None, "dual_cross_attention": None}, "upcast_attention", False),
        ({"transformer_layers_per_block": [1, 2, 3, 4]}, "depths", (1, 2, 3, 4)),
    ],
)
def test_what_changes_nothing_is_accepted(change: dict[str, Any], field: str, value: Any) -> None:
    assert getattr(diffusers_unet_config({**SD1, **change}), field) == value


@pytest.mark.parametrize(
    "change",
    [
        {"_class_name": "UNet2DModel"},
        {"act_fn": "gelu"},
        {"addition_embed_type": "text_time"},
        {"attention_type": "gated"},
        {"center_input_sample": True},
        {"class_embed_type": "projection"},
        {"class_embeddings_concat": True},
        {"conv_in_kernel": 1},
        {"conv_out_kernel": 1},
        {"cross_attention_dim": [5, 6, 7, 8]},
        {"cross_attention_norm": "layer_norm"},
        {"down_block_types": ["SimpleCrossAttnDownBlock2D"] * 4},
        {"downsample_padding": 0},
        {"dropout": "0.1"},
        {"dual_cross_attention": True},
        {"encoder_hid_dim": 4096},
        {"encoder_hid_dim_type": "text_proj"},
        {"flip_sin_to_cos": False},
        {"freq_shift": 1},
        {"in_channels": "4"},
        {"layers_per_block": [1, 2, 2, 2]},
        {"layers_per_block": True},
        {"mid_block_only_cross_attention": True},
        {"mid_block_scale_factor": 1.4},
        {"mid_block_type": None},
        {"norm_eps": 1e-6},
        {"norm_num_groups": None},
        {"num_class_embeds": 1000},
        {"of_tomorrow": "yes"},
        {"only_cross_attention": [True, True, True, False]},
        {"resnet_out_scale_factor": 1.2},
        {"resnet_skip_time_act": True},
        {"resnet_time_scale_shift": "scale_shift"},
        {"reverse_transformer_layers_per_block": [[1, 1], [1, 1]]},
        {"sample_size": [64, 96]},
        {"time_cond_proj_dim": 256},
        {"time_embedding_act_fn": "silu"},
        {"time_embedding_dim": 512},
        {"time_embedding_type": "fourier"},
        {"timestep_post_act": "silu"},
        {"transformer_layers_per_block": [[1, 1], [1, 1]]},
        {"up_block_types": 4},
        {"upcast_attention": "no"},
    ],
    ids=str,
)
def test_what_is_not_built_is_refused_by_name(change: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"config.json: {next(iter(change))}="):
        diffusers_unet_config({**SD1, **change})


def test_everything_wrong_is_named_at_once() -> None:
    xl = {
        **SD1,
        "addition_embed_type": "text_time",
        "time_cond_proj_dim": 256,
        "use_linear_projection": "yes",
        "of_tomorrow": 1,
    }
    with pytest.raises(ValueError) as caught:
        diffusers_unet_config(xl)
    for name in ("addition_embed_type", "time_cond_proj_dim", "use_linear_", "of_tomorrow=1; not"):
        assert name in str(caught.value)


def test_a_wrong_number_of_levels_is_left_to_our_own_check() -> None:
    with pytest.raises(ValueError, match="down_block_types has 4 values; give 2"):
        diffusers_unet_config({**SD1, "block_out_channels": [320, 640]})


# -- the VAE --------------------------------------------------------------------------------------


def test_the_published_vae() -> None:
    assert diffusers_vae_config(VAE) == VAEConfig()
    xl = {**VAE, "scaling_factor": 0.13025, "force_upcast": True, "sample_size": 1024}
    assert diffusers_vae_config(xl) == VAEConfig(scaling_factor=0.13025)
    written = diffusers_vae_json(VAEConfig())
    assert {k: v for k, v in VAE.items() if k != "_diffusers_version"}.items() <= written.items()


@pytest.mark.parametrize("config", [VAEConfig(), ODD_VAE], ids=["kl_f8", "odd"])
def test_a_vae_is_the_same_after_a_round_trip(config: VAEConfig) -> None:
    assert diffusers_vae_config(json.loads(json.dumps(diffusers_vae_json(config)))) == config


@pytest.mark.parametrize(
    "change",
    [
        {"_class_name": "VQModel"},
        {"act_fn": "relu"},
        {"block_out_channels": 128},
        {"down_block_types": ["DownEncoderBlock2D"] * 3 + ["AttnDownEncoderBlock2D"]},
        {"latent_channels": None},
        {"latents_mean": [0.0, 0.1, 0.2, 0.3]},
        {"latents_std": [1.0, 1.1, 1.2, 1.3]},
        {"mid_block_add_attention": 1},
        {"norm_type": "spatial"},
        {"scaling_factor": None},
        {"shift_factor": 0.1159},
        {"use_post_quant_conv": False},
        {"use_quant_conv": False},
    ],
    ids=str,
)
def test_other_autoencoders_are_refused_by_name(change: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"config.json: {next(iter(change))}="):
        diffusers_vae_config({**VAE, **change})


def test_block_types_must_be_as_many_as_levels() -> None:
    with pytest.raises(ValueError, match="up_block_types has 1 values, block_out_channels 4"):
        diffusers_vae_config({**VAE, "up_block_types": ["UpDecoderBlock2D"]})
