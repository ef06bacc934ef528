"""What is this set of tensors?

Names and shapes tell; nothing is read. It serves the errors: whoever gives a LoRA file where a
model is expected is told that it is one.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping

Shapes = Mapping[str, tuple[int, ...]]

# every kind, and what it is in a sentence "FILE is …"
KINDS = {
    "single": "a Stable Diffusion checkpoint in the CompVis layout",
    "unet": "a UNet alone",
    "vae": "a VAE alone",
    "vq": "a VQ autoencoder alone",
    "clip_text": "a CLIP text encoder alone",
    "openclip_text": "an OpenCLIP text encoder alone",
    "clip": "a whole CLIP model, for pictures and text",
    "ldm_bert": "an LDM-BERT text encoder alone",
    "lora": "LoRA weights, which change a model and are none themselves",
    "hypernetwork": "a hypernetwork, which changes a model and is none itself",
    "textual_inversion": "a textual inversion: embeddings of new words, no model",
    "controlnet": "a ControlNet, which steers a model and is none itself",
    "ip_adapter": "an IP-Adapter, which steers a model and is none itself",
    "t2i_adapter": "a T2I-Adapter, which steers a model and is none itself",
    "motion": "a motion module (AnimateDiff), which animates a model and is none itself",
    "sdxl": "Stable Diffusion XL weights",
    "sd3": "Stable Diffusion 3 weights",
    "flux": "Flux weights",
    "upscaler": "a Stable Diffusion upscaler, which is conditioned on a small picture",
    "unclip": "a Stable Diffusion unCLIP checkpoint, which is conditioned on a picture",
    "depth": "a Stable Diffusion depth checkpoint, with its depth estimator",
    "esrgan": "an ESRGAN upscaler, which makes pictures larger without diffusion",
    "taesd": "a tiny autoencoder (TAESD)",
    "optimizer": "an optimizer's state, not the model's weights",
    "unknown": "weights of an unknown kind",
}

UNET, VAE, TEXT = "model.diffusion_model.", "first_stage_model.", "cond_stage_model."
LORA = re.compile(
    r"(^|[._])lora_(unet|te\d?|transformer|A|B|up|down|linear_layer)\b|lora_(unet|te\d?)_|"
    r"(\.|_)lora\.(up|down)\.|\.(hada_w\d_[ab]|lokr_w\d(_[ab])?|oft_blocks)$"
)
EMBEDDED = (768, 1024, 1280)  # widths of the text encoders that embeddings are trained for
CONTROLNET = r"(controlnet_(cond_embedding|down_blocks)|zero_convs|input_hint_block)"
CLIP_VISION = r"(visual\.(conv1|class_embedding|proj|trunk)|vision_model\.embeddings)"


def kind_of(shapes: Shapes) -> str:
    """One of KINDS. shapes: of all tensors, by name."""
    return next((kind for kind, is_kind in RULES if is_kind(shapes)), "unknown")


def kind_words(kind: str) -> str:
    """What the kind is, to be read after "FILE is". Raises KeyError for none of KINDS."""
    return KINDS[kind]


def _any(pattern: str | re.Pattern[str]) -> Callable[[Shapes], bool]:
    compiled = re.compile(pattern)
    return lambda shapes: any(compiled.search(name) for name in shapes)


def _without(names: Iterable[str], prefix: str) -> set[str]:
    """The names, or what follows `prefix` in them when any begins with it."""
    inside = {name.removeprefix(prefix) for name in names if name.startswith(prefix)}
    return inside or set(names)


def _is_single(shapes: Shapes) -> bool:
    parts = [any(name.startswith(prefix) for name in shapes) for prefix in (UNET, VAE, TEXT)]
    return parts[0] and any(parts[1:])


def _is_unet(shapes: Shapes) -> bool:
    names = _without(shapes, UNET)
    return {"input_blocks.0.0.weight", "time_embed.0.weight"} <= names or {
        "conv_in.weight",
        "time_embedding.linear_1.weight",
    } <= names


def _is_vae(shapes: Shapes) -> bool:
    names = _without(shapes, VAE)
    return {"encoder.conv_in.weight", "decoder.conv_in.weight"} <= names


def _is_vq(shapes: Shapes) -> bool:
    return _is_vae(shapes) and bool(
        {"quantize.embedding.weight", "quantize.embed"} & _without(shapes, VAE)
    )


def _is_textual_inversion(shapes: Shapes) -> bool:
    """A1111's, kohya's, SDXL's; else a few vectors as wide as a text encoder."""
    if any(name == "emb_params" or name.startswith("string_to_param.") for name in shapes):
        return True
    layers = any(name.endswith((".weight", ".bias")) for name in shapes)
    vectors = all(0 < len(s) < 3 and s[-1] in EMBEDDED for s in shapes.values())
    return 0 < len(shapes) <= 8 and vectors and not layers


# the first that holds: those that contain or resemble others come before them
RULES: tuple[tuple[str, Callable[[Shapes], bool]], ...] = (
    ("optimizer", _any(r"(^|\.)state\.\d+\.(exp_avg|momentum_buffer|step)")),
    ("lora", _any(LORA)),
    ("hypernetwork", _any(r"(^|\.)\d+\.[01]\.linear(\d+)?\.")),
    ("ip_adapter", _any(r"^ip_adapter\.|^image_proj\.|\.to_k_ip\.")),
    ("controlnet", _any(rf"^control_model\.|(^|\.){CONTROLNET}\.")),
    ("motion", _any(r"(^|\.)motion_modules?\.")),
    ("unclip", _any(r"^noise_augmentor\.|^class_embedding\.linear_1\.")),
    ("depth", _any(r"^depth_model\.")),
    ("sdxl", _any(r"^conditioner\.embedders\.|(^|\.)(label_emb\.0\.0|add_embedding\.linear_1)\.")),
    ("upscaler", _any(r"^low_scale_model\.|(^|\.)label_emb\.weight$|^class_embedding\.weight$")),
    ("flux", _any(r"(^|\.)(double_blocks\.0|single_transformer_blocks\.0)\.")),
    ("sd3", _any(r"(^|\.)(joint_blocks\.0|transformer_blocks\.0\.attn\.add_q_proj)\.")),
    ("single", _is_single),
    ("unet", _is_unet),
    ("vq", _is_vq),
    ("vae", _is_vae),
    ("clip", _any(rf"(^|\.){CLIP_VISION}\b")),
    ("ldm_bert", _any(r"(^|\.)transformer\.token_emb\.weight$")),
    ("clip_text", _any(r"(^|\.)embeddings\.token_embedding\.weight$")),
    ("openclip_text", _any(r"(^|\.)transformer\.resblocks\.0\.attn\.in_proj_weight$")),
    ("t2i_adapter", _any(r"^(adapter\.)?body\.\d+\.(block1|resnets\.0\.block1)\.")),
    ("esrgan", _any(r"(^|\.)(RDB1|rdb1)\.conv1\.")),
    ("taesd", _any(r"^((encoder|decoder)\.layers\.)?\d+\.conv\.\d\.weight$")),
    ("textual_inversion", _is_textual_inversion),
)
