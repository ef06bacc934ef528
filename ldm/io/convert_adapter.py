"""How is an adapter written for other tools: from a run that trained it, or as a difference?"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

import torch

from ldm.adapters.attach import Adapter
from ldm.adapters.extract import extract
from ldm.adapters.hypernetwork import Hypernetwork
from ldm.adapters.lora import DEFAULT_TARGETS_KOHYA, DEFAULT_TARGETS_TEXT, LoRA
from ldm.adapters.token import NewToken
from ldm.io.embedding import SUFFIXES, read_embedding, write_embedding
from ldm.io.hypernetwork import read_hypernetwork, write_hypernetwork
from ldm.io.load import Model, build, open_source
from ldm.io.lora import read_lora, write_lora
from ldm.models.dtypes import DTYPES

log = logging.getLogger(__name__)
FORMATS = {  # by what is written: suffixes of its file
    "lora_kohya": (".safetensors",),
    "lora_diffusers": (".safetensors",),
    "hypernetwork": (".pt",),
    "embedding": SUFFIXES,
}
WRITES = {LoRA: "lora_kohya or lora_diffusers", Hypernetwork: "hypernetwork", NewToken: "embedding"}


@dataclass(frozen=True, kw_only=True)
class AdapterConversion:
    """What is written, and how. base: the model that `input` was tuned from; then a LoRA of this
    rank is extracted from their difference, of the text encoder too where text_rank is given."""

    input: str
    output: Path
    format: str
    weights: str = "ema"
    dtype: str | None = None
    overwrite: bool = False
    base: str | None = None
    rank: int | None = None
    text_rank: int | None = None

    def problems(self) -> list[str]:
        """Everything wrong with the options, before any file is read."""
        found = []
        suffixes = FORMATS[self.format]
        if self.output.suffix not in suffixes:
            ends = " or ".join(suffixes)
            found.append(f"output={self.output}: format={self.format} ends in {ends}")
        if self.output.exists() and not self.overwrite:
            found.append(f"output={self.output} exists; overwrite=true replaces it")
        if self.dtype is not None and self.dtype not in DTYPES:
            found.append(f"dtype={self.dtype!r}; allowed: {', '.join(DTYPES)}, or null")
        if self.dtype is not None and not self.format.startswith("lora"):
            found.append(f"dtype={self.dtype} belongs to format=lora_…; {self.format} is fp32")
        if self.base is None and (self.rank, self.text_rank) != (None, None):
            found.append("rank and text_rank belong to base=…, the model that input was tuned from")
        if self.base is not None and self.rank is None:
            found.append("base=… needs rank=…, of the LoRA that is extracted")
        if self.base is not None and not self.format.startswith("lora"):
            found.append("base=… extracts a LoRA; give format=lora_kohya or lora_diffusers")
        for name in ("rank", "text_rank"):
            value = getattr(self, name)
            if value is not None and value < 1:
                found.append(f"{name}={value}; give 1 or more")
        return found


def convert_adapter(conversion: AdapterConversion) -> dict[str, int]:
    """Writes the file and reads it back. Returns how many tensors each part has, all equal.

    Raises ValueError with every problem, or where what is read back differs, FileNotFoundError.
    """
    problems = conversion.problems()
    if problems:
        raise ValueError("\n".join(problems))
    model, parts = _extracted(conversion) if conversion.base else _trained(conversion)
    kinds = {kind for kind in WRITES if any(isinstance(part, kind) for part in parts.values())}
    if not any(conversion.format in WRITES[kind] for kind in kinds):
        kind = kinds.pop()
        raise ValueError(f"{conversion.input} has a {kind.__name__}; give format={WRITES[kind]}")
    if conversion.format == "hypernetwork":
        return _write_hypernetwork(conversion, parts)
    if conversion.format == "embedding":
        return _write_embedding(conversion, parts)
    return _write_lora(conversion, model, parts)


def _trained(conversion: AdapterConversion) -> tuple[Model, dict[str, Adapter]]:
    """Of a run."""
    model = _model(conversion.input, conversion.weights)
    if not model.adapters:
        raise ValueError(
            f"{conversion.input} has no adapters; base=… rank=… extracts a LoRA from the "
            "difference to the model that it was tuned from"
        )
    return model, model.adapters


def _extracted(conversion: AdapterConversion) -> tuple[Model, dict[str, Adapter]]:
    """The difference of two models."""
    assert conversion.base is not None
    assert conversion.rank is not None
    tuned = _model(conversion.input, conversion.weights)
    base = _model(conversion.base, conversion.weights)
    for name, model in (("input", tuned), ("base", base)):
        if model.adapters:
            raise ValueError(
                f"{name}={getattr(conversion, name)} has adapters, which are not in its weights; "
                "leave out base=… to write them, or merge them first (format=native)"
            )
    if conversion.text_rank is None and tuned.text.hash() != base.text.hash():
        log.warning("the text encoders differ, too: text_rank=… extracts that as well")
    parts: dict[str, Adapter] = {
        "unet": extract(base.unet, tuned.unet, rank=conversion.rank, targets=DEFAULT_TARGETS_KOHYA)
    }
    if conversion.text_rank is not None:
        parts["text"] = extract(
            base.text.cast(torch.float32).module,
            tuned.text.cast(torch.float32).module,
            rank=conversion.text_rank,
            targets=DEFAULT_TARGETS_TEXT,
        )
    return base, parts


def _model(path: str, weights: str) -> Model:
    return build(open_source(path, weights=weights))


def _write_lora(
    conversion: AdapterConversion, model: Model, parts: dict[str, Adapter]
) -> dict[str, int]:
    loras = {part: adapter for part, adapter in parts.items() if isinstance(adapter, LoRA)}
    write_lora(
        conversion.output,
        unet=loras.get("unet"),
        text=loras.get("text"),
        format=conversion.format.removeprefix("lora_"),
        dtype=DTYPES.get(conversion.dtype or ""),
    )
    again = read_lora(conversion.output)
    back = {"unet": again.for_unet(model.unet), "text": again.for_text(model.text.module)}
    counts = {}
    for part, lora in loras.items():
        read = back[part]
        if read is None or not _equal(lora, read, DTYPES.get(conversion.dtype or "")):
            raise ValueError(f"{conversion.output}: what came back is not what was written")
        counts[part] = 3 * len(lora.named_layers())
    return counts


def _equal(lora: LoRA, other: LoRA, dtype: torch.dtype | None) -> bool:
    """Whether `other` is `lora` rounded to `dtype`, tensor by tensor, alpha included."""
    ours, theirs = lora.weights(), other.weights()
    return ours.keys() == theirs.keys() and all(
        one.alpha == theirs[path].alpha
        and torch.equal(one.down.to(dtype or one.down.dtype).float(), theirs[path].down)
        and torch.equal(one.up.to(dtype or one.up.dtype).float(), theirs[path].up)
        for path, one in ours.items()
    )


def _write_hypernetwork(conversion: AdapterConversion, parts: dict[str, Adapter]) -> dict[str, int]:
    network = parts["unet"]
    assert isinstance(network, Hypernetwork)
    write_hypernetwork(conversion.output, network, name=conversion.output.stem)
    back = read_hypernetwork(conversion.output).network.state_dict()
    if any(not torch.equal(value, back[name]) for name, value in network.state_dict().items()):
        raise ValueError(f"{conversion.output}: what came back is not what was written")
    return {"unet": len(back)}


def _write_embedding(conversion: AdapterConversion, parts: dict[str, Adapter]) -> dict[str, int]:
    word = parts["text"]
    assert isinstance(word, NewToken)
    write_embedding(conversion.output, word.token, word.vectors)
    back = read_embedding(conversion.output)
    if back.token != word.token or not torch.equal(back.vectors, word.vectors.detach().cpu()):
        raise ValueError(f"{conversion.output}: what came back is not what was written")
    return {"text": 1}
