"""Where do a text encoder's files come from?"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from huggingface_hub import snapshot_download
from safetensors.torch import load_file, save_file
from torch import Tensor

PACKAGED = {"tiny": Path(__file__).parents[2] / "assets" / "tiny" / "clip"}

HUB_ID = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?")
CONFIG = "config.json"
WEIGHTS = "model.safetensors"
# One of these is enough: a single file, or an index of shards, safetensors first.
WEIGHT_FILES = (
    WEIGHTS,
    f"{WEIGHTS}.index.json",
    "model.fp16.safetensors",
    "model.safetensors.index.fp16.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
TOKENIZER_FILES = ("tokenizer.json", "vocab.json", "vocab.txt", "spiece.model", "tokenizer.model")

SMALL_FILES = ("*.json", "*.txt", "*.model")
SAFE_FILES = (WEIGHTS, "model-*.safetensors")
BIN_FILES = ("pytorch_model.bin", "pytorch_model-*.bin")


@dataclass(frozen=True)
class Wanted:
    """What a folder must hold: in words, as a test, and as patterns to download, best first."""

    words: str
    found: Callable[[Path], bool]
    downloads: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Origin:
    """A folder, a hub id or 'tiny'; the folder of the weights inside it; the hub's revision."""

    source: str
    subfolder: str = ""
    revision: str = "main"


def weights_folder(origin: Origin) -> Path:
    """The local folder that holds config.json and the weights."""
    wanted = Wanted(
        words=f"{CONFIG} and {WEIGHTS}",
        found=lambda folder: (folder / CONFIG).exists() and _any(folder, WEIGHT_FILES),
        downloads=(SMALL_FILES + SAFE_FILES, SMALL_FILES + BIN_FILES),
    )
    return _folder(origin, wanted)


def tokenizer_folder(origin: Origin) -> Path:
    """The local folder with the tokenizer: `tokenizer` beside a subfolder, as diffusers has it."""
    wanted = Wanted(
        words="the tokenizer's files (tokenizer.json, or vocab.json and merges.txt, or vocab.txt)",
        found=lambda folder: _any(folder, TOKENIZER_FILES),
        downloads=(SMALL_FILES,),
    )
    beside = (Path(origin.subfolder).parent / "tokenizer").as_posix() if origin.subfolder else ""
    return _folder(replace(origin, subfolder=beside), wanted)


def read_weights(folder: Path) -> dict[str, Tensor]:
    """All tensors in `folder`, from one file or from shards, in the file's dtype."""
    for name in WEIGHT_FILES:
        path = folder / name
        if not path.exists():
            continue
        if ".index." not in name:
            return _read(path)
        shards = sorted(set(json.loads(path.read_text())["weight_map"].values()))
        _check_shards(folder, shards, path)
        return {key: value for shard in shards for key, value in _read(folder / shard).items()}
    raise FileNotFoundError(f"no weights in {folder}: put one of {', '.join(WEIGHT_FILES)} there")


def _check_shards(folder: Path, shards: list[str], index: Path) -> None:
    """Raises ValueError for names that lead out of the folder, FileNotFoundError for gaps."""
    outside = [name for name in shards if Path(name).name != name or "\\" in name]
    if outside:
        raise ValueError(f"{index} names {outside[:3]}; shards lie beside their index")
    missing = [name for name in shards if not (folder / name).is_file()]
    if missing:
        raise FileNotFoundError(f"{index} names {missing}, which are missing; put them beside it")


def write_weights(state: Mapping[str, Tensor], folder: Path) -> None:
    """The tensors as model.safetensors (contiguous copies on the CPU)."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: value.detach().to("cpu").contiguous() for name, value in state.items()}
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    (folder / WEIGHTS).chmod(0o644)  # safetensors writes 600: nobody else could load the run


def _read(path: Path) -> dict[str, Tensor]:
    if path.suffix == ".safetensors":
        return load_file(path)
    loaded: dict[str, Tensor] = torch.load(path, map_location="cpu", weights_only=True)
    return loaded


def _any(folder: Path, names: tuple[str, ...]) -> bool:
    return any((folder / name).exists() for name in names)


def _folder(origin: Origin, wanted: Wanted) -> Path:
    source = origin.source
    local = PACKAGED.get(source) or Path(source).expanduser()
    if source in PACKAGED or (source and local.is_dir()):
        folder = local / origin.subfolder
        if not wanted.found(folder):
            raise FileNotFoundError(_missing(source, folder, wanted))
        return folder
    if not HUB_ID.fullmatch(source):
        raise FileNotFoundError(
            f"text source {source!r} is no folder here: put {wanted.words} into it, "
            "or name another folder, a hub id (org/name) or 'tiny'"
        )
    return _from_hub(origin, wanted)


def _missing(source: str, folder: Path, wanted: Wanted) -> str:
    inside = sorted(path.parent.name for path in folder.glob(f"*/{CONFIG}"))
    hint = f"; or set subfolder to one of {', '.join(inside)}" if inside else ""
    made = "; experiment=clip_tiny trains it" if source in PACKAGED else ""
    return f"text source {source!r} is incomplete: put {wanted.words} into {folder}{hint}{made}"


def _from_hub(origin: Origin, wanted: Wanted) -> Path:
    """The hub's cache first, without the network: an air-gapped start does not wait for retries."""
    inside = f"{origin.subfolder}/" if origin.subfolder else ""
    problem: Exception = FileNotFoundError(f"no {wanted.words} in {inside or 'its root'}")
    for offline in (True, False):
        for patterns in wanted.downloads:
            try:
                root = snapshot_download(
                    origin.source,
                    revision=origin.revision,
                    allow_patterns=[inside + pattern for pattern in patterns],
                    local_files_only=offline,
                )
            except Exception as error:  # any of the hub's: each means that it can't be had
                problem = error
                break
            if wanted.found(Path(root) / inside):
                return Path(root) / inside
    raise FileNotFoundError(
        f"text source {origin.source!r} is neither a folder here nor to be had from the hub "
        f"({type(problem).__name__}: {str(problem)[:200]}): put {wanted.words} into a folder "
        "and give its path as source"
    ) from problem
