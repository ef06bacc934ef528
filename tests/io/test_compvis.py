"""Do our parameters have the names that the original code gave them?"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from ldm.diffusion.schedules import Cosine, ScaledLinear
from ldm.io.compvis import (
    UNET,
    bert_file_shapes,
    bert_names,
    ema_name,
    schedule_buffers,
    unet_file_shapes,
    unet_names,
    vae_file_shape,
    vae_file_shapes,
    vae_names,
)
from ldm.models.text.bert import LDMBert, LDMBertConfig
from ldm.models.unet import UNet, UNetConfig
from ldm.models.vae import AutoencoderKL, VAEConfig

SD1 = UNetConfig()
SD2 = UNetConfig(
    num_attention_heads=(5, 10, 20, 20), cross_attention_dim=1024, use_linear_projection=True
)
FULL = {  # the published networks and their numbers of parameters
    "sd15": (SD1, 859_520_964),
    "inpaint": (replace(SD1, in_channels=9), 859_535_364),
    "sd21": (SD2, 865_910_724),
    "ldm": (replace(SD1, cross_attention_dim=1280), 872_300_484),
}
SMALL = {"norm_num_groups": 8, "num_attention_heads": 2, "cross_attention_dim": 12}
ATTENDS, PLAIN = ("CrossAttnDownBlock2D", "CrossAttnUpBlock2D"), ("DownBlock2D", "UpBlock2D")
ODD = {
    "one_level": UNetConfig(
        block_out_channels=(16,),
        down_block_types=(ATTENDS[0],),
        up_block_types=(ATTENDS[1],),
        **SMALL,
    ),
    "many_layers": UNetConfig(  # two-digit blocks; other attention on the way up than down
        block_out_channels=(16, 32),
        down_block_types=(PLAIN[0], ATTENDS[0]),
        up_block_types=(PLAIN[1], ATTENDS[1]),
        layers_per_block=11,
        transformer_layers_per_block=(3, 1),
        **SMALL,
    ),
    "no_text": UNetConfig(
        block_out_channels=(16, 16, 32),
        down_block_types=(PLAIN[0],) * 3,
        up_block_types=(PLAIN[1],) * 3,
        layers_per_block=1,
        use_linear_projection=True,
        **{**SMALL, "cross_attention_dim": None},
    ),
}
UNETS = {**{name: config for name, (config, _) in FULL.items()}, **ODD}


def meta_shapes(module: type[torch.nn.Module], config: object) -> dict[str, tuple[int, ...]]:
    with torch.device("meta"):
        state = module(config).state_dict()
    return {name: tuple(value.shape) for name, value in state.items()}


@pytest.mark.parametrize("name", UNETS)
def test_every_unet_parameter_has_one_name_of_its_own(name: str) -> None:
    config = UNETS[name]
    ours, names = meta_shapes(UNet, config), unet_names(config)
    assert list(names) == list(ours)  # all of them, in their order
    assert len(set(names.values())) == len(names)
    assert unet_file_shapes(config) == {names[key]: shape for key, shape in ours.items()}
    averages = {ema_name(UNET + theirs) for theirs in names.values()}
    assert len(averages) == len(names)  # without dots two could have become one


@pytest.mark.parametrize("name", FULL)
def test_the_published_unets_have_their_size(name: str) -> None:
    config, parameters = FULL[name]
    shapes = unet_file_shapes(config)
    assert len(shapes) == 686
    assert sum(int(np.prod(shape)) for shape in shapes.values()) == parameters


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ("conv_in.weight", "input_blocks.0.0.weight"),
        ("time_embedding.linear_2.bias", "time_embed.2.bias"),
        ("down_blocks.0.resnets.1.time_emb_proj.bias", "input_blocks.2.0.emb_layers.1.bias"),
        ("down_blocks.0.downsamplers.0.conv.weight", "input_blocks.3.0.op.weight"),
        ("down_blocks.1.resnets.0.conv_shortcut.weight", "input_blocks.4.0.skip_connection.weight"),
        (
            "down_blocks.2.attentions.1.transformer_blocks.0.attn2.to_out.0.bias",
            "input_blocks.8.1.transformer_blocks.0.attn2.to_out.0.bias",
        ),
        ("down_blocks.3.resnets.1.norm2.weight", "input_blocks.11.0.out_layers.0.weight"),
        ("mid_block.resnets.0.conv1.weight", "middle_block.0.in_layers.2.weight"),
        ("mid_block.attentions.0.proj_in.weight", "middle_block.1.proj_in.weight"),
        ("mid_block.resnets.1.conv2.weight", "middle_block.2.out_layers.3.weight"),
        ("up_blocks.0.resnets.0.norm1.weight", "output_blocks.0.0.in_layers.0.weight"),
        ("up_blocks.0.upsamplers.0.conv.weight", "output_blocks.2.1.conv.weight"),
        ("up_blocks.1.upsamplers.0.conv.bias", "output_blocks.5.2.conv.bias"),
        (
            "up_blocks.3.attentions.2.transformer_blocks.0.ff.net.0.proj.weight",
            "output_blocks.11.1.transformer_blocks.0.ff.net.0.proj.weight",
        ),
        ("conv_norm_out.weight", "out.0.weight"),
        ("conv_out.bias", "out.2.bias"),
    ],
)
def test_names_in_stable_diffusion_1(ours: str, theirs: str) -> None:
    assert unet_names(SD1)[ours] == theirs


def test_projections_are_convolutions_in_sd_1_and_linear_in_sd_2() -> None:
    name = "input_blocks.1.1.proj_in.weight"
    assert unet_file_shapes(SD1)[name] == (320, 320, 1, 1)
    assert unet_file_shapes(SD2)[name] == (320, 320)


def test_an_average_is_named_without_dots() -> None:
    name = f"{UNET}input_blocks.0.0.weight"
    assert ema_name(name) == "model_ema.diffusion_modelinput_blocks00weight"


# -- the VAE --------------------------------------------------------------------------------------

VAES = {
    "kl_f8": VAEConfig(),
    "no_attention": VAEConfig(
        block_out_channels=(8, 16), norm_num_groups=4, mid_block_add_attention=False
    ),
    "one_level": VAEConfig(block_out_channels=(8,), norm_num_groups=4, layers_per_block=12),
}


@pytest.mark.parametrize("name", VAES)
def test_every_vae_parameter_has_one_name_of_its_own(name: str) -> None:
    config = VAES[name]
    ours, names = meta_shapes(AutoencoderKL, config), vae_names(config)
    assert list(names) == list(ours)
    assert len(set(names.values())) == len(names)
    sizes = {names[key]: int(np.prod(shape)) for key, shape in ours.items()}
    found = {key: int(np.prod(shape)) for key, shape in vae_file_shapes(config).items()}
    assert found == sizes


def test_the_vae_of_stable_diffusion() -> None:
    shapes = vae_file_shapes(VAEConfig())
    assert len(shapes) == 248
    assert sum(int(np.prod(shape)) for shape in shapes.values()) == 83_653_863
    four = [name for name, shape in shapes.items() if ".attn_1." in name and len(shape) == 4]
    assert len(four) == 8  # q, k, v and proj_out on both sides
    names = vae_names(VAEConfig())
    for ours, theirs in {
        "encoder.down_blocks.1.resnets.0.conv_shortcut.weight": (
            "encoder.down.1.block.0.nin_shortcut.weight"
        ),
        "encoder.down_blocks.2.downsamplers.0.conv.bias": "encoder.down.2.downsample.conv.bias",
        "encoder.mid_block.resnets.1.norm1.weight": "encoder.mid.block_2.norm1.weight",
        "encoder.conv_norm_out.bias": "encoder.norm_out.bias",
        "decoder.mid_block.attentions.0.group_norm.bias": "decoder.mid.attn_1.norm.bias",
        "decoder.mid_block.attentions.0.to_out.0.weight": "decoder.mid.attn_1.proj_out.weight",
        "decoder.up_blocks.0.resnets.2.conv1.weight": "decoder.up.3.block.2.conv1.weight",
        "decoder.up_blocks.2.upsamplers.0.conv.weight": "decoder.up.1.upsample.conv.weight",
        "post_quant_conv.weight": "post_quant_conv.weight",
    }.items():
        assert names[ours] == theirs


@pytest.mark.parametrize("shape", [(64, 64), (64, 64, 1), (64, 64, 1, 1)])
def test_attention_weights_of_any_age_are_convolutions_in_the_file(shape: tuple[int, ...]) -> None:
    for name in ("encoder.mid_block.attentions.0.to_out.0.weight", "decoder.mid.attn_1.q.weight"):
        assert vae_file_shape(name, shape) == (64, 64, 1, 1)


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("encoder.mid_block.attentions.0.to_q.bias", (64,)),
        ("encoder.mid_block.attentions.0.group_norm.weight", (64,)),
        ("quant_conv.weight", (8, 8, 1, 1)),
        ("decoder.conv_in.weight", (64, 4, 3, 3)),
    ],
)
def test_other_weights_of_the_vae_keep_their_shape(name: str, shape: tuple[int, ...]) -> None:
    assert vae_file_shape(name, shape) == shape


# -- LDM-BERT -------------------------------------------------------------------------------------


def test_the_text_encoder_of_ldm() -> None:
    config = LDMBertConfig()
    names, shapes = bert_names(config), bert_file_shapes(config)
    assert list(names) == list(meta_shapes(LDMBert, config))
    assert len(set(names.values())) == len(names)
    assert sum(int(np.prod(shape)) for shape in shapes.values()) == 581_994_042
    layers = "transformer.attn_layers.layers"
    assert {
        "transformer.token_emb.weight": (30522, 1280),
        "transformer.pos_emb.emb.weight": (77, 1280),
        f"{layers}.0.0.weight": (1280,),
        f"{layers}.0.1.to_q.weight": (512, 1280),
        f"{layers}.62.1.to_out.bias": (1280,),
        f"{layers}.63.0.bias": (1280,),
        f"{layers}.63.1.net.0.0.weight": (5120, 1280),
        f"{layers}.63.1.net.2.weight": (1280, 5120),
        "transformer.norm.weight": (1280,),
        "transformer.to_logits.weight": (30522, 1280),
    }.items() <= shapes.items()


# -- schedule buffers -----------------------------------------------------------------------------


def test_buffers_of_the_default_schedule() -> None:
    """Against the betas themselves, in numpy; and the published ends of the schedule."""
    schedule = ScaledLinear()
    betas = np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
    cumprod = np.cumprod(1 - betas)
    before = np.append(1.0, cumprod[:-1])
    noise = 1 - cumprod
    variance = betas * (1 - before) / noise
    expected = {
        "betas": betas,
        "alphas_cumprod": cumprod,
        "alphas_cumprod_prev": before,
        "sqrt_alphas_cumprod": cumprod**0.5,
        "sqrt_one_minus_alphas_cumprod": noise**0.5,
        "log_one_minus_alphas_cumprod": np.log(noise),
        "sqrt_recip_alphas_cumprod": cumprod**-0.5,
        "sqrt_recipm1_alphas_cumprod": (noise / cumprod) ** 0.5,
        "posterior_variance": variance,
        "posterior_log_variance_clipped": np.log(np.maximum(variance, 1e-20)),
        "posterior_mean_coef1": betas * before**0.5 / noise,
        "posterior_mean_coef2": (1 - before) * (1 - betas) ** 0.5 / noise,
    }
    found = schedule_buffers(schedule.alphas_cumprod())
    assert found.keys() == expected.keys()
    for name, table in expected.items():
        assert found[name].dtype == torch.float32
        # betas are recovered from products: beyond float32's own rounding there is next to nothing
        np.testing.assert_allclose(found[name].numpy(), table, rtol=1.2e-7, atol=0, err_msg=name)
    ends = found["alphas_cumprod"][[0, 1, 499, 999]].tolist()
    assert ends == pytest.approx([0.99915, 0.998296, 0.2776697, 0.0046601], rel=1e-5)
    sigma = found["sqrt_recipm1_alphas_cumprod"][[0, -1]].tolist()
    assert sigma == pytest.approx([0.0291672, 14.6146412], rel=2e-6)
    assert found["posterior_variance"][0] == 0
    assert found["posterior_log_variance_clipped"][0] == pytest.approx(np.log(1e-20))


def test_buffers_at_zero_terminal_snr() -> None:
    found = schedule_buffers(ScaledLinear(zero_terminal_snr=True).alphas_cumprod())
    assert found["alphas_cumprod"][-2:].tolist() == pytest.approx([1.968e-7, 0], rel=1e-3)
    assert found["betas"][-1] == 1
    infinite = [name for name, table in found.items() if not table.isfinite().all()]
    assert infinite == ["sqrt_recip_alphas_cumprod", "sqrt_recipm1_alphas_cumprod"]


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (Cosine().alphas_cumprod().float(), "float32"),
        (Cosine().alphas_cumprod()[None], r"\[1, 1000\]"),
        (Cosine().alphas_cumprod().flip(0), "fall at every step"),
        (torch.ones(5, dtype=torch.float64), "fall at every step"),
    ],
)
def test_other_tables_are_refused(table: torch.Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        schedule_buffers(table)
