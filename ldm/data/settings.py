"""What can be said about the data in a config?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args

from ldm.data.cache import ShardCache, default_cache_dir
from ldm.data.captions import Captions
from ldm.data.transforms import Transform

Spec = str | Sequence[str]
Mode = Literal["ordered", "stream"]
Crop = Literal["center", "random"]
StartMethod = Literal["fork", "spawn", "forkserver"]


@dataclass(frozen=True, kw_only=True)
class TrainSource:
    """Shards to train on."""

    shards: Spec


@dataclass(frozen=True, kw_only=True)
class ValSource:
    """Shards to validate on; None: the last samples of the training shards are kept out for it."""

    shards: Spec | None = None


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """The node `data`; conf/data/*.yaml say what each key means.

    filter: json field -> condition (ldm.data.filters), for training and validation samples alike.
    """

    train: TrainSource
    val: ValSource = field(default_factory=ValSource)
    filter: Mapping[str, object] = field(default_factory=dict)
    size: int = 512
    crop: Crop = "center"
    flip: float = 0.0
    max_zoom: float = 1.0
    caption_key: str | None = None
    uncaptioned: bool = False
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
    num_workers: int = 4
    start_method: StartMethod = "fork"
    prefetch: int = 2

    def __post_init__(self) -> None:
        problems = []
        for name, kind in (("mode", Mode), ("start_method", StartMethod)):
            if getattr(self, name) not in get_args(kind):
                known = ", ".join(get_args(kind))
                problems.append(f"data.{name}={getattr(self, name)!r} is unknown; use {known}")
        if self.mode == "stream" and self.val.shards is None:
            problems.append("data.mode=stream cannot keep samples out; give data.val.shards")
        if self.mode == "stream" and self.overfit_samples:
            problems.append("data.overfit_samples needs data.mode=ordered")
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

    def transform(self) -> Transform:
        """For training."""
        return Transform(size=self.size, crop=self.crop, flip=self.flip, max_zoom=self.max_zoom)

    def val_transform(self) -> Transform:
        """For validation: nothing left to chance."""
        return Transform(size=self.size)

    def captions(self) -> Captions:
        """Where the captions are."""
        return Captions(key=self.caption_key, optional=self.uncaptioned)

    def cache(self) -> ShardCache:
        """Where remote shards and index files are kept."""
        folder = default_cache_dir() if self.cache_dir is None else Path(self.cache_dir)
        return ShardCache(folder=folder.expanduser(), limit_bytes=int(self.cache_gb * 1e9))


_LEAST = {
    "max_pixels": 1,
    "group": 0,
    "lanes": 1,
    "shuffle_buffer": 1,
    "epoch_samples": 1,
    "overfit_samples": 0,
    "cache_gb": 0.0,
    "num_workers": 0,
    "prefetch": 1,
}
