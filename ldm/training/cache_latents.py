"""How are pictures encoded once, so that training need not do it again?

Each shard of pictures becomes one of moments, with the same keys in the same order. It is written
under a temporary name and renamed, so that an interrupted run goes on with the next shard; devices
share the shards. data/README.md describes the format.
"""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from webdataset.writer import TarWriter

from ldm.data.captions import BadSampleError
from ldm.data.examples import Examples
from ldm.data.manifest import FORMAT, MANIFEST, NULL_CONTEXT, content_hash
from ldm.data.reader import Reader
from ldm.data.shards import read
from ldm.data.source import Data
from ldm.data.transforms import to_pixels
from ldm.io import checkpoint as files
from ldm.io.checkpoint import tensors_hash
from ldm.models.codec import Codec
from ldm.models.text.base import TextEncoder
from ldm.training.launch import Processes
from ldm.types import Skipped

log = logging.getLogger(__name__)
Advance = Callable[[int], None]
SKIPPED = "left_out"  # <shard>.left_out.jsonl: which samples could not be encoded, and why


@dataclass(frozen=True)
class Encoders:
    """What the cache is made with. text None: no contexts."""

    codec: Codec
    text: TextEncoder | None


def expected(codec: Codec, text: TextEncoder, *, size: int) -> dict[str, object]:
    """What a run compares a cache's manifest with (see data.manifest.check_manifest)."""
    return {
        "vae.hash": tensors_hash(dict(codec.vae.state_dict())),
        "vae.scale": codec.scale,
        "text.hash": text.hash(),
        "text.layer": layer_of(text),
        "resolution": size,
    }


def layer_of(text: TextEncoder) -> str:
    """Which of the text encoder's states a context is."""
    spec = text.spec()
    return f"{spec.get('layers', 'all')} layers, clip_skip {spec.get('clip_skip', 1)}"


def cache_problems(data: Data, text: TextEncoder | None) -> list[str]:
    """Why these data cannot be cached."""
    problems = []
    config = data.config
    if not isinstance(data.train, Reader) or not isinstance(data.train.examples, Examples):
        problems.append(
            "caching reads pictures in shards; use data.mode=ordered data.format=images"
        )
    elif len(set(data.train.index.shards)) != len(data.train.index.shards) or data.train.shapes:
        problems.append("caching takes one source without buckets; cache each size by itself")
    chance = {"crop": config.crop == "random", "flip": config.flip > 0}
    chance["max_zoom"] = config.max_zoom > 1
    problems += [
        f"data.{name}={getattr(config, name)} differs from visit to visit, a cache cannot; use "
        f"{'center' if name == 'crop' else 'no'} {name}"
        for name, used in chance.items()
        if used
    ]
    if text is not None and text.encode([""]).mask is not None:
        problems.append(
            "contexts=true: this text encoder's contexts come with a mask, which a cache has no "
            "place for; use contexts=false"
        )
    return problems


def cache_latents(
    data: Data,
    encoders: Encoders,
    out: Path,
    processes: Processes,
    *,
    batch_size: int,
    advance: Advance = lambda _: None,
) -> dict[str, Any]:
    """Writes this process's share, and the manifest when all are done. Returns the manifest.

    Raises ValueError when `out` holds a cache that was made otherwise.
    """
    reader = data.train
    assert isinstance(reader, Reader)
    assert isinstance(reader.examples, Examples)
    names = _names(reader.index.shards)
    manifest = _manifest(data, encoders)
    problem = processes.agree(_folder_problem(out, manifest) if processes.rank == 0 else "")
    if problem:
        raise ValueError(problem)
    shards = list(range(len(names)))
    for shard in processes.share(shards):
        target = out / names[shard]
        if not target.exists():
            _write_shard(reader, shard, encoders, target, batch_size)
        advance(reader.index.sizes[shard])
    own = sum(_left_out(out / names[shard]) for shard in processes.share(shards))
    left_out = sum(processes.gather(own))
    manifest["samples"] = len(reader.index) - left_out
    manifest["left_out"] = left_out
    if processes.rank == 0:
        if encoders.text is not None:
            (out / NULL_CONTEXT).write_bytes(_null_bytes(encoders.text))
        files.write_text(out / MANIFEST, json.dumps(manifest, indent=1))
        log.info("%s: %d samples, %d left out", out, manifest["samples"], manifest["left_out"])
    return manifest


