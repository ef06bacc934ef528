"""What can be said about the data in a config?"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Literal, get_args

from ldm.data.buckets import Buckets
from ldm.data.cache import ShardCache, default_cache_dir
from ldm.data.captions import Captions
from ldm.data.interleave import RUN
from ldm.data.tags import Tags, Templates
from ldm.data.transforms import Transform

Spec = str | Sequence[str]
Mode = Literal["ordered", "stream"]
Format = Literal["images", "latents"]
Crop = Literal["center", "random"]
Resample = Literal["bicubic", "lanczos"]
StartMethod = Literal["fork", "spawn", "forkserver"]


@dataclass(frozen=True, kw_only=True)
class TrainSource:
    """Shards to train on."""

    shards: Spec


@dataclass(frozen=True, kw_only=True)
class WeightedSource(TrainSource):
    """One source of a mixture; weight: its share of the positions is this by the weights' sum."""

    weight: float = 1.0


@dataclass(frozen=True, kw_only=True)
class ValSource:
    """Shards to validate on; None: the last samples of the training shards are kept out for it."""

    shards: Spec | None = None


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """The node `data`; conf/data/*.yaml say what each key means.

    train: one source, or a mixture: a list of WeightedSources or of mappings {shards, weight}.
    filter: json field -> condition (ldm.data.filters), for training and validation samples alike.
    """

    train: TrainSource | Sequence[WeightedSource | Mapping[str, object]]
    val: ValSource = field(default_factory=ValSource)
    filter: Mapping[str, object] = field(default_factory=dict)
    format: Format = "images"
    size: int = 512
    crop: Crop = "center"
    flip: float = 0.0
    max_zoom: float = 1.0
    resample: Resample = "bicubic"
    dct_scaling: bool = False
    buckets: Buckets = field(default_factory=Buckets)
    caption_key: str | Sequence[str] | None = None
    uncaptioned: bool = False
    tags: Tags = field(default_factory=Tags)
    templates: Sequence[str] = field(default_factory=list)
    max_pixels: int = 100_000_000
    max_bad_ratio: float = 0.01
    mode: Mode = "ordered"
    group: int = 0
    lanes: int = 64
    shuffle_buffer: int = 1000
    epoch_samples: int = 1_000_000
    overfit_samples: int = 0
    cache_dir: str | None = None
    cache_gb: float = 50.0
    keep_mib: int = 128
    num_workers: int = 4
    start_method: StartMethod = "fork"
    prefetch: int = 2

    def __post_init__(self) -> None:
        problems = []
        for name, kind in (("format", Format), ("mode", Mode), ("start_method", StartMethod)):
            if getattr(self, name) not in get_args(kind):
                known = ", ".join(get_args(kind))
                problems.append(f"data.{name}={getattr(self, name)!r} is unknown; use {known}")
        if self.mode == "stream" and self.val.shards is None:
            problems.append("data.mode=stream cannot keep samples out; give data.val.shards")
        if self.mode == "stream" and self.overfit_samples:
            problems.append("data.overfit_samples needs data.mode=ordered")
        if self.mode == "stream" and self.buckets.used:
            problems.append("data.buckets.max_aspect above 1 needs data.mode=ordered")
        problems += self.buckets.problems(self.size)
        if self.format == "latents":
            problems += self._latent_problems()
        problems += self._source_problems()
        problems += self.tags.problems() + Templates(tuple(self.templates)).problems()
        problems += _name_problems(self.captions().names)
        for name, least in _LEAST.items():
            if getattr(self, name) < least:
                problems.append(f"data.{name}={getattr(self, name)}; use {least} or more")
        if not 0.0 <= self.max_bad_ratio <= 1.0:
            problems.append(f"data.max_bad_ratio={self.max_bad_ratio} is not a ratio; use 0 … 1")
        try:
            self.transform()
        except ValueError as error:
            problems.append(str(error))
        if problems:
            raise ValueError("; ".join(problems))

    def sources(self) -> tuple[WeightedSource, ...]:
        """The sources that are trained on, one or more."""
        if isinstance(self.train, TrainSource):
            return (WeightedSource(shards=self.train.shards),)
        return tuple(s if isinstance(s, WeightedSource) else _weighted(s) for s in self.train)

    def _source_problems(self) -> list[str]:
        try:
            sources = self.sources()
        except ValueError as error:
            return [str(error)]
        if not sources:
            return ["data.train=[] names no source; give [{shards: …, weight: …}, …]"]
        found = []
        if self.mode == "stream" and len(sources) > 1:
            found.append("a mixture (data.train is a list) needs data.mode=ordered")
        if self.overfit_samples and len(sources) > 1:
            found.append("data.overfit_samples needs one source; data.train is a list")
        weights = [source.weight for source in sources]
        wrong = [w for w in weights if not 0 < w < math.inf]
        if wrong:
            found.append(f"data.train weights {wrong}; use positive numbers")
        else:
            total = sum(weights)
            found += [
                f"data.train weight {w} is {w / total:.1e} of all, less than half a position in "
                f"{RUN}; raise it or leave the source out"
                for w in weights
                if w / total * RUN < 0.5
            ]
        return found

    def _latent_problems(self) -> list[str]:
        """What cannot be done to latents: it was decided when they were cached."""
        found = [
            f"data.{name}={getattr(self, name)} is for pictures; latents are as they were cached"
            for name, plain in _OF_PICTURES.items()
            if getattr(self, name) != plain
        ]
        if self.mode == "stream":
            found.append("data.format=latents needs data.mode=ordered")
        return found

    def transform(self) -> Transform:
        """For training."""
        return Transform(
            size=self.size,
            crop=self.crop,
            flip=self.flip,
            max_zoom=self.max_zoom,
            resample=self.resample,
            dct_scaling=self.dct_scaling,
        )

    def keeps(self, samples: int) -> bool:
        """Whether so many pictures, once decoded, all fit into `keep_mib` and stay as they are."""
        size = samples * 3 * self.size**2
        return self.transform().is_fixed and size <= self.keep_mib << 20

    def val_transform(self) -> Transform:
        """For validation: nothing left to chance, JPEGs decoded in full."""
        return Transform(size=self.size, resample=self.resample)

    def captions(self) -> Captions:
        """Where the captions are."""
        return Captions(
            key=self.caption_key,
            optional=self.uncaptioned,
            tags=self.tags,
            templates=Templates(tuple(self.templates)),
        )

    def cache(self) -> ShardCache:
        """Where remote shards and index files are kept."""
        folder = default_cache_dir() if self.cache_dir is None else Path(self.cache_dir)
        return ShardCache(folder=folder.expanduser(), limit_bytes=int(self.cache_gb * 1e9))


