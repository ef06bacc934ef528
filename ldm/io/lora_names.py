"""How do LoRA files name the layers that they change?

    kohya             lora_unet_mid_block_attentions_0_proj_in.lora_down.weight, .lora_up.weight,
                      .alpha; lora_te_text_model_encoder_layers_0_mlp_fc1.… in the text encoder
    diffusers         unet.<path>.lora_A.weight (down), .lora_B.weight (up); text_encoder.<path>.…
    peft              base_model.model.<path>.lora_A.weight, .lora_B.weight
    diffusers-old     unet.<path>.lora.down.weight;
                      text_encoder.<path>.lora_linear_layer.down.weight
    diffusers-oldest  <path of the attention>.processor.to_q_lora.down.weight

All are brought to one form: the part, `unet` or `text`, and the layer, its path with `_` for each
dot and without `text_model`, which transformers has or has not, depending on its version.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

PREFIX = "text_model."
PARTS = {"unet": "unet", "te": "text", "text_encoder": "text"}
THEIR_PARTS = {"unet": "unet", "text": "text_encoder"}  # what diffusers calls our parts
ROLES = {
    "lora_down.weight": "down",
    "lora_A.weight": "down",
    "down.weight": "down",
    "lora_up.weight": "up",
    "lora_B.weight": "up",
    "up.weight": "up",
    "alpha": "alpha",
}
_PART = r"((?P<part>unet|text_encoder)\.)?"
_PATH = r"(?P<path>[\w.]+)"
FORMATS = {
    "kohya": r"lora_(?P<part>unet|te)_(?P<path>\w+)\.(?P<role>lora_(down|up)\.weight|alpha)",
    "peft": rf"base_model\.model\.{_PATH}\.(?P<role>lora_[AB]\.weight)",
    "diffusers": rf"{_PART}{_PATH}\.(?P<role>lora_[AB]\.weight|alpha)",
    "diffusers-oldest": rf"{_PART}{_PATH}\.to_(?P<to>q|k|v|out)_lora\.(?P<role>(down|up)\.weight)",
    "diffusers-old": rf"{_PART}{_PATH}\.lora(_linear_layer)?\.(?P<role>(down|up)\.weight)",
}
_COMPILED = {name: re.compile(pattern, re.ASCII) for name, pattern in FORMATS.items()}
UNET_ROOTS = ("down_blocks.", "mid_block.", "up_blocks.", "conv_", "time_embedding.")
TEXT_ROOTS = (PREFIX, "encoder.layers.")
# what else calls itself LoRA
UNSUPPORTED = {
    r"dora_scale$|lora_magnitude_vector": "DoRA, which also scales the weights",
    r"\.hada_": "LoHa, products of low-rank matrices",
    r"\.lokr_": "LoKr, Kronecker products",
    r"\.lora_mid\.": "LoRA with a middle factor (CP decomposition)",
    r"\.oft_|^oft_": "OFT, rotations of the weights",
    r"^lora_te[12]_|^text_encoder_2\.|^lora_unet_(in|out)put_blocks_": "a LoRA for SDXL",
    r"^(lora_)?transformer[._]|lora_unet_(double|single|joint)_blocks": "a LoRA for a transformer",
    r"\.lora_[AB]\.bias$|^lora_.*\.bias$": "LoRA with biases",
}


@dataclass(frozen=True)
class Key:
    """What a tensor's name says. path: as written; layer: the one form; role: down, up, alpha."""

    format: str
    part: str
    path: str
    layer: str
    role: str


def parse(name: str) -> Key | None:
    """The meaning of a tensor's name; None when it is no LoRA's that is known."""
    for format_name, pattern in _COMPILED.items():
        match = pattern.fullmatch(name)
        if match is None:
            continue
        said = match.groupdict()
        part = PARTS[said["part"]] if said.get("part") else _part_of(said["path"])
        if part is None:
            return None
        path = _projection(said["path"], said["to"], part) if said.get("to") else said["path"]
        return Key(format_name, part, path, layer_of(path, part), ROLES[said["role"]])
    return None


def layer_of(path: str, part: str) -> str:
    """A module's path (or kohya's name for it) in the one form."""
    layer = path.replace(".", "_")
    return layer.removeprefix(PREFIX.replace(".", "_")) if part == "text" else layer


def kohya_name(path: str, part: str) -> str:
    """What kohya's trainer calls the layer at a module's path."""
    if part == "text":
        return f"lora_te_text_model_{layer_of(path, part)}"
    return f"lora_unet_{layer_of(path, part)}"


def diffusers_name(path: str, part: str) -> str:
    """What diffusers calls the layer at a module's path."""
    return f"text_encoder.{dotted(path, part)}" if part == "text" else f"unet.{path}"


def dotted(path: str, part: str) -> str:
    """A module's path as files have it: with `text_model.` in the text encoder."""
    return PREFIX + path.removeprefix(PREFIX) if part == "text" else path


def technique_of(names: list[str]) -> str | None:
    """What these names belong to, where it is known and is not read here."""
    for pattern, words in UNSUPPORTED.items():
        if any(re.search(pattern, name) for name in names):
            return words
    return None


def _part_of(path: str) -> str | None:
    if path.startswith(UNET_ROOTS):
        return "unet"
    return "text" if path.startswith(TEXT_ROOTS) else None


def _projection(path: str, to: str, part: str) -> str:
    """The oldest files name the attention and which of its projections."""
    attention = path.removesuffix(".processor")
    if part == "text":
        return f"{attention}.{to}_proj"
    return f"{attention}.to_out.0" if to == "out" else f"{attention}.to_{to}"
