"""What was a latent cache made with, and is that what this run needs?

`manifest.json` lies beside the shards; data/README.md lists its fields.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from ldm.data.arrays import from_npy, is_finite
from ldm.data.captions import BadSampleError
from ldm.data.shards import ShardIndex

MANIFEST = "manifest.json"
NULL_CONTEXT = "null_context.npy"
FORMAT = 1
_MAX_BYTES = 1 << 26
_RELATIVE = 1e-6  # of numbers that went through json

# field -> (what it is, what to do when it differs)
CHECKED = {
    "vae.hash": ("the VAE's weights", "cache again, or train with the VAE of the cache"),
    "vae.scale": ("the scale of the latents", "cache again, or set the scale of the cache"),
    "text.hash": ("the text encoder's weights", "cache again, or leave the contexts out"),
    "text.layer": ("the text encoder's layer", "cache again, or leave the contexts out"),
    "null_context": ("the null context", "cache again, or leave the contexts out"),
    "transform": ("how pictures were cut", "cache again"),
    "resolution": ("the size of the pictures in px", "cache again, or set data.size to it"),
}
_OF_CONTEXTS = ("text.hash", "text.layer", "null_context")


def read_manifest(path: Path) -> dict[str, object]:
    """The fields of a manifest file. Raises ValueError where it is none of this format."""
    if path.stat().st_size > _MAX_BYTES:
        raise ValueError(f"{path} has {path.stat().st_size} bytes; a manifest is a small json file")
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not json: {error}; cache the latents again") from None
    if not isinstance(fields, dict) or fields.get("format") != FORMAT:
        got = fields.get("format") if isinstance(fields, dict) else type(fields).__name__
        raise ValueError(f"{path} has format={got!r}, this program reads {FORMAT}; cache again")
    return fields


def manifests_of(index: ShardIndex) -> dict[str, dict[str, object] | None]:
    """The manifest of each folder or URL that holds shards; None where there is none."""
    first: dict[str, str] = {}
    for shard in index.shards:
        first.setdefault(shard.rpartition("/")[0], shard)
    found: dict[str, dict[str, object] | None] = {}
    for folder, shard in first.items():
        path = index.cache.file_beside(shard, MANIFEST)
        found[folder] = None if path is None else read_manifest(path)
    return found


def check_manifest(manifest: Mapping[str, object], expected: Mapping[str, object]) -> list[str]:
    """Every field in which a cache is not what a run expects, each with what to do.

    expected: `vae.hash`, `vae.scale`, `text.hash`, `text.layer`, `null_context`, `transform`,
    `resolution`, those that matter to the run. Those of the text encoder count only where the cache
    holds contexts (`text` is not null): captions are encoded otherwise.
    """
    if unknown := sorted(set(expected) - set(CHECKED)):
        raise ValueError(f"expected {', '.join(unknown)}; known: {', '.join(CHECKED)}")
    problems = []
    for name, wanted in expected.items():
        if name in _OF_CONTEXTS and manifest.get("text") is None:
            continue
        found = _at(manifest, name)
        if not _same(found, wanted):
            what, advice = CHECKED[name]
            problems.append(
                f"the latent cache has {name}={_shown(found)}, this run {_shown(wanted)} "
                f"({what}); {advice}"
            )
    return problems


def null_context(path: Path, manifest: Mapping[str, object]) -> Tensor:
    """The null context [1,L,D] that a cache with contexts keeps in null_context.npy.

    Raises ValueError when it is not the one that the manifest names by its hash.
    """
    data = path.read_bytes()
    digest = content_hash(data)
    if digest != manifest.get("null_context"):
        wanted = _shown(manifest.get("null_context"))
        raise ValueError(f"{path} has the hash {digest}, its manifest says {wanted}; cache again")
    try:
        array = from_npy(data, path.name)
    except BadSampleError as error:
        raise ValueError(f"{path}: {error}") from None
    if array.ndim != 2 or not is_finite(array):
        raise ValueError(f"{path} holds {list(array.shape)}; it should be finite values [L,D]")
    return torch.from_numpy(array.copy())[None]


def content_hash(data: bytes) -> str:
    """How manifests name a file by its content."""
    return hashlib.sha256(data).hexdigest()


def _at(manifest: Mapping[str, object], name: str) -> object:
    node: object = manifest
    for part in name.split("."):
        node = node.get(part) if isinstance(node, Mapping) else None
    return node


def _same(found: object, wanted: object) -> bool:
    if _is_number(found) and _is_number(wanted):
        return math.isclose(found, wanted, rel_tol=_RELATIVE)  # type: ignore[arg-type]
    if isinstance(found, Mapping) and isinstance(wanted, Mapping):
        return set(found) == set(wanted) and all(_same(found[k], wanted[k]) for k in found)
    if isinstance(found, (list, tuple)) and isinstance(wanted, (list, tuple)):
        pairs = zip(found, wanted, strict=False)
        return len(found) == len(wanted) and all(_same(a, b) for a, b in pairs)
    return type(found) is type(wanted) and found == wanted


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _shown(value: object) -> str:
    text = "nothing" if value is None else json.dumps(value, default=str)
    return text if len(text) <= 80 else f"{text[:77]}…"