def _name_problems(names: Sequence[object]) -> list[str]:
    """What is wrong with the places of captions."""
    wrong = [n for n in names if not isinstance(n, str) or not n.strip(".") or n == ".json"]
    if not wrong and names and len(set(names)) == len(names):
        return []
    return [
        f"data.caption_key={list(names)!r} names no captions; use json fields (caption) and text "
        "members (.txt), each once"
    ]


def _weighted(node: object) -> WeightedSource:
    known = {f.name for f in fields(WeightedSource)}
    if not isinstance(node, Mapping) or "shards" not in node or set(node) - known:
        raise ValueError(f"data.train has {node!r}; a source is {{shards: …, weight: …}}")
    weight = node.get("weight", 1.0)
    if isinstance(weight, bool) or not isinstance(weight, (int, float)):
        raise ValueError(f"data.train weight={weight!r}; use a number")
    return WeightedSource(shards=node["shards"], weight=float(weight))  # type: ignore[arg-type]


_OF_PICTURES = {
    "crop": "center",
    "flip": 0.0,
    "max_zoom": 1.0,
    "resample": "bicubic",
    "dct_scaling": False,
    "keep_mib": 128,
}
_LEAST = {
    "max_pixels": 1,
    "group": 0,
    "lanes": 1,
    "shuffle_buffer": 1,
    "epoch_samples": 1,
    "overfit_samples": 0,
    "cache_gb": 0.0,
    "keep_mib": 0,
    "num_workers": 0,
    "prefetch": 1,
}
