"""What does a config.json of diffusers say about our networks, and the other way?

The UNet is UNet2DConditionModel, the VAE AutoencoderKL. What a file leaves out has diffusers'
default. Each option is one of four:

    read       it has a field in our configuration
    fixed      it changes the network, and only the given values are what is built here
    ignored    it changes nothing in what a network computes
    unknown    of a later version than these lists: refused, unless null or false, which is how
               options that came in later leave the networks before them as they were
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ldm.io.options import CLASS, Options, Values
from ldm.models.layers import raise_all
from ldm.models.unet import DOWN_BLOCK_TYPES, UP_BLOCK_TYPES, UNetConfig
from ldm.models.vae import VAEConfig

UNET_CLASS, VAE_CLASS = "UNet2DConditionModel", "AutoencoderKL"
DOWN_VAE, UP_VAE = "DownEncoderBlock2D", "UpDecoderBlock2D"

UNET_READ: dict[str, Any] = {  # with diffusers' defaults
    "sample_size": None,
    "in_channels": 4,
    "out_channels": 4,
    "block_out_channels": (320, 640, 1280, 1280),
    "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
    "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
    "layers_per_block": 2,
    "attention_head_dim": 8,
    "num_attention_heads": None,
    "transformer_layers_per_block": 1,
    "cross_attention_dim": 1280,
    "norm_num_groups": 32,
    "use_linear_projection": False,
    "upcast_attention": False,
    "dropout": 0.0,
}
UNET_FIXED: dict[str, Values] = {  # the first is diffusers' default
    "act_fn": ("silu", "swish"),
    "addition_embed_type": (None,),
    "attention_type": ("default",),  # others are GLIGEN's
    "center_input_sample": (False, None),
    "class_embed_type": (None,),
    "class_embeddings_concat": (False, None),
    "conv_in_kernel": (3,),
    "conv_out_kernel": (3,),
    "cross_attention_norm": (None,),
    "downsample_padding": (1,),
    "dual_cross_attention": (False, None),
    "encoder_hid_dim": (None,),
    "encoder_hid_dim_type": (None,),
    "flip_sin_to_cos": (True,),
    "freq_shift": (0,),
    "mid_block_only_cross_attention": (None, False),
    "mid_block_scale_factor": (1,),
    "mid_block_type": ("UNetMidBlock2DCrossAttn",),
    "norm_eps": (1e-5,),
    "num_class_embeds": (None,),
    "only_cross_attention": (False,),
    "resnet_out_scale_factor": (1.0,),
    "resnet_skip_time_act": (False, None),
    "resnet_time_scale_shift": ("default",),
    "reverse_transformer_layers_per_block": (None,),
    "time_cond_proj_dim": (None,),
    "time_embedding_act_fn": (None,),
    "time_embedding_dim": (None,),
    "time_embedding_type": ("positional",),
    "timestep_post_act": (None,),
}
UNET_IGNORED = {  # sizes of embeddings whose type is fixed to none
    "addition_embed_type_num_heads",
    "addition_time_embed_dim",
    "projection_class_embeddings_input_dim",
}
VAE_READ: dict[str, Any] = {
    "in_channels": 3,
    "out_channels": 3,
    "block_out_channels": (64,),
    "down_block_types": (DOWN_VAE,),
    "up_block_types": (UP_VAE,),
    "layers_per_block": 1,
    "latent_channels": 4,
    "norm_num_groups": 32,
    "mid_block_add_attention": True,
    "scaling_factor": 0.18215,
}
VAE_FIXED: dict[str, Values] = {
    "act_fn": ("silu", "swish"),
    "latents_mean": (None,),
    "latents_std": (None,),
    "shift_factor": (None, 0),
    "use_post_quant_conv": (True,),
    "use_quant_conv": (True,),
}
VAE_IGNORED = {"force_upcast", "sample_size"}
# What diffusers' EMAModel adds to the config.json of the averaged weights that it saves.
EMA_IGNORED = {
    "decay",
    "inv_gamma",
    "min_decay",
    "optimization_step",
    "power",
    "update_after_step",
    "use_ema_warmup",
}


def diffusers_unet_config(config: Mapping[str, Any]) -> UNetConfig:
    """Our configuration of the network that a unet/config.json describes.

    attention_head_dim is the number of heads there, by an old mistake in naming. sample_size null:
    64. Raises ValueError naming everything that is not built here.
    """
    options = Options(config, UNET_READ)
    options.refuse(UNET_CLASS, UNET_FIXED, UNET_IGNORED | EMA_IGNORED)
    named = options.values["num_attention_heads"] is not None
    fields: dict[str, Any] = {
        "in_channels": options.number("in_channels"),
        "out_channels": options.number("out_channels"),
        "block_out_channels": options.numbers("block_out_channels"),
        "down_block_types": options.words("down_block_types", DOWN_BLOCK_TYPES),
        "up_block_types": options.words("up_block_types", UP_BLOCK_TYPES),
        "layers_per_block": options.number("layers_per_block"),
        "num_attention_heads": options.per_level(
            "num_attention_heads" if named else "attention_head_dim"
        ),
        "transformer_layers_per_block": options.per_level("transformer_layers_per_block"),
        "cross_attention_dim": options.number_or_null("cross_attention_dim"),
        "norm_num_groups": options.number("norm_num_groups"),
        "use_linear_projection": options.flag("use_linear_projection"),
        "upcast_attention": options.flag("upcast_attention"),
        "dropout": options.real("dropout"),
    }
    size = options.number_or_null("sample_size")
    raise_all("the UNet's config.json", options.problems)
    return UNetConfig(**fields, sample_size=UNetConfig.sample_size if size is None else size)


def diffusers_unet_json(config: UNetConfig) -> dict[str, Any]:
    """The config.json of the same network, every option written out.

    In training dropout differs: their transformers have none. Raises ValueError for attention in a
    network without text, which their class does not build.
    """
    levels = len(config.block_out_channels)
    context = config.cross_attention_dim
    kinds = (*config.down_block_types, *config.up_block_types)
    if context is None and set(kinds) != {"DownBlock2D", "UpBlock2D"}:
        raise ValueError(
            f"cross_attention_dim=None with attention in the levels ({', '.join(kinds)}): "
            f"diffusers' {UNET_CLASS} has none without text; export it in the single-file layout"
        )
    return {
        CLASS: UNET_CLASS,
        **{name: allowed[0] for name, allowed in UNET_FIXED.items()},
        "sample_size": config.sample_size,
        "in_channels": config.in_channels,
        "out_channels": config.out_channels,
        "block_out_channels": list(config.block_out_channels),
        "down_block_types": list(config.down_block_types),
        "up_block_types": list(config.up_block_types),
        "layers_per_block": config.layers_per_block,
        "attention_head_dim": _short(config.heads),
        "transformer_layers_per_block": _short(config.depths),
        # without text a null a level: their class takes no single one
        "cross_attention_dim": [None] * levels if context is None else context,
        "norm_num_groups": config.norm_num_groups,
        "use_linear_projection": config.use_linear_projection,
        "upcast_attention": config.upcast_attention,
        "dropout": config.dropout,
    }


def diffusers_vae_config(config: Mapping[str, Any]) -> VAEConfig:
    """Our configuration of the autoencoder that a vae/config.json describes.

    Raises ValueError naming everything that is not built here.
    """
    options = Options(config, VAE_READ)
    options.refuse(VAE_CLASS, VAE_FIXED, VAE_IGNORED | EMA_IGNORED)
    fields: dict[str, Any] = {
        "in_channels": options.number("in_channels"),
        "out_channels": options.number("out_channels"),
        "block_out_channels": options.numbers("block_out_channels"),
        "layers_per_block": options.number("layers_per_block"),
        "latent_channels": options.number("latent_channels"),
        "norm_num_groups": options.number("norm_num_groups"),
        "mid_block_add_attention": options.flag("mid_block_add_attention"),
        "scaling_factor": options.real("scaling_factor"),
    }
    levels = len(fields["block_out_channels"])
    for name, known in (("down_block_types", DOWN_VAE), ("up_block_types", UP_VAE)):
        count = len(options.words(name, (known,)))
        if count != levels:
            options.problems.append(f"{name} has {count} values, block_out_channels {levels}")
    raise_all("the VAE's config.json", options.problems)
    return VAEConfig(**fields)


def diffusers_vae_json(config: VAEConfig) -> dict[str, Any]:
    """The config.json of the same autoencoder, every option written out.

    sample_size only sets how large the tiles of their tiled decoding are: Stable Diffusion's 512.
    """
    levels = len(config.block_out_channels)
    return {
        CLASS: VAE_CLASS,
        **{name: allowed[0] for name, allowed in VAE_FIXED.items()},
        "in_channels": config.in_channels,
        "out_channels": config.out_channels,
        "block_out_channels": list(config.block_out_channels),
        "down_block_types": [DOWN_VAE] * levels,
        "up_block_types": [UP_VAE] * levels,
        "layers_per_block": config.layers_per_block,
        "latent_channels": config.latent_channels,
        "norm_num_groups": config.norm_num_groups,
        "mid_block_add_attention": config.mid_block_add_attention,
        "scaling_factor": config.scaling_factor,
        "sample_size": 512,
    }


def _short(values: tuple[int, ...]) -> int | list[int]:
    """One number where all levels have the same."""
    return values[0] if len(set(values)) == 1 else list(values)