def _manifest(data: Data, encoders: Encoders) -> dict[str, Any]:
    config, text = data.config, encoders.text
    return {
        "format": FORMAT,
        "vae": {
            "hash": tensors_hash(dict(encoders.codec.vae.state_dict())),
            "scale": encoders.codec.scale,
        },
        "text": None
        if text is None
        else {"id": text.spec()["source"], "hash": text.hash(), "layer": layer_of(text)},
        "transform": asdict(config.transform()),
        "resolution": config.size,
        "null_context": None if text is None else content_hash(_null_bytes(text)),
    }


def _folder_problem(out: Path, manifest: dict[str, Any]) -> str:
    """Whether the folder is new, or holds the beginning of this very cache (begun.json)."""
    begun = out / "begun.json"
    if not begun.exists():
        if any(out.glob("*.tar")):
            return f"out={out} holds shards of something else; give a folder of its own"
        files.write_text(begun, json.dumps(manifest, indent=1))
        return ""
    before = json.loads(begun.read_text())
    wrong = [key for key in manifest if before.get(key) != manifest[key]]
    if not wrong:
        return ""
    return f"out={out} holds a cache with another {', '.join(wrong)}; give another folder"


def _names(shards: tuple[str, ...]) -> list[str]:
    """A file for each shard, of its own name; numbered where folders have equal names in them."""
    stems = [shard.rpartition("/")[2].partition("?")[0] for shard in shards]
    if len(set(stems)) == len(stems):
        return stems
    return [f"{n:06d}-{stem}" for n, stem in enumerate(stems)]


def _write_shard(
    reader: Reader, shard: int, encoders: Encoders, target: Path, batch_size: int
) -> None:
    temporary = target.with_name(f".tmp-{target.name}")
    skipped: list[Skipped] = []
    with TarWriter(str(temporary), mtime=0, user="", group="") as tar:
        for rows in _batches(_samples(reader, shard, skipped), batch_size):
            for (key, members, _, _), arrays in zip(rows, _encode(encoders, rows), strict=True):
                tar.write({"__key__": key, **members, **arrays})
    if skipped:
        lines = [json.dumps({"key": bad.key, "reason": bad.reason}) for bad in skipped]
        files.write_text(_list_of(target), "\n".join(lines) + "\n")
        log.warning("%s: %d samples left out, as %s", target, len(skipped), skipped[0])
    temporary.replace(target)


Row = tuple[str, dict[str, bytes], Any, str]  # key, members that stay, uint8 picture, caption


def _samples(reader: Reader, shard: int, skipped: list[Skipped]) -> Iterator[Row]:
    """Every usable sample of a shard, in order."""
    examples = reader.examples
    assert isinstance(examples, Examples)
    draws = examples.draws(torch.zeros(1, dtype=torch.int64))[0]  # nothing is left to chance
    for n in range(reader.index.sizes[shard]):
        key = reader.index.key(shard, n)
        members = read(reader.index, shard, n)
        try:
            made = examples.make(0, key, members, draws)
        except BadSampleError as error:
            skipped.append(Skipped(reader.index.shards[shard], key, str(error)))
            continue
        kept = {ext: data for ext, data in members.items() if ext not in examples.image_exts}
        yield key, kept, made.shown.pixels, made.caption


def _batches(rows: Iterator[Row], size: int) -> Iterator[list[Row]]:
    batch: list[Row] = []
    for row in rows:
        batch.append(row)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


@torch.no_grad()
def _encode(encoders: Encoders, rows: list[Row]) -> list[dict[str, bytes]]:
    device = next(encoders.codec.vae.parameters()).device
    moments = encoders.codec.moments(to_pixels([row[2] for row in rows]).to(device))
    arrays = [{"moments.npy": _npy(value)} for value in moments.cpu()]
    if encoders.text is not None:
        context = encoders.text.encode([row[3] for row in rows]).context
        assert context is not None
        for made, value in zip(arrays, context.cpu(), strict=True):
            made["context.npy"] = _npy(value)
    return arrays


def _npy(value: Tensor) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, value.to(torch.float16).numpy(), allow_pickle=False)
    return buffer.getvalue()


def _null_bytes(text: TextEncoder) -> bytes:
    context = text.null(1).context
    assert context is not None
    return _npy(context[0].cpu())


def _list_of(target: Path) -> Path:
    return target.with_suffix(f".{SKIPPED}.jsonl")


def _left_out(target: Path) -> int:
    path = _list_of(target)
    return len(path.read_text().splitlines()) if path.exists() else 0
