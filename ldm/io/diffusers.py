"""How is a model read from a folder as diffusers has it?

model_index.json             which parts there are
unet/ vae/ text_encoder/     config.json and weights: whole, sharded, or a variant (fp16, non_ema)
tokenizer/ scheduler/        and ldm_card.json in a folder of ours: what the layout has no
                             place for
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from ldm.io import checkpoint as files
from ldm.io.configs import plain
from ldm.io.detect import diffusers_unet_config, diffusers_vae_config
from ldm.io.facts import Facts, objective_spec, schedule_named
from ldm.io.frozen import frozen_codec
from ldm.io.reading import TensorFile, open_tensors
from ldm.io.said import Hints, say_hints
from ldm.io.scheduler import sampling_of, say_scheduler
from ldm.io.source import Source, Tensors, choose, dtype_of, fill
from ldm.io.vae_names import vae_under_own_names
from ldm.models.codec import Codec
from ldm.models.text.base import TextEncoder
from ldm.models.text.bert import load_bert
from ldm.models.text.clip import clip_text
from ldm.models.text.sources import Origin
from ldm.models.vae import VAEConfig, build_vae

log = logging.getLogger(__name__)
INDEX, CARD = "model_index.json", "ldm_card.json"
NETWORK, TEXT_NETWORK = "diffusion_pytorch_model", "model"
VARIANTS = ("", "fp16", "bf16", "ema")  # in order of preference; the averaged ones all of them
RAW_VARIANT = "non_ema"
VAE_FOLDERS, TEXT_FOLDERS = ("vae", "vqvae"), ("text_encoder", "bert")


def is_diffusers(folder: Path) -> bool:
    """Whether a folder is a diffusers pipeline."""
    return (folder / INDEX).is_file() or (
        (folder / "unet" / "config.json").is_file() and (folder / "vae" / "config.json").is_file()
    )


def open_folder(path: Path, *, weights: str = "ema", hints: Hints | None = None) -> Source:
    """A folder, nothing big read. Raises ValueError or FileNotFoundError naming what is missing."""
    hints = hints or Hints()
    facts = Facts(str(path))
    card = _own_card(path)
    networks = unet_networks(path, card)
    unet = diffusers_unet_config(read_json(path / "unet" / "config.json"))
    vae_folder, text_folder = (_first(path, names) for names in (VAE_FOLDERS, TEXT_FOLDERS))
    vae = diffusers_vae_config(read_json(vae_folder / "config.json"))
    vae_tensors = component(vae_folder, NETWORK)
    scheduler = _scheduler(path)
    if scheduler:
        say_scheduler(facts, scheduler, str(path / "scheduler" / "scheduler_config.json"))
    if card:
        facts.say("prediction", card["objective"]["prediction"]["name"], CARD)
        facts.say("schedule", card["objective"]["schedule"], CARD)
    facts.say("scale", vae.scaling_factor, str(vae_folder / "config.json"))
    say_hints(facts, hints)
    facts.check()
    chosen = choose(networks, weights, str(path))
    text = partial(_text, path, text_folder, dict(card.get("text", {})), hints.tokenizer)
    return Source(
        form="diffusers",
        path=path,
        card={**(card or _new_card(path, unet, vae, facts, scheduler)), "weights": chosen},
        networks=networks,
        weights=chosen,
        file=networks[chosen].path,
        codec=partial(_codec, vae, vae_tensors),
        text=text,
        dtypes={
            "unet": dtype_of(networks[chosen]),
            "vae": dtype_of(vae_tensors),
            "text": dtype_of(component(text_folder, TEXT_NETWORK)),
        },
        stated=facts.stated(),
    )


def has_unet_only(folder: Path) -> bool:
    """Whether a folder holds a UNet without the rest of a pipeline."""
    return not (folder / INDEX).is_file() and any(
        _find(place, NETWORK, VARIANTS) for place in (folder / "unet", folder)
    )


def open_unet(folder: Path) -> dict[str, TensorFile]:
    """The UNet of such a folder, or in its unet/, by which weights they are."""
    if _find(folder / "unet", NETWORK, VARIANTS):
        return unet_networks(folder)
    return {"raw": component(folder, NETWORK)}


def unet_networks(path: Path, card: Mapping[str, Any] | None = None) -> dict[str, TensorFile]:
    """The UNet's weights by which they are: non_ema files and unet_ema folders say so."""
    main = component(path / "unet", NETWORK)
    if (path / "unet_ema").is_dir():
        return {"ema": component(path / "unet_ema", NETWORK), "raw": main}
    raw = _find(path / "unet", NETWORK, (RAW_VARIANT,))
    if raw is not None:
        return {"ema": main, "raw": open_tensors(raw)}
    return {(card or {}).get("weights", "raw"): main}


