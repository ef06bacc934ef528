"""Is every kind of weight file known by its names?"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from ldm.io.kinds import KINDS, RULES, kind_of, kind_words
from ldm.models.unet import UNet, UNetConfig
from ldm.models.vae import VAEConfig, build_vae

Shapes = dict[str, tuple[int, ...]]

COMPVIS_UNET = ("input_blocks.0.0.weight", "time_embed.0.weight", "out.2.weight")
COMPVIS_VAE = (
    "encoder.conv_in.weight",
    "encoder.down.0.block.0.norm1.weight",
    "decoder.conv_in.weight",
)
CLIP = ("embeddings.token_embedding.weight", "encoder.layers.0.self_attn.q_proj.weight")
OPENCLIP = ("token_embedding.weight", "transformer.resblocks.0.attn.in_proj_weight")
BERT = ("transformer.token_emb.weight", "transformer.attn_layers.layers.0.1.to_q.weight")


def named(*names: str, shape: tuple[int, ...] = (2, 3, 1, 1)) -> Shapes:
    return dict.fromkeys(names, shape)


def under(prefix: str, names: tuple[str, ...]) -> Shapes:
    return named(*(prefix + name for name in names))


UNET = under("model.diffusion_model.", COMPVIS_UNET)
VAE = under("first_stage_model.", COMPVIS_VAE)
SD1_TEXT = under("cond_stage_model.transformer.text_model.", CLIP)
SD2_TEXT = under("cond_stage_model.model.", OPENCLIP)
WHOLE = UNET | VAE | SD1_TEXT


@pytest.mark.parametrize(
    ("kind", "shapes"),
    [
        ("single", WHOLE),
        ("single", UNET | VAE | SD2_TEXT),
        ("single", UNET | VAE | under("cond_stage_model.", BERT)),
        ("single", WHOLE | named("model_ema.diffusion_modelinput_blocks00weight", "betas")),
        ("single", UNET | VAE),  # without its text encoder: an error of whoever needs it
        ("unet", UNET),
        ("unet", named(*COMPVIS_UNET)),
        ("unet", named("conv_in.weight", "time_embedding.linear_1.weight")),
        ("vae", VAE),
        ("vae", named(*COMPVIS_VAE, "loss.logvar", "quant_conv.weight")),
        ("vq", named(*COMPVIS_VAE, "quantize.embedding.weight")),
        ("vq", under("first_stage_model.", (*COMPVIS_VAE, "quantize.embedding.weight"))),
        ("clip_text", SD1_TEXT),
        ("clip_text", under("text_model.", CLIP)),
        ("clip_text", named(*CLIP)),
        ("openclip_text", SD2_TEXT),
        ("openclip_text", named(*OPENCLIP)),
        ("clip", under("text_model.", CLIP) | named("vision_model.embeddings.class_embedding")),
        ("clip", named(*OPENCLIP, "visual.conv1.weight")),
        ("ldm_bert", named(*BERT)),
        ("ldm_bert", under("cond_stage_model.", BERT)),
        ("lora", named("lora_unet_mid_block_attentions_0_proj_in.lora_down.weight")),
        ("lora", named("lora_te_text_model_encoder_layers_0_mlp_fc1.alpha", shape=())),
        ("lora", named("lora_te1_text_model_encoder_layers_0_mlp_fc1.lora_up.weight")),
        ("lora", named("unet.mid_block.attentions.0.attn1.to_q.lora_A.weight")),
        ("lora", named("unet.mid_block.attentions.0.attn1.to_q.lora.down.weight")),
        ("lora", named("mid_block.attentions.0.attn1.processor.to_q_lora.up.weight")),
        ("lora", named("lora_unet_mid_block_attentions_0_proj_in.hada_w1_a")),
        ("lora", named("lycoris_unet_mid_block.lokr_w1")),
        ("hypernetwork", named("320.0.linear.0.weight", "768.1.linear.2.bias")),
        ("hypernetwork", named("768.0.linear1.weight")),
        ("textual_inversion", named("string_to_token.*", "string_to_param.*")),
        ("textual_inversion", named("emb_params", shape=(4, 768))),
        ("textual_inversion", named("<cat.toy>", shape=(768,))),
        ("textual_inversion", {"clip_l": (2, 768), "clip_g": (2, 1280)}),
        ("controlnet", under("control_model.", COMPVIS_UNET) | UNET | VAE | SD1_TEXT),
        ("controlnet", named("zero_convs.0.0.weight", *COMPVIS_UNET)),
        ("ip_adapter", named("image_proj.proj.weight", "ip_adapter.1.to_k_ip.weight")),
        ("t2i_adapter", named("body.0.block1.weight", "conv_in.weight")),
        ("motion", named("down_blocks.0.motion_modules.0.temporal_transformer.norm.weight")),
        ("sdxl", WHOLE | named("conditioner.embedders.0.transformer.x")),
        ("sdxl", UNET | named("model.diffusion_model.label_emb.0.0.weight")),
        ("sd3", under("model.diffusion_model.", ("joint_blocks.0.x_block.attn.qkv.weight",)) | VAE),
        ("flux", named("double_blocks.0.img_attn.qkv.weight", "single_blocks.0.linear1.weight")),
        ("upscaler", WHOLE | named("low_scale_model.betas")),
        ("upscaler", WHOLE | named("model.diffusion_model.label_emb.weight")),
        (
            "unclip",
            UNET
            | VAE
            | SD2_TEXT
            | named("model.diffusion_model.label_emb.0.0.weight", "noise_augmentor.data_mean"),
        ),
        ("depth", WHOLE | named("depth_model.model.scratch.layer1_rn.weight")),
        ("esrgan", named("conv_first.weight", "body.0.rdb1.conv1.weight")),
        ("esrgan", named("model.0.weight", "model.1.sub.0.RDB1.conv1.0.weight")),
        ("taesd", named("1.weight", "3.conv.0.weight")),
        ("optimizer", named("state.0.exp_avg", "state.0.step")),
        ("unknown", named("layers.0.weight", "layers.0.bias")),
        ("unknown", named("model.embed_tokens.weight", shape=(32000, 4096))),
        ("unknown", named("fc.weight", shape=(10, 768))),
        ("unknown", {}),
    ],
)
def test_a_kind_is_known_by_its_names(kind: str, shapes: Shapes) -> None:
    assert kind_of(shapes) == kind


def test_our_own_networks_are_known() -> None:
    with torch.device("meta"):
        unet, vae = UNet(UNetConfig()), build_vae(VAEConfig())
    assert kind_of(shapes_of(unet)) == "unet"
    assert kind_of(shapes_of(vae)) == "vae"


def test_every_kind_can_be_found_and_said() -> None:
    assert {kind for kind, _ in RULES} | {"unknown"} == set(KINDS)
    assert all(kind_words(kind) == words for kind, words in KINDS.items())
    assert "LoRA" in kind_words("lora")
    with pytest.raises(KeyError):
        kind_words("something")


def shapes_of(module: torch.nn.Module) -> Shapes:
    return {name: tuple(value.shape) for name, value in module.state_dict().items()}


@pytest.mark.reference
@pytest.mark.parametrize(
    ("kind", "name", "config"),
    [
        ("unet", "UNet2DConditionModel", {}),
        (
            "sdxl",
            "UNet2DConditionModel",
            {
                "addition_embed_type": "text_time",
                "addition_time_embed_dim": 8,
                "projection_class_embeddings_input_dim": 16,
            },
        ),
        ("upscaler", "UNet2DConditionModel", {"num_class_embeds": 1000}),
        (
            "unclip",
            "UNet2DConditionModel",
            {"class_embed_type": "projection", "projection_class_embeddings_input_dim": 16},
        ),
        ("vae", "AutoencoderKL", {}),
        ("vq", "VQModel", {}),
        ("taesd", "AutoencoderTiny", {}),
        ("controlnet", "ControlNetModel", {}),
        ("motion", "MotionAdapter", {}),
        ("t2i_adapter", "T2IAdapter", {}),
        ("sd3", "SD3Transformer2DModel", {}),
        ("flux", "FluxTransformer2DModel", {}),
    ],
)
def test_the_networks_of_diffusers_are_known(kind: str, name: str, config: dict[str, Any]) -> None:
    import diffusers

    with torch.device("meta"):
        network = getattr(diffusers, name)(**config)
    assert kind_of(shapes_of(network)) == kind


def test_the_networks_of_transformers_are_known() -> None:
    from transformers import CLIPConfig, CLIPModel, CLIPTextConfig, CLIPTextModel

    with torch.device("meta"):
        text, whole = CLIPTextModel(CLIPTextConfig()), CLIPModel(CLIPConfig())
    assert kind_of(shapes_of(text)) == "clip_text"
    assert kind_of(shapes_of(whole)) == "clip"
