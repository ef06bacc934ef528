"""Which model does a path hold, and how is it built?"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from ldm.adapters.attach import Adapter
from ldm.io import checkpoint as files
from ldm.io.adapted import restore, with_trained, without_prefix
from ldm.io.configs import plain, unet_config
from ldm.io.diffusers import has_unet_only, is_diffusers, open_folder, open_unet
from ldm.io.frozen import (
    ASSETS,
    frozen_unet,
    load_codec,
    load_text_encoder,
    vae_has_weights,
    write_tensors,
)
from ldm.io.hub import HUB_ID, download
from ldm.io.kinds import kind_of
from ldm.io.native import EXTRAS, complete_card
from ldm.io.reading import TensorFile, is_document, open_tensors
from ldm.io.said import Hints
from ldm.io.single import open_single
from ldm.io.single_write import Parts
from ldm.io.source import Source, Tensors, choose, dtype_of, fill
from ldm.models.codec import Codec
from ldm.models.dtypes import DTYPES
from ldm.models.text.base import TextEncoder
from ldm.models.unet import UNet

log = logging.getLogger(__name__)
MODEL_FILE = "model.safetensors"
PACKAGED = {"vae": "frozen/vae.safetensors", "text": "clip"}  # where the embedded stack has them
PREFIXES = {"diffusion": "unet.", "vae": "vae.", "clip": "pair."}  # in a document's state_dict
KNOWN = (
    "tiny, a run folder, a .ckpt of ours, a folder of weights (card.json), a single file in the "
    "CompVis layout (.safetensors or .ckpt), a diffusers folder or a hub id (org/name)"
)


@dataclass(frozen=True)
class Model:
    """Everything a path holds. weights: which of them the network has, `ema` or `raw`; adapters:
    those that were trained on it, attached, by `unet` and `text`."""

    unet: UNet
    codec: Codec
    text: TextEncoder
    card: dict[str, Any]
    weights: str
    adapters: dict[str, Adapter] = field(default_factory=dict)


@dataclass(frozen=True)
class Found:
    """A trained network in one of our own formats, not built. path: the .ckpt or export folder.

    networks: its tensors by which weights they are; weights: the chosen ones. beside: the chosen
    tensors of what else was trained, adapters and text encoder, named as in the document.
    """

    card: dict[str, Any]
    networks: Mapping[str, Tensors]
    path: Path
    weights: str
    beside: Tensors = field(default_factory=dict)

    @property
    def tensors(self) -> Tensors:
        return self.networks[self.weights]


@dataclass(frozen=True)
class Network:
    """A UNet to begin from, in any format. source: the whole model, None where there is only a
    UNet; card: what it says ({} for a UNet alone); stated: specs of prediction and schedule."""

    path: Path
    given: str
    form: str
    tensors: Tensors
    weights: str
    file: Path
    card: Mapping[str, Any]
    stated: Mapping[str, Any]
    source: Source | None

    def lineage(self) -> dict[str, Any]:
        """Where the weights come from, for a card."""
        return {
            "source": self.given,
            "form": self.form,
            "file": self.file.name,
            "hash": files.file_hash(self.file),
            "weights": self.weights,
            "name": self.card.get("name"),
            "samples_seen": self.card.get("samples_seen"),
        }


def open_network(path: str | Path, *, weights: str = "ema") -> Network:
    """What `init_from` names: a model in any format, or a UNet alone."""
    place = resolve(path)
    networks: Mapping[str, Tensors] | None = None
    if place.is_dir() and not is_diffusers(place) and has_unet_only(place):
        networks = open_unet(place)
    elif place.is_file() and not _is_ours(place):
        file = open_tensors(place)
        if kind_of(file.shapes()) == "unet":
            networks = {"raw": file}
    if networks is not None:
        chosen = choose(networks, weights, str(path))
        tensors = networks[chosen]
        assert isinstance(tensors, TensorFile)
        where = tensors.path
        return Network(place, str(path), "unet", tensors, chosen, where, {}, {}, None)
    source = open_source(place, weights=weights)
    return Network(
        path=place,
        given=str(path),
        form=source.form,
        tensors=source.unet,
        weights=source.weights,
        file=source.file,
        card=source.card,
        stated=source.stated,
        source=source,
    )


def load_model(
    path: str | Path,
    *,
    weights: str = "ema",
    dtype: torch.dtype | None = None,
    hints: Hints | None = None,
) -> Model:
    """A model from anything in `KNOWN`, in eval, frozen.

    The EMA weights wherever the file has them, unless `raw` is asked for. Nothing named in a file
    is executed. Raises FileNotFoundError or ValueError that says what the path is instead.
    """
    return build(open_source(path, weights=weights, hints=hints), dtype or torch.float32)


def build(source: Source, dtype: torch.dtype = torch.float32) -> Model:
    """Reads everything, each tensor straight into `dtype`."""
    with torch.device("meta"):
        unet = UNet(unet_config(source.card["unet"]))
    fill(unet, source.unet, f"{source.path}: unet ({source.weights})", dtype)
    codec, text = source.codec(dtype), source.text()
    card = source.card
    if source.form in ("single", "diffusers"):
        parts = Parts(
            card=card, networks=source.networks, weights=source.weights, codec=codec, text=text
        )
        card = complete_card(parts)
    unet.eval().requires_grad_(False)
    adapters = restore(card, source.beside, unet, text)
    return Model(unet, codec, text, card, source.weights, adapters)


def open_source(path: str | Path, *, weights: str = "ema", hints: Hints | None = None) -> Source:
    """What a path holds, nothing big read."""
    folder = resolve(path)
    if folder.is_dir() and is_diffusers(folder):
        return open_folder(folder, weights=weights, hints=hints)
    if folder.is_file() and not _is_ours(folder):
        return open_single(folder, weights=weights, hints=hints)
    if hints is not None and hints != Hints():
        raise ValueError(f"{path} has a card that says what it is; leave out prediction, schedule…")
    found = find(folder, weights=weights)
    if found.card["task"] != "diffusion":
        raise ValueError(f"{path} holds a trained {found.card['task']}, not a diffusion model")
    home = _frozen_home(found.path, found.card)
    card = {**found.card, "frozen": PACKAGED} if home == ASSETS else found.card
    extras = home / EXTRAS
    vae = home / card["frozen"]["vae"]
    return Source(
        form="document" if found.path.is_file() else "export",
        path=folder,
        card=found.card,
        networks=found.networks,
        weights=found.weights,
        file=found.path if found.path.is_file() else found.path / MODEL_FILE,
        codec=lambda dtype: load_codec(card, home, dtype=dtype),
        text=lambda: with_trained(load_text_encoder(card, home), found.beside),
        dtypes={
            "unet": dtype_of(found.tensors),
            "vae": dtype_of(open_tensors(vae)) if vae_has_weights(card) else torch.float32,
            "text": DTYPES.get(card["text"].get("dtype"), torch.float32),  # none without a network
        },
        extras=open_tensors(extras) if extras.is_file() else {},
        stated={k: found.card["objective"][k] for k in ("prediction", "schedule")},
        beside=found.beside,
        frozen_text=lambda: load_text_encoder(card, home),
    )


def resolve(path: str | Path) -> Path:
    """A file or folder on disk: the packaged model, a local path, or a copy from the hub."""
    if str(path) == "tiny":
        return ASSETS
    local = Path(path).expanduser()
    if local.exists():
        return local
    if re.fullmatch(HUB_ID, str(path)):
        return download(str(path))
    raise FileNotFoundError(f"{path} does not exist; give {KNOWN}")


def find(path: str | Path, *, weights: str = "ema") -> Found:
    """What one of our own paths holds, whatever was trained. Raises as `load_model`."""
    folder = ASSETS if str(path) == "tiny" else Path(path)
    if not folder.exists():
        raise FileNotFoundError(f"{path} does not exist; give {KNOWN}")
    if folder.is_file():
        return _from_document(folder, weights)
    if not (folder / "card.json").is_file():
        raise ValueError(
            f"{folder} holds no card.json, so it is neither a run folder nor an export, and no "
            f"model_index.json either; give {KNOWN}"
        )
    if (folder / "checkpoints").is_dir():
        newest = files.latest_valid(folder / "checkpoints")
        if newest is None:
            raise FileNotFoundError(f"{folder} holds no valid checkpoint yet")
        return _from_document(newest, weights)
    card = files.read_card(folder / "card.json")
    networks = {card.get("weights", "raw"): open_tensors(folder / MODEL_FILE)}
    return Found(card, networks, folder, choose(networks, weights, str(folder)))


def save_export(
    folder: Path,
    card: Mapping[str, Any],
    tensors: Tensors,
    *,
    weights: str,
    dtype: torch.dtype,
) -> None:
    """card.json and model.safetensors: a folder of weights; frozen/ is written by save_frozen."""
    write_tensors(folder / MODEL_FILE, tensors, dtype)
    kept = {**card, "weights": weights}
    files.write_text(folder / "card.json", json.dumps(plain(kept), indent=1, ensure_ascii=False))


def _is_ours(path: Path) -> bool:
    """Whether a file is a checkpoint of a run here; a damaged one named like it counts too."""
    return path.suffix == ".ckpt" and is_document(path)


def _from_document(path: Path, weights: str) -> Found:
    document = files.read(path.resolve())
    card = files.check_card(document.get("card"), str(path))
    prefix = PREFIXES[card["task"]]
    states: dict[str, Tensors] = {"raw": document["state_dict"]}
    if document["ema"] is not None:
        states = {"ema": {**states["raw"], **document["ema"]["shadows"]}, **states}
    elif card.get("weights") == "ema":  # converted from a file with the averaged ones only
        states = {"ema": states["raw"]}
    networks: dict[str, Tensors] = {k: without_prefix(v, prefix) for k, v in states.items()}
    if card.get("frozen", {}).get("unet"):
        base = frozen_unet(card, _frozen_home(path.resolve(), card))
        networks = dict.fromkeys(states, base)
    chosen = choose(networks, weights, str(path))
    beside = {k: v for k, v in states[chosen].items() if not k.startswith(prefix)}
    return Found(card, networks, path.resolve(), chosen, beside)


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
