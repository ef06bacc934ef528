"""Which adapter does a path hold, whoever wrote it?"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from ldm.adapters.attach import Adapter
from ldm.adapters.token import NewToken
from ldm.io.adapted import built
from ldm.io.embedding import entries, is_embedding, read_embedding
from ldm.io.hypernetwork import read_hypernetwork
from ldm.io.load import find
from ldm.io.lora import read_lora
from ldm.io.reading import is_document, open_tensors
from ldm.models.text.base import TextEncoder

KNOWN = (
    "a LoRA file (.safetensors of kohya's tools, diffusers or PEFT) or its folder, a hypernetwork "
    "(.pt) of a web UI, the file of a new word (textual inversion: .safetensors, .pt, .bin), a run "
    "folder here that trained adapters, or a .ckpt of one"
)


@dataclass(frozen=True)
class AdapterFile:
    """kind: lora, hypernetwork or token; build: the adapters for these networks, by `unet` and
    `text`, not attached. Raises ValueError where they are for another architecture."""

    path: Path
    kind: str
    build: Callable[[nn.Module, TextEncoder], dict[str, Adapter]]


def read_adapter(path: str | Path, *, weights: str = "ema") -> AdapterFile:
    """Any adapter. weights: of a run, which of them.

    Raises FileNotFoundError, or ValueError that says what the path is instead.
    """
    place = Path(path).expanduser()
    if not place.exists():
        raise FileNotFoundError(f"{path} does not exist; give {KNOWN}")
    if (place / "card.json").is_file() or (place.suffix == ".ckpt" and is_document(place)):
        return _of_a_run(place, weights)
    if place.suffix in (".pt", ".bin"):
        if is_embedding(entries(place)):
            return _word(place)
        network = read_hypernetwork(place).network
        return AdapterFile(place, "hypernetwork", lambda unet, text: {"unet": network})
    if place.suffix == ".safetensors" and is_embedding(dict.fromkeys(open_tensors(place))):
        return _word(place)
    if place.is_dir() or place.suffix == ".safetensors":
        file = read_lora(place)

        def build(unet: nn.Module, text: TextEncoder) -> dict[str, Adapter]:
            both = {"unet": file.for_unet(unet), "text": file.for_text(text.module)}
            return {part: lora for part, lora in both.items() if lora is not None}

        return AdapterFile(place, "lora", build)
    raise ValueError(f"{path} is no adapter; give {KNOWN}")


def _word(place: Path) -> AdapterFile:
    file = read_embedding(place)
    return AdapterFile(
        place, "token", lambda unet, text: {"text": NewToken(file.token, file.vectors.clone())}
    )


def _of_a_run(place: Path, weights: str) -> AdapterFile:
    found = find(place, weights=weights)
    specs = found.card.get("adapters") or {}
    if not specs:
        raise ValueError(
            f"{place} is a whole model without adapters; give it as checkpoint=…, or {KNOWN}"
        )
    kind = next(iter(specs.values()))["kind"]
    return AdapterFile(place, kind, lambda unet, text: built(found.card, found.beside, unet, text))
