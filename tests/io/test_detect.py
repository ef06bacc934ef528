"""Is the network found again from the names and shapes of its tensors?"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from ldm.io.compvis import Shape, bert_file_shapes, unet_file_shapes, vae_file_shapes
from ldm.io.detect import (
    clip_heads,
    compvis_bert_config,
    compvis_unet_config,
    compvis_vae_config,
)
from ldm.models.text.bert import LDMBertConfig
from ldm.models.unet import UNetConfig
from ldm.models.vae import VAEConfig

Shapes = dict[str, Shape]
Change = Callable[[Shapes], Shapes]

SD1 = UNetConfig()
SD2 = UNetConfig(
    num_attention_heads=(5, 10, 20, 20), cross_attention_dim=1024, use_linear_projection=True
)


def small(*attention: bool, up: tuple[bool, ...] | None = None, **fields: object) -> UNetConfig:
    """A narrow UNet; attention by level from the picture inwards, `up` where it differs there."""
    down, back = ("DownBlock2D", "CrossAttnDownBlock2D"), ("UpBlock2D", "CrossAttnUpBlock2D")
    widths = (16, 24, 32)[: len(attention)]
    return UNetConfig(
        **{
            "block_out_channels": widths,
            "down_block_types": tuple(down[has] for has in attention),
            "up_block_types": tuple(back[has] for has in reversed(up or attention)),
            "num_attention_heads": 4,
            "cross_attention_dim": 20,
            "norm_num_groups": 8,
            **fields,
        }
    )


ODD = {
    "one_level": (small(True), {"heads": 4}),
    "none_on_top": (small(False, True), {"heads": 4}),
    "none_at_all": (small(False, False, False, in_channels=3, out_channels=6), {"heads": 4}),
    "other_way_up": (small(True, False, up=(False, True)), {"heads": 4}),
    "one_layer": (small(True, True, False, layers_per_block=1), {"heads": 4}),
    "many_layers": (small(False, True, layers_per_block=11), {"heads": 4}),
    "deep": (
        small(True, True, True, transformer_layers_per_block=(1, 3, 2), use_linear_projection=True),
        {"heads": 4},
    ),
    "deep_only_up": (
        small(False, True, up=(True, True), transformer_layers_per_block=(2, 1)),
        {"heads": 4},
    ),
    "deep_in_the_middle": (
        small(True, False, transformer_layers_per_block=(1, 3)),
        {"heads": 4},
    ),
    "no_text": (small(True, False, cross_attention_dim=None), {"heads": 4}),
    "head_dim": (small(True, True, True, num_attention_heads=(2, 3, 4)), {"head_dim": 8}),
    "default_heads": (small(True, True, num_attention_heads=8), {}),
}


@pytest.mark.parametrize(
    "config",
    [SD1, replace(SD1, in_channels=9), SD2, replace(SD1, cross_attention_dim=1280)],
    ids=["sd15", "inpaint", "sd21", "ldm"],
)
def test_the_published_unets_are_found_without_help(config: UNetConfig) -> None:
    assert compvis_unet_config(unet_file_shapes(config)) == config


@pytest.mark.parametrize("name", ODD)
def test_odd_unets_are_found(name: str) -> None:
    config, given = ODD[name]
    shapes = unet_file_shapes(config)
    shuffled = dict(sorted(shapes.items()))  # the order in a file is not to be relied on
    assert compvis_unet_config(shuffled, **given, groups=8) == config


def without(part: str) -> Change:
    return lambda shapes: {name: shape for name, shape in shapes.items() if part not in name}


def adding(**more: Shape) -> Change:
    return lambda shapes: {**shapes, **{k.replace("__", "."): v for k, v in more.items()}}


def reshaped(name: str, shape: Shape) -> Change:
    return lambda shapes: {**shapes, name: shape}


OP, TO_K = "input_blocks.3.0.op.weight", "input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (adding(label_emb__0__0__weight=(64, 2816)), "Stable Diffusion XL"),
        (adding(label_emb__0__0__weight=(64, 2048)), "unCLIP"),
        (adding(label_emb__weight=(1000, 64)), "upscaler"),
        (adding(double_blocks__0__img_attn__qkv__weight=(9, 3)), "Flux"),
        (adding(joint_blocks__0__x_block__attn__qkv__weight=(9, 3)), "Stable Diffusion 3"),
        (adding(input_hint_block__0__weight=(16, 3, 3, 3)), "ControlNet"),
        (adding(position_net__linears__0__weight=(5, 5)), "GLIGEN"),
        (adding(input_blocks__1__1__time_stack__0__ff_in__net__0__proj__weight=(4, 4)), "video"),
        (adding(middle_block__1__qkv__weight=(96, 32, 1)), "OpenAI-style UNet"),
        (lambda shapes: {"down_blocks.0.resnets.0.norm1.weight": (16,)}, "diffusers' names"),
        (lambda shapes: {}, r"no input_blocks\.0\.0\.weight.* weights of an unknown kind"),
        (without("input_blocks.2."), r"unexpected \['input_blocks\.3"),  # a gap ends the way down
        (without(".op."), r"206 are unexpected \['input_blocks\.3"),  # pooled, no convolution
        (without("input_blocks.1.0.emb_layers"), "2 tensors are missing"),
        (adding(out__3__weight=(4,)), r"1 are unexpected \['out\.3\.weight'\]"),
        (reshaped("out.2.weight", (4,)), r"another shape \['out\.2\.weight: \(4,\)"),
        (reshaped("input_blocks.0.0.weight", ()), "expected 2 axes"),
        (reshaped(TO_K, (16, 16)), "another shape"),  # the text's width differs between levels
        (reshaped("input_blocks.1.0.emb_layers.1.weight", (32, 64)), "another shape"),  # FiLM
    ],
)
def test_other_networks_are_refused_by_name(change: Change, message: str) -> None:
    shapes = unet_file_shapes(ODD["one_layer"][0])
    assert compvis_unet_config(shapes, heads=4, groups=8) == ODD["one_layer"][0]
    with pytest.raises(ValueError, match=message):
        compvis_unet_config(change(shapes), heads=4, groups=8)


def test_levels_of_different_length_are_refused() -> None:
    one = unet_file_shapes(ODD["one_layer"][0])
    second = {
        name.replace("input_blocks.5.", "input_blocks.6."): shape
        for name, shape in one.items()
        if name.startswith("input_blocks.5.")
    }
    with pytest.raises(ValueError, match=r"\[1, 1, 2\] residual blocks"):
        compvis_unet_config({**one, **second}, heads=4, groups=8)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"heads": 4, "head_dim": 8}, "give one of them"),
        ({"head_dim": 5}, "head_dim=5 does not divide"),
        ({"heads": 0}, "heads=0 does not divide"),
        ({"heads": 3}, r"\(16, 24\)"),
    ],
)
def test_heads_that_cannot_be_are_refused(given: dict[str, int], message: str) -> None:
    shapes = unet_file_shapes(ODD["default_heads"][0])
    with pytest.raises(ValueError, match=message):
        compvis_unet_config(shapes, **given, groups=8)


# -- the VAE --------------------------------------------------------------------------------------

TINY_VAE = VAEConfig(block_out_channels=(8, 16), norm_num_groups=4, layers_per_block=1)
VAES = {
    "kl_f8": VAEConfig(),
    "tiny": TINY_VAE,
    "no_attention": replace(TINY_VAE, mid_block_add_attention=False),
    "odd": VAEConfig(
        in_channels=1,
        out_channels=2,
        latent_channels=5,
        block_out_channels=(8,),
        layers_per_block=12,
        norm_num_groups=4,
    ),
}


@pytest.mark.parametrize("name", VAES)
def test_the_vae_is_found(name: str) -> None:
    config = VAES[name]
    shapes = dict(sorted(vae_file_shapes(config).items()))
    assert compvis_vae_config(shapes, groups=config.norm_num_groups) == config


def test_a_vae_with_linear_attention_and_its_training_loss_is_found() -> None:
    shapes = {
        name: shape[:2] if ".attn_1." in name else shape
        for name, shape in vae_file_shapes(TINY_VAE).items()
    }
    shapes["loss.discriminator.main.0.weight"] = (64, 3, 4, 4)
    assert compvis_vae_config(shapes, groups=4) == TINY_VAE


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (adding(quantize__embedding__weight=(8, 4)), "VQ autoencoder"),
        (adding(encoder__down__1__attn__0__q__weight=(16, 16, 1, 1)), "attn_resolutions"),
        (without("decoder."), "expected a KL autoencoder"),
        (without("quant_conv"), "missing"),
        (reshaped("quant_conv.weight", (6, 8, 1, 1)), "another shape"),  # embed_dim is not z
        (reshaped("encoder.conv_out.weight", (4, 16, 3, 3)), "another shape"),  # one z, not two
    ],
)
def test_other_autoencoders_are_refused(change: Change, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        compvis_vae_config(change(vae_file_shapes(TINY_VAE)), groups=4)


# -- text encoders --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "head_dim"),
    [
        (LDMBertConfig(), None),
        (LDMBertConfig(width=40, num_layers=1, num_heads=1, head_dim=24), None),
        (
            LDMBertConfig(
                vocab_size=60,
                max_tokens=9,
                width=40,
                num_layers=3,
                num_heads=2,
                head_dim=12,
                ff_width=72,
            ),
            12,
        ),
    ],
    ids=["ldm", "one_head", "small"],
)
def test_ldm_bert_is_found(config: LDMBertConfig, head_dim: int | None) -> None:
    assert compvis_bert_config(bert_file_shapes(config), head_dim=head_dim) == config


def test_other_text_encoders_are_no_ldm_bert() -> None:
    shapes = bert_file_shapes(LDMBertConfig(num_layers=1))
    with pytest.raises(ValueError, match="head_dim=60 does not divide"):
        compvis_bert_config(shapes, head_dim=60)
    with pytest.raises(ValueError, match="2 tensors are missing"):
        compvis_bert_config(without("to_logits")(shapes))
    with pytest.raises(ValueError, match="a CLIP text encoder alone"):
        compvis_bert_config({"embeddings.token_embedding.weight": (49408, 768)})


def test_heads_of_clip() -> None:
    assert [clip_heads(width) for width in (512, 768, 1024, 1280)] == [8, 12, 16, 20]
    with pytest.raises(ValueError, match="width 100; must be a multiple of 64"):
        clip_heads(100)