def component(folder: Path, base: str) -> TensorFile:
    """The weights in a part's folder. Raises FileNotFoundError naming what belongs there."""
    path = _find(folder, base, VARIANTS)
    if path is None:
        raise FileNotFoundError(
            f"{folder} holds no weights: put {base}.safetensors, its shards with their index, or "
            "an fp16 variant there"
        )
    return open_tensors(path)


def read_json(path: Path) -> dict[str, Any]:
    """A config. Raises FileNotFoundError or ValueError naming the file."""
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing; a diffusers folder has it")
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is no JSON: {error}") from error
    if not isinstance(found, dict):
        raise ValueError(f"{path} holds a {type(found).__name__}; expected an object with names")
    return found


def _find(folder: Path, base: str, variants: tuple[str, ...]) -> Path | None:
    """safetensors before pickles, whole files before shards, fp32 before fp16."""
    for kind in ("safetensors", "bin"):
        stem = "pytorch_model" if kind == "bin" and base == TEXT_NETWORK else base
        for variant in variants:
            middle = f".{variant}" if variant else ""
            names = [f"{stem}{middle}.{kind}", f"{stem}.{kind}.index{middle}.json"]
            for name in names:
                if (folder / name).is_file():
                    return folder / name
    return None


def _first(path: Path, names: tuple[str, ...]) -> Path:
    return next((path / name for name in names if (path / name).is_dir()), path / names[0])


def _own_card(path: Path) -> dict[str, Any]:
    """What a folder of ours says beside the layout; {} in other people's."""
    found = path / CARD
    return files.read_card(found) if found.is_file() else {}


def _scheduler(path: Path) -> dict[str, Any]:
    found = path / "scheduler" / "scheduler_config.json"
    return read_json(found) if found.is_file() else {}


def _new_card(
    path: Path, unet: Any, vae: VAEConfig, facts: Facts, scheduler: Mapping[str, Any]
) -> dict[str, Any]:
    """The card of a folder that has none."""
    side = (facts.get("size") or unet.sample_size * vae.factor) // vae.factor
    size = side * vae.factor
    schedule = facts.get("schedule") or schedule_named("scaled_linear")
    return {
        "format": files.CARD_FORMAT,
        "task": "diffusion",
        "name": path.resolve().name,
        "unet": plain(asdict(replace(unet, sample_size=side))),
        "vae": {"config": plain(asdict(vae)), "source": str(path)},
        "objective": objective_spec(facts.get("prediction", "eps"), schedule),
        "null": "empty",
        "sampling": {**sampling_of(scheduler), "size": [size, size]},
        "samples_seen": None,
    }


def _codec(config: VAEConfig, file: TensorFile, dtype: torch.dtype) -> Codec:
    with torch.device("meta"):
        vae = build_vae(config)
    tensors: Tensors = vae_under_own_names(file, config)
    fill(vae, tensors, f"{file.path}: vae", dtype)
    return frozen_codec(vae, dtype)


def _text(path: Path, folder: Path, spec: Mapping[str, Any], tokenizer: str | None) -> TextEncoder:
    if folder.name == "bert":
        beside = tokenizer or str(path / "tokenizer")
        return load_bert(Origin(str(path), "bert"), tokenizer=beside, null="empty", dtype="fp32")
    return clip_text(
        source=str(path),
        subfolder=folder.name,
        tokenizer=tokenizer or "",
        clip_skip=spec.get("clip_skip", 1),
        pad_token=spec.get("pad_token", ""),
        null=spec.get("null", "empty"),
    )
