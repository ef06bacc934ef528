"""How do OpenCLIP's text weights, as Stable Diffusion 2 keeps them, map to ours?

The network is ClipText with other options: 23 of 24 layers (the penultimate hidden state, then the
final norm), gelu, pads of "!" (id 0).
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor
from transformers import CLIPTextConfig

SD2_LAYERS = 23
SD2_PAD = "!"

# OpenCLIP's name: ours, without a prefix. Layers: the part after `transformer.resblocks.N.`.
OUTER = {
    "token_embedding.weight": "embeddings.token_embedding.weight",
    "positional_embedding": "embeddings.position_embedding.weight",
    "ln_final.weight": "final_layer_norm.weight",
    "ln_final.bias": "final_layer_norm.bias",
}
INNER = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "attn.out_proj": "self_attn.out_proj",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}
FUSED = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")  # order in attn.in_proj
UNUSED = ("text_projection", "logit_scale", "attn_mask")
BLOCK = re.compile(r"transformer\.resblocks\.(\d+)\.(.+)[._](weight|bias)$")
LAYER = re.compile(r"encoder\.layers\.(\d+)\.(.+)\.(weight|bias)$")


def openclip_h_config() -> CLIPTextConfig:
    """OpenCLIP ViT-H/14's text tower, all 24 layers."""
    return CLIPTextConfig(
        vocab_size=49408,
        hidden_size=1024,
        intermediate_size=4096,
        num_hidden_layers=24,
        num_attention_heads=16,
        max_position_embeddings=77,
        hidden_act="gelu",
        projection_dim=1024,
    )


def from_open_clip(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights under `cond_stage_model.model.` of an SD 2 file (prefix removed), under our names."""
    ours: dict[str, Tensor] = {}
    for key, value in state.items():
        match = BLOCK.match(key)
        if key in OUTER:
            ours[OUTER[key]] = value
        elif match and match[2] == "attn.in_proj":
            for name, part in zip(FUSED, value.chunk(3), strict=True):  # [3C,...] -> 3 x [C,...]
                ours[f"encoder.layers.{match[1]}.{name}.{match[3]}"] = part
        elif match and match[2] in INNER:
            ours[f"encoder.layers.{match[1]}.{INNER[match[2]]}.{match[3]}"] = value
        elif key not in UNUSED:
            raise ValueError(f"{key} is no part of an OpenCLIP text tower; remove it from the file")
    return ours


def to_open_clip(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The way back. What a context does not need (projection, the last block) is not made up."""
    outer = {ours: theirs for theirs, ours in OUTER.items()}
    inner = {ours: theirs for theirs, ours in INNER.items()}
    theirs: dict[str, Tensor] = {}
    for name, value in state.items():
        match = LAYER.match(name)
        if name in outer:
            theirs[outer[name]] = value
        elif match is None:
            raise ValueError(f"{name} is no weight of a CLIP text model without prefix")
        elif match[2] in inner:
            theirs[f"transformer.resblocks.{match[1]}.{inner[match[2]]}.{match[3]}"] = value
        elif match[2] == FUSED[0]:
            parts = [state[f"encoder.layers.{match[1]}.{part}.{match[3]}"] for part in FUSED]
            theirs[f"transformer.resblocks.{match[1]}.attn.in_proj_{match[3]}"] = torch.cat(parts)
    return theirs
