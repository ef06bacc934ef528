"""How is a model written as a folder that diffusers loads (see diffusers.py)?"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ldm.io import checkpoint as files
from ldm.io.configs import plain, unet_config
from ldm.io.detect import diffusers_unet_json, diffusers_vae_json
from ldm.io.diffusers import CARD, INDEX, NETWORK
from ldm.io.frozen import write_tensors
from ldm.io.scheduler import scheduler_json
from ldm.io.single_write import Parts
from ldm.io.source import stream
from ldm.models.text.base import TextEncoder
from ldm.models.text.bert import BertText
from ldm.models.text.clip import ClipText
from ldm.models.vae import VAEConfig

VERSION = "0.30.0"  # of diffusers: the oldest whose names these are


def save_folder(folder: Path, parts: Parts) -> None:
    """Writes into `folder`, which must be empty or new. Raises ValueError for what the layout
    cannot express, before anything is written."""
    index = model_index(parts)
    scheduler = scheduler_json(parts.card["objective"], parts.card["sampling"]["sampler"])
    config = unet_config(parts.card["unet"])
    network = diffusers_unet_json(config)
    vae = parts.codec.vae.config
    if not isinstance(vae, VAEConfig):
        raise ValueError("a diffusers folder needs an autoencoder; this model works on pixels")
    names = list(parts.networks[parts.weights])
    _json(folder / "unet" / "config.json", network)
    tensors = dict(stream(parts.networks[parts.weights], names, parts.dtype))
    write_tensors(folder / "unet" / f"{NETWORK}.safetensors", tensors)
    del tensors
    autoencoder = "vqvae" if isinstance(parts.text, BertText) else "vae"
    _json(folder / autoencoder / "config.json", diffusers_vae_json(vae))
    stored = dict(parts.codec.vae.state_dict())
    write_tensors(folder / autoencoder / f"{NETWORK}.safetensors", stored)
    _json(folder / "scheduler" / "scheduler_config.json", scheduler)
    _save_text(folder, parts.text)
    card = {k: v for k, v in parts.card.items() if k != "frozen"} | {"weights": parts.weights}
    _json(folder / CARD, plain(card))
    _json(folder / INDEX, index)


def model_index(parts: Parts) -> dict[str, Any]:
    """Which class reads which folder. Raises ValueError for text encoders it has no class for."""
    head = {"_diffusers_version": VERSION}
    common = {
        "unet": ["diffusers", "UNet2DConditionModel"],
        "scheduler": [
            "diffusers",
            scheduler_json(parts.card["objective"], parts.card["sampling"]["sampler"])[
                "_class_name"
            ],
        ],
    }
    if isinstance(parts.text, BertText):
        return {
            "_class_name": "LDMTextToImagePipeline",
            **head,
            "bert": ["latent_diffusion", "LDMBertModel"],
            "tokenizer": ["transformers", "BertTokenizer"],
            "vqvae": ["diffusers", "AutoencoderKL"],
            **common,
        }
    if not isinstance(parts.text, ClipText):
        raise ValueError(
            f"a diffusers folder of ours cannot hold a text encoder of the kind "
            f"{parts.text.kind!r}; known: clip, bert. Use format=native"
        )
    inpaint = parts.card["unet"]["in_channels"] > parts.card["unet"]["out_channels"]
    name = "StableDiffusionInpaintPipeline" if inpaint else "StableDiffusionPipeline"
    return {
        "_class_name": name,
        **head,
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "vae": ["diffusers", "AutoencoderKL"],
        **common,
        "safety_checker": [None, None],
        "feature_extractor": [None, None],
        "requires_safety_checker": False,
    }


def _save_text(folder: Path, text: TextEncoder) -> None:
    if isinstance(text, ClipText):
        text.save_for_diffusers(folder / "text_encoder", folder / "tokenizer")
    elif isinstance(text, BertText):
        text.save_weights(folder / "bert")
        text.tokens.save(folder / "tokenizer")


def _json(path: Path, content: Any) -> None:
    files.write_text(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")
