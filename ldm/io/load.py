"""Which model does a path hold?"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ldm.io import checkpoint as files
from ldm.io.frozen import (
    ASSETS,
    load_codec,
    load_into,
    load_text_encoder,
    plain,
    read_tensors,
    write_tensors,
)
from ldm.models.codec import Codec
from ldm.models.text.base import TextEncoder
from ldm.models.unet import UNet, UNetConfig

log = logging.getLogger(__name__)
MODEL_FILE = "model.safetensors"
DIFFUSERS_FILE = "diffusion_pytorch_model.safetensors"
WEIGHTS = ("ema", "raw")
PACKAGED = {"vae": "frozen/vae.safetensors", "text": "clip"}  # where the embedded stack has them


@dataclass(frozen=True)
class Model:
    """Everything a path holds. weights: which of them the network has, `ema` or `raw`."""

    unet: UNet
    codec: Codec
    text: TextEncoder
    card: dict[str, Any]
    weights: str


@dataclass(frozen=True)
class Found:
    """Card and network weights, before anything is built. path: the .ckpt or export folder."""

    card: dict[str, Any]
    tensors: dict[str, Tensor]
    path: Path
    weights: str


def load_model(
    path: str | Path, *, weights: str = "ema", dtype: torch.dtype | None = None
) -> Model:
    """`tiny`, a run folder, a folder of weights (card.json, model.safetensors) or a .ckpt.

    The EMA weights wherever the file has them, unless `raw` is asked for. Only the card is used;
    nothing named in a file is executed.
    """
    found = find(path, weights=weights)
    if found.card["task"] != "diffusion":
        raise ValueError(f"{path} holds a trained {found.card['task']}, not a diffusion model")
    home = _frozen_home(found.path, found.card)
    card = {**found.card, "frozen": PACKAGED} if home == ASSETS else found.card
    with torch.device("meta"):
        unet = UNet(unet_config(found.card["unet"]))
    unet = unet.to_empty(device="cpu")
    load_into(unet, {k: v.float() for k, v in found.tensors.items()}, str(path))
    return Model(
        unet=unet.to(dtype or torch.float32).eval().requires_grad_(False),
        codec=load_codec(card, home, dtype=dtype or torch.float32),
        text=load_text_encoder(card, home),
        card=found.card,
        weights=found.weights,
    )


def find(path: str | Path, *, weights: str = "ema") -> Found:
    """What a path holds, read but not built. Raises FileNotFoundError or ValueError."""
    if weights not in WEIGHTS:
        raise ValueError(f"weights={weights!r}; allowed: {', '.join(WEIGHTS)}")
    folder = ASSETS if str(path) == "tiny" else Path(path)
    if not folder.exists():
        raise FileNotFoundError(
            f"{path} does not exist; give tiny, a run folder, a .ckpt or a folder of weights"
        )
    if folder.is_file():
        return _from_document(folder, weights)
    if not (folder / "card.json").is_file():
        raise ValueError(
            f"{folder} holds no card.json, so it is neither a run folder nor an export"
        )
    if (folder / "checkpoints").is_dir():
        newest = files.latest_valid(folder / "checkpoints")
        if newest is None:
            raise FileNotFoundError(f"{folder} holds no valid checkpoint yet")
        return _from_document(newest, weights)
    return _from_export(folder, weights)


def initial_weights(source: str, *, weights: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """UNet tensors for `init_from`, and where they come from (for the card).

    Beside what `find` reads, a diffusers folder: unet/diffusion_pytorch_model.safetensors, whose
    parameter names are ours.
    """
    folder = Path(source)
    places = (folder / "unet" / DIFFUSERS_FILE, folder / DIFFUSERS_FILE)
    unet = next((place for place in places if place.is_file()), None)
    if unet is not None:
        tensors, card, chosen = read_tensors(unet), {}, "raw"
    else:
        found = find(source, weights=weights)
        if found.card["task"] != "diffusion":
            raise ValueError(f"init_from={source} holds a {found.card['task']}, not a UNet")
        tensors, card, chosen = found.tensors, found.card, found.weights
    lineage = {
        "source": source,
        "weights": chosen,
        "hash": files.tensors_hash(tensors),
        "samples_seen": card.get("samples_seen"),
    }
    return tensors, lineage


def network_weights(document: Mapping[str, Any], weights: str) -> tuple[dict[str, Tensor], str]:
    """The trained network's tensors from a document, and which they are."""
    prefix = {"diffusion": "unet.", "vae": "vae.", "clip": "pair."}[document["card"]["task"]]
    state, chosen = document["state_dict"], "raw"
    if weights == "ema" and document["ema"] is not None:
        state, chosen = {**state, **document["ema"]["shadows"]}, "ema"
    return {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}, chosen


def save_export(
    folder: Path,
    card: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    *,
    weights: str,
    dtype: torch.dtype,
) -> None:
    """card.json and model.safetensors: a folder of weights; frozen/ is written by save_frozen."""
    write_tensors(folder / MODEL_FILE, tensors, dtype)
    kept = {**card, "weights": weights}
    files.write_text(folder / "card.json", json.dumps(plain(kept), indent=1, ensure_ascii=False))


def unet_config(fields: Mapping[str, Any]) -> UNetConfig:
    """The config that `asdict` wrote; lists become tuples again."""

    def tuples(value: Any) -> Any:
        return tuple(map(tuples, value)) if isinstance(value, list) else value

    return UNetConfig(**{k: tuples(v) for k, v in fields.items()})


def _from_document(path: Path, weights: str) -> Found:
    document = files.read(path.resolve())
    card = files.check_card(document.get("card"), str(path))
    tensors, chosen = network_weights(document, weights)
    return Found(card, tensors, path.resolve(), chosen)


def _from_export(folder: Path, weights: str) -> Found:
    card = files.read_card(folder / "card.json")
    stored = card.get("weights", "raw")
    if stored != weights:
        log.info("%s holds %s weights only; using them", folder, stored)
    return Found(card, read_tensors(folder / MODEL_FILE), folder, stored)


def _frozen_home(path: Path, card: Mapping[str, Any]) -> Path:
    """The folder that holds frozen/: an export, the run folder, or the one a file lies in."""
    if path.is_dir():
        return path
    for folder in (path.parent.parent, path.parent):
        if (folder / "frozen").is_dir():
            return folder
    if card["vae"].get("source") == card["text"].get("source") == "tiny":
        return ASSETS
    raise FileNotFoundError(
        f"{path} holds no frozen encoders; put the run's frozen/ folder beside it "
        f"(VAE {card['vae']['hash'][:12]}…, text encoder {card['text']['hash'][:12]}…)"
    )
