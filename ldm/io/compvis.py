"""What are our parameters called in a checkpoint of the original (CompVis) code?

    model.diffusion_model.    UNet        openaimodel.py numbers its blocks over all levels
    first_stage_model.        VAE         the decoder counts its levels from the picture inwards
    cond_stage_model.         text        x_transformer.py for LDM-BERT (CLIP has names of its own)
    model_ema.                EMA         the UNet's names without their dots

The maps are names only, made from a configuration, one to one: turned round they are the way back.
Rombach et al. 2022; https://github.com/CompVis/latent-diffusion.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache

import torch
from torch import Tensor, nn

from ldm.models.text.bert import LDMBert, LDMBertConfig
from ldm.models.unet import UP_BLOCK_TYPES, UNet, UNetConfig
from ldm.models.vae import AutoencoderKL, VAEConfig

Shape = tuple[int, ...]

UNET, VAE, TEXT = "model.diffusion_model.", "first_stage_model.", "cond_stage_model."
EMA = "model_ema."

UNET_ENDS = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
UNET_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
VAE_ATTENTION = {
    "group_norm": "norm",
    "to_q": "q",
    "to_k": "k",
    "to_v": "v",
    "to_out.0": "proj_out",
}
# Our name or theirs of what is a 1x1 convolution in the file and a linear layer here.
VAE_CONVOLUTION = re.compile(
    r"\.(mid_block\.attentions\.0\.to_(q|k|v|out\.0)|mid\.attn_1\.(q|k|v|proj_out))\.weight$"
)
BERT_ENDS = {
    "model.embed_tokens": "transformer.token_emb",
    "model.embed_positions": "transformer.pos_emb.emb",
    "model.layer_norm": "transformer.norm",
    "to_logits": "transformer.to_logits",
}
BERT_ATTENTION = {
    "self_attn_layer_norm": "0",
    "self_attn.q_proj": "1.to_q",
    "self_attn.k_proj": "1.to_k",
    "self_attn.v_proj": "1.to_v",
    "self_attn.out_proj": "1.to_out",
}
BERT_FEED_FORWARD = {"final_layer_norm": "0", "fc1": "1.net.0.0", "fc2": "1.net.2"}


def unet_names(config: UNetConfig) -> dict[str, str]:
    """Our name: theirs without UNET; every key of UNet(config).state_dict(), in its order."""
    return _renamed(_unet_shapes(config), _unet_modules(config))


def unet_file_shapes(config: UNetConfig) -> dict[str, Shape]:
    """Their name without UNET: the shape in the file, which is ours."""
    shapes = _unet_shapes(config)
    return {theirs: shapes[ours] for ours, theirs in unet_names(config).items()}


def vae_names(config: VAEConfig) -> dict[str, str]:
    """Our name: theirs without VAE; every key of AutoencoderKL(config).state_dict(), in order."""
    return _renamed(_vae_shapes(config), _vae_modules(config))


def vae_file_shapes(config: VAEConfig) -> dict[str, Shape]:
    """Their name without VAE: the shape in the file (see vae_file_shape)."""
    shapes, names = _vae_shapes(config), vae_names(config)
    return {theirs: vae_file_shape(ours, shapes[ours]) for ours, theirs in names.items()}


def vae_file_shape(name: str, shape: Sequence[int]) -> Shape:
    """The shape of a VAE's weight in the file: [C,C,1,1] where the middle's attention has [C,C].

    name: ours or theirs. Every other shape is the same on both sides.
    """
    if VAE_CONVOLUTION.search(f".{name}"):
        return (*shape, 1, 1)[:4]
    return tuple(shape)


def bert_names(config: LDMBertConfig) -> dict[str, str]:
    """Our name: theirs without TEXT; every key of LDMBert(config).state_dict(), in its order."""
    return _renamed(_bert_shapes(config), _bert_modules(config))


def bert_file_shapes(config: LDMBertConfig) -> dict[str, Shape]:
    """Their name without TEXT: the shape in the file, which is ours."""
    shapes = _bert_shapes(config)
    return {theirs: shapes[ours] for ours, theirs in bert_names(config).items()}


def ema_name(full_name: str) -> str:
    """What a parameter's average is called: the name without its first part, without dots.

    model.diffusion_model.out.2.bias -> model_ema.diffusion_modelout2bias
    """
    return EMA + "".join(full_name.split(".")[1:])


def schedule_buffers(alphas_cumprod: Tensor) -> dict[str, Tensor]:
    """The tables beside the weights: alpha^2 of each step, float64 [T] -> 12 tables, float32 [T].

    Ho et al. 2020, eq. 4 (q of x_t), eq. 6-7 (posterior). At zero terminal SNR, where alpha is 0,
    the two reciprocals are infinite, as the original code would have them. Raises ValueError.
    """
    if alphas_cumprod.ndim != 1 or alphas_cumprod.dtype != torch.float64:
        raise ValueError(
            f"alphas_cumprod is {alphas_cumprod.dtype} {list(alphas_cumprod.shape)}; give float64 "
            "[T]: betas are small differences, of which float32 keeps three digits"
        )
    cumprod = alphas_cumprod
    if not 1 > cumprod[0] > cumprod[-1] >= 0 or not bool((cumprod.diff() < 0).all()):
        raise ValueError("alphas_cumprod must fall at every step, from below 1 to 0 or more")
    previous = torch.cat((torch.ones_like(cumprod[:1]), cumprod[:-1]))
    alphas = cumprod / previous
    betas = 1 - alphas
    variance = betas * (1 - previous) / (1 - cumprod)
    tables = {
        "betas": betas,
        "alphas_cumprod": cumprod,
        "alphas_cumprod_prev": previous,
        "sqrt_alphas_cumprod": cumprod.sqrt(),
        "sqrt_one_minus_alphas_cumprod": (1 - cumprod).sqrt(),
        "log_one_minus_alphas_cumprod": (1 - cumprod).log(),
        "sqrt_recip_alphas_cumprod": (1 / cumprod).sqrt(),
        "sqrt_recipm1_alphas_cumprod": (1 / cumprod - 1).sqrt(),
        "posterior_variance": variance,
        "posterior_log_variance_clipped": variance.clamp(min=1e-20).log(),  # the first is 0
        "posterior_mean_coef1": betas * previous.sqrt() / (1 - cumprod),
        "posterior_mean_coef2": (1 - previous) * alphas.sqrt() / (1 - cumprod),
    }
    return {name: table.float() for name, table in tables.items()}


def _unet_modules(config: UNetConfig) -> dict[str, str]:
    """Our module: theirs, also for some that this configuration lacks."""
    layers, last = config.layers_per_block, len(config.block_out_channels) - 1
    modules = dict(UNET_ENDS)
    block = 1  # input_blocks.0 is the first convolution
    for level in range(last + 1):
        ours = f"down_blocks.{level}"
        for layer in range(layers):
            modules |= _resnet(f"{ours}.resnets.{layer}", f"input_blocks.{block}.0")
            modules[f"{ours}.attentions.{layer}"] = f"input_blocks.{block}.1"
            block += 1
        if level < last:
            modules[f"{ours}.downsamplers.0.conv"] = f"input_blocks.{block}.0.op"
            block += 1
    modules |= _resnet("mid_block.resnets.0", "middle_block.0")
    modules["mid_block.attentions.0"] = "middle_block.1"
    modules |= _resnet("mid_block.resnets.1", "middle_block.2")
    block = 0
    for level, kind in enumerate(config.up_block_types):
        ours = f"up_blocks.{level}"
        for layer in range(layers + 1):
            modules |= _resnet(f"{ours}.resnets.{layer}", f"output_blocks.{block}.0")
            modules[f"{ours}.attentions.{layer}"] = f"output_blocks.{block}.1"
            block += 1
        place = 1 + UP_BLOCK_TYPES[kind]  # in the level's last block, after what is there
        modules[f"{ours}.upsamplers.0.conv"] = f"output_blocks.{block - 1}.{place}.conv"
    return modules


def _resnet(ours: str, theirs: str) -> dict[str, str]:
    return {f"{ours}.{our}": f"{theirs}.{their}" for our, their in UNET_RESNET.items()}


def _vae_modules(config: VAEConfig) -> dict[str, str]:
    last = len(config.block_out_channels) - 1
    modules = {"quant_conv": "quant_conv", "post_quant_conv": "post_quant_conv"}
    for side in ("encoder", "decoder"):
        modules |= {f"{side}.{name}": f"{side}.{name}" for name in ("conv_in", "conv_out")}
        modules[f"{side}.conv_norm_out"] = f"{side}.norm_out"
        for ours, theirs in VAE_ATTENTION.items():
            modules[f"{side}.mid_block.attentions.0.{ours}"] = f"{side}.mid.attn_1.{theirs}"
        for index in range(2):
            modules |= _vae_resnet(
                f"{side}.mid_block.resnets.{index}", f"{side}.mid.block_{index + 1}"
            )
    for level in range(last + 1):
        down, up = f"encoder.down.{level}", f"decoder.up.{last - level}"
        for layer in range(config.layers_per_block + 1):  # the decoder has one more
            ours = f"encoder.down_blocks.{level}.resnets.{layer}"
            modules |= _vae_resnet(ours, f"{down}.block.{layer}")
            ours = f"decoder.up_blocks.{level}.resnets.{layer}"
            modules |= _vae_resnet(ours, f"{up}.block.{layer}")
        modules[f"encoder.down_blocks.{level}.downsamplers.0.conv"] = f"{down}.downsample.conv"
        modules[f"decoder.up_blocks.{level}.upsamplers.0.conv"] = f"{up}.upsample.conv"
    return modules


def _vae_resnet(ours: str, theirs: str) -> dict[str, str]:
    return {ours: theirs, f"{ours}.conv_shortcut": f"{theirs}.nin_shortcut"}


def _bert_modules(config: LDMBertConfig) -> dict[str, str]:
    modules = dict(BERT_ENDS)
    for layer in range(config.num_layers):
        parts = (2 * layer, BERT_ATTENTION), (2 * layer + 1, BERT_FEED_FORWARD)
        for place, part in parts:
            for ours, theirs in part.items():
                name = f"transformer.attn_layers.layers.{place}.{theirs}"
                modules[f"model.layers.{layer}.{ours}"] = name
    return modules


def _renamed(names: Iterable[str], modules: Mapping[str, str]) -> dict[str, str]:
    """Each name: the same with the longest module it lies in replaced."""
    renamed = {}
    for name in names:
        module = name
        while module not in modules:
            module = module.rpartition(".")[0]
            assert module, f"{name} lies in none of the modules"
        renamed[name] = modules[module] + name[len(module) :]
    return renamed


@lru_cache(maxsize=8)
def _unet_shapes(config: UNetConfig) -> Mapping[str, Shape]:
    with torch.device("meta"):
        return _shapes(UNet(config))


@lru_cache(maxsize=8)
def _vae_shapes(config: VAEConfig) -> Mapping[str, Shape]:
    with torch.device("meta"):
        return _shapes(AutoencoderKL(config))


@lru_cache(maxsize=8)
def _bert_shapes(config: LDMBertConfig) -> Mapping[str, Shape]:
    with torch.device("meta"):
        return _shapes(LDMBert(config))


def _shapes(module: nn.Module) -> Mapping[str, Shape]:
    return {name: tuple(value.shape) for name, value in module.state_dict().items()}
