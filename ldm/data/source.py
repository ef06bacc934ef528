"""From a data configuration to readers, sizes and loaders: what is trained and validated on?"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from ldm.data.examples import Examples
from ldm.data.filters import parse_filter
from ldm.data.loader import BatchStream, Share, Workers, make_eval_loader, wrap
from ldm.data.locate import expand
from ldm.data.order import Order, Sequential
from ldm.data.quarantine import Quarantine
from ldm.data.reader import Reader
from ldm.data.settings import DataConfig
from ldm.data.shards import ShardIndex, build_index, first_samples, split_validation
from ldm.data.stream import StreamBatches, StreamReader
from ldm.types import ImageBatch

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Data:
    """Training samples, in an order or as a stream, and validation samples (None: none)."""

    config: DataConfig
    train: Reader | StreamReader
    val: Reader | None

    @property
    def size(self) -> int:
        """Side of the pictures in px."""
        return self.config.size

    @property
    def train_size(self) -> int:
        """Samples an epoch."""
        if isinstance(self.train, StreamReader):
            return self.config.epoch_samples
        return len(self.train.order)

    @property
    def val_size(self) -> int:
        return 0 if self.val is None else len(self.val.order)

    def train_loader(
        self, *, micro_batch: int, rank: int, world: int, start: int, pin_memory: bool
    ) -> Iterable[ImageBatch]:
        """This rank's endless batches from sample `start` on; micro_batch: of all ranks."""
        share = Share(micro_batch=micro_batch, rank=rank, world=world, start=start)
        stream = (
            StreamBatches(self.train, share)
            if isinstance(self.train, StreamReader)
            else BatchStream(self.train, share)
        )
        return wrap(stream, self._workers(pin_memory))

    def val_loader(
        self, *, batch_size: int, limit: int, rank: int, world: int
    ) -> Iterable[ImageBatch]:
        """This rank's share of the first `limit` validation samples."""
        assert self.val is not None
        return make_eval_loader(
            self.val, batch_size=batch_size, limit=limit, rank=rank, world=world
        )

    def quarantine(self, run_dir: Path) -> Quarantine:
        """Where this run's unusable samples are written down."""
        path = run_dir / "quarantine.jsonl"
        return Quarantine(path, max_ratio=self.config.max_bad_ratio)

    def spec(self) -> dict[str, object]:
        """For the card: which shards, how many samples, and what fixes their order."""
        common: dict[str, object] = {
            "train_size": self.train_size,
            "val": [] if self.val is None else list(self.val.index.shards),
            "val_size": self.val_size,
            "size": self.size,
            "mode": self.config.mode,
        }
        if isinstance(self.train, StreamReader):
            return {"train": list(self.train.shards), **common}
        order = self.train.order
        assert isinstance(order, Order)
        return {"train": list(self.train.index.shards), **common, **order.spec()}

    def _workers(self, pin_memory: bool) -> Workers:
        return Workers(
            count=self.config.num_workers,
            start_method=self.config.start_method,
            prefetch=self.config.prefetch,
            pin_memory=pin_memory,
        )


def open_data(config: DataConfig, *, seed: int) -> Data:
    """Expands, indexes and filters. Raises FileNotFoundError or ValueError that say what to do."""
    examples = Examples(
        transform=config.transform(),
        seed=seed,
        captions=config.captions(),
        max_pixels=config.max_pixels,
    )
    shards = expand(config.train.shards)
    rules = parse_filter(config.filter)
    if config.mode == "stream":
        log.info("data.mode=stream: a resumed run goes on with other samples (no exact resume)")
        train = StreamReader(
            shards=tuple(shards), examples=examples, buffer=config.shuffle_buffer, rules=rules
        )
        return Data(config, train, _validation(config, examples, None))
    index = build_index(shards, captions=examples.captions, rules=rules, cache=config.cache())
    held_out = None
    if config.val.shards is None:
        index, held_out = split_validation(index)
    if config.overfit_samples:
        index = first_samples(index, config.overfit_samples)
    order = Order(index.sizes, seed=seed, **_grouping(config, index))
    reader = Reader(index=index, order=order, examples=examples)
    return Data(config, reader, _validation(config, examples, held_out))


def _validation(config: DataConfig, examples: Examples, held_out: ShardIndex | None) -> Reader:
    """The validation samples: the ones held out, or those of the shards given."""
    index = held_out
    if index is None:
        assert config.val.shards is not None  # DataConfig sees to it
        index = build_index(
            expand(config.val.shards),
            captions=examples.captions,
            rules=parse_filter(config.filter),
            cache=config.cache(),
        )
    examples = replace(examples, transform=config.val_transform())
    return Reader(index=index, order=Sequential(index.sizes), examples=examples)


def _grouping(config: DataConfig, index: ShardIndex) -> dict[str, int]:
    """Local shards are shuffled as a whole; remote ones in groups of which the cache holds two."""
    if config.group:
        return {"group": config.group, "lanes": config.lanes}
    if not index.remote:
        return {"group": 0, "lanes": 1}
    mean_bytes = sum(size for size, _ in index.stamps) / len(index.stamps)
    group = min(int(config.cache_gb * 1e9 / 2 / mean_bytes), len(index.shards))
    if group < 1:
        raise ValueError(
            f"data.cache_gb={config.cache_gb} does not hold two shards of "
            f"{mean_bytes / 1e9:.2f} GB; raise it"
        )
    log.info("remote shards: groups of %d are shuffled in %d lanes", group, config.lanes)
    return {"group": group, "lanes": config.lanes}
