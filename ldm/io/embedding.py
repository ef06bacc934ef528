"""How is a new word (textual inversion) read from the files of other tools, and written for them?

diffusers: one tensor under the word's name (.safetensors, or .bin from torch.save). Web UIs: a
pickled dict with string_to_param {"*": [n,D]} and name (.pt), or one tensor emb_params
(.safetensors), where the file's name is the word. n vectors, D width of the embedding.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

UNNAMED = ("emb_params", "*")
TWO_ENCODERS = {"clip_l", "clip_g"}
MOST_VECTORS = 1024  # no encoder reads as many tokens
SUFFIXES = (".safetensors", ".pt", ".bin")


@dataclass(frozen=True)
class EmbeddingFile:
    """token: the word, the file's name where it says none; vectors: [n,D] fp32."""

    path: Path
    token: str
    vectors: Tensor


def is_embedding(names: Mapping[Any, Any]) -> bool:
    """Whether the entries of a file are those of a new word."""
    if "string_to_param" in names or "emb_params" in names or set(names) >= TWO_ENCODERS:
        return True
    texts = [str(name) for name in names]
    return len(texts) == 1 and not re.search(r"lora_|\.weight$|\.alpha$", texts[0])


def read_embedding(path: str | Path, *, token: str | None = None) -> EmbeddingFile:
    """A word's file; nothing in it is executed. token: another name for it.

    Raises FileNotFoundError, or ValueError that says what the file is instead.
    """
    path = Path(path)
    content = entries(path)
    said: Any = None
    if "string_to_param" in content:
        found = content["string_to_param"]
        if not isinstance(found, Mapping | nn.ParameterDict):
            raise ValueError(f"{path}: string_to_param is a {type(found).__name__}, not a dict")
        tensors, said = dict(found), content.get("name")
    else:
        tensors = content
    if set(tensors) >= TWO_ENCODERS:
        raise ValueError(
            f"{path} is a word of SDXL, for two text encoders ({', '.join(sorted(TWO_ENCODERS))}); "
            "models here have one"
        )
    if len(tensors) != 1:
        names = ", ".join(ascii(name) for name in list(tensors)[:6])
        raise ValueError(
            f"{path} holds {len(tensors)} entries ({names}); a new word of a single text encoder "
            "is one tensor under its name, emb_params, or string_to_param"
        )
    ((name, value),) = tensors.items()
    vectors = _checked(value, f"{path}: {name!r}")
    if name in UNNAMED:
        name = said if isinstance(said, str) and said else path.stem
    return EmbeddingFile(path, token or str(name), vectors)


def _checked(value: Any, where: str) -> Tensor:
    """[n,D] fp32 in memory of its own. Raises ValueError for whatever else a file may hold."""
    if not isinstance(value, Tensor):
        raise ValueError(f"{where} is a {type(value).__name__}; vectors are a tensor [D] or [n,D]")
    plain = value.layout is torch.strided and value.device.type == "cpu"
    if not plain or not value.is_floating_point():
        raise ValueError(f"{where} is {value.layout}, {value.dtype} on {value.device}; not numbers")
    shape = tuple(value.shape)
    if (
        value.ndim not in (1, 2)
        or not value.numel()
        or (value.ndim == 2 and len(value) > MOST_VECTORS)
    ):
        raise ValueError(f"{where} is {shape}; vectors are [D] or [n,D], {MOST_VECTORS} at most")
    if value.numel() * value.element_size() > value.untyped_storage().nbytes():
        raise ValueError(f"{where} is {shape}, more than the file holds")
    vectors = value.detach().float().reshape(-1, shape[-1]).clone()
    if not vectors.isfinite().all():
        raise ValueError(f"{where} is not finite")
    return vectors


def write_embedding(path: str | Path, token: str, vectors: Tensor) -> None:
    """.safetensors and .bin as diffusers reads them (web UIs too), .pt as web UIs write them.

    vectors: [n,D]. Atomic. Raises ValueError for another suffix, or vectors that are not finite.
    """
    path = Path(path)
    if path.suffix not in SUFFIXES:
        raise ValueError(f"{path}: give a name that ends in {', '.join(SUFFIXES)}")
    value = vectors.detach().float().cpu().contiguous()
    if not value.isfinite().all():
        raise ValueError(f"the vectors of {token!r} are not finite: the training diverged")
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".tmp-{path.name}")
    if path.suffix == ".safetensors":
        save_file({token: value}, temporary, {"format": "pt"})
    elif path.suffix == ".bin":
        torch.save({token: value}, temporary)
    else:
        content = {
            "string_to_token": {"*": 265},  # the web UIs' own placeholder; they only look it up
            "string_to_param": {"*": value},
            "name": token,
            "step": 0,
            "sd_checkpoint": None,
            "sd_checkpoint_name": None,
        }
        torch.save(content, temporary)
    temporary.chmod(0o644)
    temporary.replace(path)


def entries(path: Path) -> dict[Any, Any]:
    """What a small file holds, read without executing anything of it. Raises as read_embedding."""
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist; give a file of a new word")
    try:
        if path.suffix == ".safetensors":
            return dict(load_file(path))
        with torch.serialization.safe_globals([nn.ParameterDict]):  # the first words' container
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise ValueError(
            f"{path} cannot be read as tensors and plain values ({type(error).__name__}); it is "
            "damaged, or would run code when read as it wants, which nothing here does"
        ) from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a {type(content).__name__}, not a dict")
    return content
