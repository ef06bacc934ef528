"""Which true pictures and captions go with a model, when it is read and not run?

Of a run folder only plain values of config.yaml are used; nothing that it names is instantiated.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from ldm.app.evaluation.request import Request
from ldm.app.evaluation.subjects import Subject
from ldm.data.examples import Examples
from ldm.data.filters import parse_filter
from ldm.data.locate import expand
from ldm.data.order import Sequential
from ldm.data.reader import Reader
from ldm.data.settings import DataConfig, TrainSource, ValSource, WeightedSource
from ldm.data.shards import build_index
from ldm.data.source import open_data
from ldm.evaluation.truth import SHAPES, DrawnShapes, ShardPictures, Truth

# what a run's configuration says of its samples; the rest is about training
KEPT = ("filter", "caption_key", "uncaptioned", "templates", "max_pixels")
ADVICE = "give data=… (a folder of shards, a glob, a list), or data=shapes for drawn shapes"


def truth_of(request: Request, subject: Subject, size_px: int) -> Truth:
    """The data asked for, else the model's validation samples.

    Raises FileNotFoundError or ValueError that says what to give.
    """
    if request.shards == SHAPES or (request.shards is None and subject.given == "tiny"):
        return DrawnShapes(size_px=size_px)
    said = _run_data(subject) if request.shards is None else {}
    if request.caption_key is not None:
        said["caption_key"] = request.caption_key
    if subject.card.get("text", {}).get("kind") == "none":
        said["uncaptioned"] = True
    shards = request.shards
    if shards is None and _held_out(said):
        return _last_of_training(said, subject, size_px)
    if shards is None:
        shards = _val_shards(said, subject)
    kept = {key: said[key] for key in KEPT if said.get(key) is not None}
    config = DataConfig(
        train=TrainSource(shards=shards), val=ValSource(shards=shards), size=size_px, **kept
    )
    try:
        listed = expand(shards)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{error}; {ADVICE}") from error
    return ShardPictures(_reader(config, listed), _words(shards))


def _reader(config: DataConfig, shards: list[str]) -> Reader:
    captions = config.captions().fixed()
    index = build_index(
        shards, captions=captions, rules=parse_filter(config.filter), cache=config.cache()
    )
    examples = Examples(
        transform=config.val_transform(), seed=0, captions=captions, max_pixels=config.max_pixels
    )
    return Reader(index=index, order=Sequential(index.sizes), examples=examples)


def _run_data(subject: Subject) -> dict[str, Any]:
    """The node `data` of a run's config.yaml, without what it would build; {} without one."""
    path = None if subject.run_dir is None else subject.run_dir / "config.yaml"
    if path is None or not path.is_file():
        return {}
    try:
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(f"{path} cannot be read ({error}); {ADVICE}") from error
    data = config.get("data") if isinstance(config, Mapping) else None
    return _plain(data) if isinstance(data, Mapping) else {}


def _plain(node: Any) -> Any:
    if isinstance(node, Mapping):
        return {key: _plain(value) for key, value in node.items() if not str(key).startswith("_")}
    return [_plain(item) for item in node] if isinstance(node, list) else node


def _held_out(said: Mapping[str, Any]) -> bool:
    """Whether the run validated on the last of its training samples."""
    val = said.get("val")
    return "train" in said and not (isinstance(val, Mapping) and val.get("shards"))


def _last_of_training(said: Mapping[str, Any], subject: Subject, size_px: int) -> Truth:
    train = said["train"]
    sources = train if isinstance(train, list) else [train]
    kept = {key: said[key] for key in KEPT if said.get(key) is not None}
    if said.get("format", "images") != "images":
        raise ValueError(f"{subject.given} was trained on cached latents, no pictures: {ADVICE}")
    weighted = [
        WeightedSource(shards=source["shards"], weight=float(source.get("weight", 1.0)))
        for source in sources
    ]
    config = DataConfig(
        train=TrainSource(shards=weighted[0].shards) if len(weighted) == 1 else weighted,
        size=size_px,
        num_workers=0,
        **kept,
    )
    try:
        data = open_data(config, seed=0)
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"the shards {subject.given} was trained on are not here ({error}); {ADVICE}"
        ) from error
    assert data.val is not None  # held out
    return ShardPictures(data.val, f"validation part of {_words([s.shards for s in weighted])}")


def _val_shards(said: Mapping[str, Any], subject: Subject) -> Any:
    """The validation shards that a run names, or its card."""
    if said.get("format", "images") != "images":
        raise ValueError(f"{subject.given} was trained on cached latents, no pictures: {ADVICE}")
    val = said.get("val")
    if isinstance(val, Mapping) and val.get("shards"):
        return val["shards"]
    data = subject.card.get("data")
    shards = data.get("val") if isinstance(data, Mapping) else None
    if not shards:
        raise ValueError(f"{subject.given} does not say what it was validated on: {ADVICE}")
    if set(shards) & set(data.get("train", [])):
        raise ValueError(
            f"{subject.given} was validated on some of its training samples, and its run folder, "
            f"which says on which, is not there: {ADVICE}"
        )
    return shards


def _words(shards: Any) -> str:
    """The data's name for people: no whole list of shards, no folders above it."""
    if isinstance(shards, str):
        path = Path(shards)
        return f"{path.parent.name}/{path.name}" if path.suffix == ".tar" else path.name or shards
    words = [_words(part) for part in shards]
    return ", ".join(words[:3]) + (f" and {len(words) - 3} more" if len(words) > 3 else "")
