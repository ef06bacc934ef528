"""How is a model from elsewhere written as a run folder of ours?

card.json, checkpoints/s000000000.ckpt (raw and averaged weights), frozen/, as training writes
them; frozen/extras.safetensors keeps what a model does not use of the file it came from.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ldm.io import checkpoint as files
from ldm.io.configs import plain
from ldm.io.frozen import save_frozen, vae_card, write_tensors
from ldm.io.single_write import Parts
from ldm.io.source import Tensors, stream

EXTRAS = "frozen/extras.safetensors"


def save_run(folder: Path, parts: Parts) -> None:
    """Writes into `folder`, which must be empty or new. Both weights, where the input has both."""
    card = complete_card(parts)
    document: dict[str, Any] = {"card": card, "ema": None, "converted": True}
    if "raw" in parts.networks and "ema" in parts.networks:
        document["state_dict"] = _prefixed(parts, parts.networks["raw"])
        document["ema"] = {"shadows": _prefixed(parts, parts.networks["ema"])}
    else:
        document["state_dict"] = _prefixed(parts, parts.networks[parts.weights])
    save_frozen(folder / "frozen", parts.codec, parts.text)
    if parts.extras:
        kept = dict(stream(parts.extras, list(parts.extras), None))
        write_tensors(folder / EXTRAS, kept)
    path = files.checkpoint_path(folder / "checkpoints", card["samples_seen"] or 0)
    files.write(document, path)
    files.point_last(path)
    files.write_text(folder / "card.json", json.dumps(card, indent=1, ensure_ascii=False))


def complete_card(parts: Parts) -> dict[str, Any]:
    """The card with what only the built encoders know."""
    return plain(
        {
            **parts.card,
            "vae": vae_card(parts.codec, parts.card["vae"].get("source")),
            "text": parts.text.spec(),
            "frozen": {"vae": "frozen/vae.safetensors", "text": "frozen/text"},
            "weights": parts.weights,
        }
    )


def _prefixed(parts: Parts, tensors: Tensors) -> Tensors:
    return {f"unet.{k}": v for k, v in stream(tensors, list(tensors), parts.dtype)}
