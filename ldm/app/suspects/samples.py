"""Which samples was a model trained on, and which captions is each of them tried with?

Of a run folder only plain values of config.yaml are used; nothing that it names is instantiated.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml

from ldm import rng
from ldm.app.evaluation.truths import KEPT
from ldm.app.suspects.request import Request
from ldm.data.examples import Examples
from ldm.data.filters import parse_filter
from ldm.data.locate import expand
from ldm.data.order import Sequential
from ldm.data.reader import Reader
from ldm.data.settings import DataConfig, TrainSource
from ldm.data.shards import build_index
from ldm.evaluation.truth import ShardPictures
from ldm.pipeline import Pipeline

ADVICE = "give data=… (a folder of shards, a glob, a list)"
SEED = 0
POOL = 1024  # captions that others are drawn from: some of the set, in memory


@dataclass(frozen=True)
class Samples:
    """numbers: of the samples that are looked at, ascending; pool: captions, each once."""

    pictures: ShardPictures
    numbers: Sequence[int]
    pool: Sequence[str]

    def place(self, number: int) -> tuple[str, str]:
        """(shard, key)."""
        reader = self.pictures.reader
        _, shard, row = reader.order.at(number)
        return reader.index.shards[shard], reader.index.key(shard, row)

    def others(self, number: int, caption: str, count: int) -> list[str]:
        """So many captions that are not this one, by chance keyed by the sample's number."""
        order = rng.permutation(SEED, "suspects-others", number, len(self.pool)).tolist()
        own = same_text(caption)
        return [text for i in order if same_text(text := self.pool[i]) != own][:count]


def same_text(caption: str) -> str:
    """What two captions have in common that differ in case and spaces only."""
    return " ".join(caption.casefold().split())


def open_samples(request: Request, pipe: Pipeline) -> Samples:
    """Raises FileNotFoundError or ValueError that says what to give."""
    if pipe.card.get("text", {}).get("kind") == "none":
        raise ValueError(
            f"{request.checkpoint} reads no captions, so that none can be told to be wrong; give a "
            "checkpoint that does"
        )
    pictures = _pictures(request, pipe)
    total = len(pictures)
    count = min(request.samples or total, total)
    numbers = sorted(rng.permutation(SEED, "suspects-samples", 0, total)[:count].tolist())
    return Samples(pictures, numbers, _pool(pictures, numbers, request.others))


def _pool(pictures: ShardPictures, numbers: Sequence[int], others: int) -> list[str]:
    """Distinct captions of some of the samples. Raises ValueError where they are too few."""
    order = rng.permutation(SEED, "suspects-pool", 0, len(numbers))[:POOL]
    chosen = [numbers[i] for i in torch.sort(order).values.tolist()]
    captions = [caption for caption in pictures.captions(chosen) if caption]
    unique = {same_text(caption): caption for caption in reversed(captions)}
    if len(unique) <= others:
        raise ValueError(
            f"{pictures.name} has {len(unique)} different captions in {len(chosen)} samples, so "
            f"that no picture can be tried with others={others} captions of other samples; "
            + (f"give others={len(unique) - 1}" if len(unique) > 1 else "give other data")
        )
    return list(reversed(unique.values()))


def _pictures(request: Request, pipe: Pipeline) -> ShardPictures:
    data = pipe.card.get("data")
    shards = request.shards or (data.get("train") if isinstance(data, Mapping) else None)
    if not shards:
        raise ValueError(f"{request.checkpoint} does not say what it was trained on: {ADVICE}")
    said = {}
    if not request.shards:
        check_plain(shards, request.checkpoint)
        said = _run_data(Path(request.checkpoint).expanduser())
    if said.get("format", "images") != "images":
        raise ValueError(f"{request.checkpoint} was trained on cached latents: {ADVICE}")
    kept = {key: said[key] for key in KEPT if said.get(key) is not None}
    if request.caption_key is not None:
        kept["caption_key"] = request.caption_key
    size_px = request.size or _side(pipe)
    config = DataConfig(train=TrainSource(shards=shards), size=size_px, num_workers=0, **kept)
    try:
        listed = expand(shards)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{error}; {ADVICE}") from error
    captions = config.captions().fixed()
    rules = parse_filter(config.filter)
    index = build_index(listed, captions=captions, rules=rules, cache=config.cache())
    examples = Examples(
        transform=config.val_transform(), seed=0, captions=captions, max_pixels=config.max_pixels
    )
    name = Path(listed[0]).parent.name or listed[0]
    return ShardPictures(
        Reader(index=index, order=Sequential(index.sizes), examples=examples), name
    )


def check_plain(shards: Sequence[str], checkpoint: str) -> None:
    """A run folder may come from anywhere: it does not make us run a program (pipe:, gs:, …)."""
    for shard in shards:
        plain = shard.startswith(("http://", "https://")) and "::" not in shard
        if ":" in shard and not plain:
            raise ValueError(
                f"{checkpoint} was trained on {shard[:60]!r}, which a program reads; that is only "
                "done when you say so: give the same as data=…"
            )


def _side(pipe: Pipeline) -> int:
    height, width = pipe.defaults.size
    if height != width:
        raise ValueError(f"the model draws pictures of {width}x{height} px; give size=N, a square")
    return height


def _run_data(checkpoint: Path) -> dict[str, Any]:
    """The node `data` of the run's config.yaml without what it would build; {} without one."""
    home = checkpoint if checkpoint.is_dir() else checkpoint.parent.parent
    path = home / "config.yaml"
    if not path.is_file():
        return {}
    try:
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(f"{path} cannot be read ({error}); {ADVICE}") from error
    data = config.get("data") if isinstance(config, Mapping) else None
    return {str(k): v for k, v in data.items()} if isinstance(data, Mapping) else {}
