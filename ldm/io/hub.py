"""How does a model come from a hub, without what is not needed?"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from huggingface_hub import HfApi, snapshot_download

log = logging.getLogger(__name__)
HUB_ID = r"[\w-][\w.-]*/[\w-][\w.-]*(@[\w.-]+)?"  # org/name, or org/name@revision
PARTS = ("unet", "unet_ema", "vae", "vqvae", "text_encoder", "bert", "tokenizer", "scheduler")
SMALL = (".json", ".txt", ".model")


def download(hub_id: str) -> Path:
    """A local copy of a diffusers repository's parts: from the hub's cache if it is complete there,
    so that a start without a network does not wait; else from the hub.

    Raises FileNotFoundError that says what was tried.
    """
    repository, _, revision = hub_id.partition("@")
    version = revision or None
    try:
        cached = Path(snapshot_download(repository, revision=version, local_files_only=True))
        if (cached / "model_index.json").is_file() and _complete(cached):
            return cached
    except Exception as error:  # not in the cache
        log.debug("%s is not in the hub's cache: %s", hub_id, error)
    try:
        wanted = wanted_files(HfApi().list_repo_files(repository, revision=version))
        found = snapshot_download(repository, revision=version, allow_patterns=wanted)
    except Exception as error:  # any of the hub's: each means that it can't be had
        raise FileNotFoundError(
            f"{hub_id} is neither a path here nor to be had from the hub "
            f"({type(error).__name__}: {str(error)[:200]}); download it elsewhere and give the "
            "folder"
        ) from error
    return Path(found)


def wanted_files(names: Sequence[str]) -> list[str]:
    """Of a repository's files: configs, and of each part's weights the best variant only."""
    chosen = [n for n in names if n == "model_index.json"]
    for part in PARTS:
        inside = [n for n in names if n.startswith(f"{part}/") and n.count("/") == 1]
        chosen += [n for n in inside if n.endswith(SMALL) and ".index." not in n]
        chosen += _best(inside)
    if not any(n.startswith("unet/") for n in chosen):
        raise ValueError("the repository has no unet/ folder, so it is no diffusers pipeline")
    return chosen


def _best(names: Sequence[str]) -> list[str]:
    """safetensors before pickles, the plain variant before fp16; a non_ema file as well."""
    for kind in (".safetensors", ".bin"):
        weights = [n for n in names if n.endswith(kind) or f"{kind}.index" in n]
        raw = [n for n in weights if ".non_ema." in n]
        for variant in ("", "fp16"):
            found = [n for n in weights if _variant(n) == variant]
            if found:
                return found + raw
    return []


def _variant(name: str) -> str:
    """fp16 of model.fp16.safetensors; shards and indices belong to the variant they name."""
    stem = name.rpartition("/")[2]
    return next(
        (v for v in ("fp16", "non_ema", "bf16") if f".{v}." in stem or f".{v}-" in stem), ""
    )


def _complete(folder: Path) -> bool:
    """Whether every part that is there has weights; a broken download may have configs only."""
    return all(
        any(part.glob("*.safetensors")) or any(part.glob("*.bin"))
        for name in ("unet", "vae", "text_encoder")
        if (part := folder / name).is_dir()
    )
