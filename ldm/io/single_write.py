"""How is a model written into one file, in the CompVis layout (see single.py)?"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ldm.diffusion.schedules import Discrete, schedule_from_spec
from ldm.io.compvis import (
    UNET,
    VAE,
    ema_name,
    schedule_buffers,
    unet_names,
    vae_file_shape,
    vae_names,
)
from ldm.io.configs import plain, unet_config
from ldm.io.frozen import write_tensors
from ldm.io.single import CARD
from ldm.io.single_text import is_openclip, text_tensors, text_texts
from ldm.io.source import Tensors, stream
from ldm.models.codec import Codec
from ldm.models.text.base import TextEncoder
from ldm.models.vae import VAEConfig

SPEC_WORDS = {"eps": "epsilon", "v": "v"}  # of the published "model spec" standard


@dataclass(frozen=True, kw_only=True)
class Parts:
    """What is written, whatever the format. networks: by which weights they are; weights: the
    chosen ones; dtype: of the UNet (None: as it is); codec and text come in theirs."""

    card: Mapping[str, Any]
    networks: Mapping[str, Tensors]
    weights: str
    codec: Codec
    text: TextEncoder
    dtype: torch.dtype | None = None
    extras: Tensors = field(default_factory=dict)


def save_single(path: Path, parts: Parts, *, with_ema: bool = False) -> None:
    """A .safetensors or .ckpt file. with_ema: the averaged weights too, beside the raw ones.

    Raises ValueError for what the layout cannot express.
    """
    tensors = single_tensors(parts, with_ema=with_ema)
    texts = _texts(parts)
    if path.suffix == ".safetensors":
        write_tensors(path, tensors, metadata=texts)
    elif path.suffix == ".ckpt":
        _write_pickle(path, {"state_dict": tensors, **texts})
    else:
        raise ValueError(f"output={path}: a single file ends in .safetensors or .ckpt")


def single_tensors(parts: Parts, *, with_ema: bool) -> dict[str, Tensor]:
    """Every tensor of the file by its name there."""
    config = parts.codec.vae.config
    if not isinstance(config, VAEConfig):
        raise ValueError("a single file needs an autoencoder; this model works on pixels")
    names = {o: UNET + t for o, t in unet_names(unet_config(parts.card["unet"])).items()}
    tensors = {names[o]: v for o, v in stream(parts.networks[parts.weights], names, parts.dtype)}
    if with_ema:
        if parts.weights != "raw" or "ema" not in parts.networks:
            raise ValueError(
                "with_ema=true writes the averaged weights beside the raw ones: it needs "
                f"weights=raw and an input that has both (this has {', '.join(parts.networks)})"
            )
        averaged = stream(parts.networks["ema"], names, parts.dtype)
        tensors |= {ema_name(names[o]): v for o, v in averaged}
    stored = parts.codec.vae.state_dict()
    for ours, theirs in vae_names(config).items():
        value = stored[ours]
        tensors[VAE + theirs] = value.reshape(vae_file_shape(ours, tuple(value.shape)))
    tensors |= text_tensors(parts.text)
    schedule = schedule_from_spec(parts.card["objective"]["schedule"])
    if isinstance(schedule, Discrete):
        tensors |= schedule_buffers(schedule.alphas_cumprod())
    lost = [name for name in parts.extras if name in tensors]
    assert not lost, lost
    return tensors | dict(stream(parts.extras, list(parts.extras), None))


def _texts(parts: Parts) -> dict[str, str]:
    """The card, the text encoder's options, and the keys of the "model spec" standard."""
    card = {k: v for k, v in parts.card.items() if k != "frozen"} | {"weights": parts.weights}
    prediction = card["objective"]["prediction"]["name"]
    height, width = card["sampling"]["size"]
    texts = {
        CARD: json.dumps(plain(card), ensure_ascii=False),
        **text_texts(parts.text),
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.architecture": _architecture(parts),
        "modelspec.implementation": "ldm",
        "modelspec.title": str(card["name"]),
        "modelspec.resolution": f"{width}x{height}",
    }
    if prediction in SPEC_WORDS:
        texts["modelspec.prediction_type"] = SPEC_WORDS[prediction]
    return texts


def _architecture(parts: Parts) -> str:
    """The standard's name of the family."""
    if parts.text.kind == "bert":
        return "latent-diffusion-text2img"
    family = "stable-diffusion-v2" if is_openclip(parts.text) else "stable-diffusion-v1"
    v768 = parts.card["objective"]["prediction"]["name"] == "v" and is_openclip(parts.text)
    inpaint = parts.card["unet"]["in_channels"] > parts.card["unet"]["out_channels"]
    return family + ("-768-v" if v768 else "") + ("-inpainting" if inpaint else "")


def _write_pickle(path: Path, content: dict[str, Any]) -> None:
    """Tensors and texts only: `torch.load(weights_only=True)` reads it. Atomically."""
    content["state_dict"] = {k: v.contiguous() for k, v in content["state_dict"].items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".tmp-{path.name}")
    with temporary.open("wb") as file:
        torch.save(content, file)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
