"""From a data configuration to readers, sizes and loaders: what is trained and validated on?"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from ldm.data.examples import Examples
from ldm.data.filters import parse_filter
from ldm.data.kept import Kept
from ldm.data.latents import LatentExamples, Layout, probe
from ldm.data.lines import (
    Lines,
    Source,
    arrange,
    arrange_buckets,
    buckets_of,
    joined,
    members,
    sizes_found,
)
from ldm.data.loader import BatchStream, Share, Workers, make_eval_loader, wrap
from ldm.data.locate import expand
from ldm.data.manifest import manifests_of
from ldm.data.order import Sequential
from ldm.data.picture_size import LATENT_EXTS, LATENT_SIZE, PICTURE_EXTS, PICTURE_SIZE
from ldm.data.quarantine import Quarantine
from ldm.data.reader import Reader
from ldm.data.settings import DataConfig
from ldm.data.shards import ShardIndex, build_index, first_samples, split_validation
from ldm.data.stream import StreamBatches, StreamReader
from ldm.types import ImageBatch, LatentBatch

log = logging.getLogger(__name__)

_HELD_OUT = 512  # validation samples at most, where no shards are given for them


@dataclass(frozen=True)
class Data:
    """Training samples, in an order or as a stream, and validation samples (None: none).

    order_spec: what fixes the order of training beside the seed; {} for a stream.
    layout: of cached latents; None: pictures. manifests: of each folder or URL that holds some of
    the training latents, what they were made with (ldm.data.manifest); None where nothing says it.
    """

    config: DataConfig
    train: Reader | StreamReader
    val: Reader | None
    order_spec: Mapping[str, object] = field(default_factory=dict)
    layout: Layout | None = None
    manifests: Mapping[str, Mapping[str, object] | None] = field(default_factory=dict)

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
    ) -> Iterable[ImageBatch | LatentBatch]:
        """This rank's endless batches from sample `start` on; micro_batch: of all ranks."""
        if isinstance(self.train, Reader) and self.train.shapes:
            self._check_whole(self.order_spec["block"], micro_batch, start)
        share = Share(micro_batch=micro_batch, rank=rank, world=world, start=start)
        stream = (
            StreamBatches(self.train, share)
            if isinstance(self.train, StreamReader)
            else BatchStream(self.train, share)
        )
        return wrap(stream, self._workers(pin_memory))

    def val_loader(
        self, *, batch_size: int, limit: int, rank: int, world: int
    ) -> Iterable[ImageBatch | LatentBatch]:
        """This rank's share of the first `limit` validation samples."""
        assert self.val is not None
        return make_eval_loader(
            self.val, batch_size=batch_size, limit=limit, rank=rank, world=world
        )

    def quarantine(self, run_dir: Path) -> Quarantine:
        """Where this run's unusable samples are written down, those that the index left out first.

        They count for max_bad_ratio only when they are met in training.
        """
        path = run_dir / "quarantine.jsonl"
        quarantine = Quarantine(path, max_ratio=self.config.max_bad_ratio)
        for reader in (self.train, self.val):
            if isinstance(reader, Reader):
                quarantine.list(reader.index.dropped)
        return quarantine

    def spec(self) -> dict[str, object]:
        """For the card: which shards, how many samples, and what fixes their order."""
        common: dict[str, object] = {
            "train_size": self.train_size,
            "val": [] if self.val is None else list(self.val.index.shards),
            "val_size": self.val_size,
            "size": self.size,
            "mode": self.config.mode,
        }
        if self.layout is not None:
            common["latents"] = {"kind": self.layout.kind, "shape": list(self.layout.shape)}
        if isinstance(self.train, StreamReader):
            return {"train": list(self.train.shards), **common}
        # the lines of a mixture or of buckets may name a shard more than once
        shards = list(dict.fromkeys(self.train.index.shards))
        return {"train": shards, **common, **self.order_spec}

    def _check_whole(self, batch_size: object, micro_batch: int, start: int) -> None:
        """A micro-batch lies inside one batch, or it would hold pictures of two sizes."""
        assert isinstance(batch_size, int)
        if batch_size % micro_batch or start % micro_batch:
            raise ValueError(
                f"a micro-batch of {micro_batch} samples from sample {start} on does not lie "
                f"inside the batches of {batch_size} that the buckets were made for; open the data "
                "with batch_size = devices x micro_batch x accumulation"
            )

    def _workers(self, pin_memory: bool) -> Workers:
        return Workers(
            count=self.config.num_workers,
            start_method=self.config.start_method,
            prefetch=self.config.prefetch,
            pin_memory=pin_memory,
        )


def open_data(config: DataConfig, *, seed: int, batch_size: int | None = None) -> Data:
    """Expands, indexes and filters. Raises FileNotFoundError or ValueError that say what to do.

    batch_size: of a step, over all devices; needed with buckets, whose batches are of one size.
    """
    if config.mode == "stream":
        return _streamed(config, _pictures(config, seed))
    if config.buckets.used and batch_size is None:
        raise ValueError("data.buckets needs the batch size: open_data(…, batch_size=…)")
    indices = _indices(config)
    examples = _examples(config, indices, seed)
    held_out = None
    if config.val.shards is None:
        most = max(1, _HELD_OUT // len(indices))
        pairs = [split_validation(index, most) for index in indices]
        indices = [train for train, _ in pairs]
        held_out = joined([val for _, val in pairs])[0]
    if config.overfit_samples:
        indices = [first_samples(index, config.overfit_samples) for index in indices]
    if isinstance(examples, Examples) and config.keeps(sum(len(index) for index in indices)):
        examples = replace(examples, kept=Kept())
    lines = _lines(config, indices, seed, batch_size)
    latent = isinstance(examples, LatentExamples)
    return Data(
        config=config,
        train=Reader(index=lines.index, order=lines.order, examples=examples, shapes=lines.shapes),
        val=_validation(config, examples, held_out),
        order_spec=lines.spec(),
        layout=examples.layout if latent else None,
        manifests=manifests_of(lines.index) if latent else {},
    )


def _pictures(config: DataConfig, seed: int) -> Examples:
    return Examples(
        transform=config.transform(),
        seed=seed,
        captions=config.captions(),
        max_pixels=config.max_pixels,
    )


def _examples(
    config: DataConfig, indices: Sequence[ShardIndex], seed: int
) -> Examples | LatentExamples:
    """How samples are made: of pictures, or of latents whose layout the first of them tells."""
    if config.format == "images":
        return _pictures(config, seed)
    layouts = [probe(index) for index in indices]
    if config.buckets.used:  # sizes may differ: validation is on the one that most have
        most = sizes_found(indices, LATENT_SIZE)[0]
        layouts = [replace(layout, shape=(layout.shape[0], *most)) for layout in layouts]
    for index, layout in zip(indices, layouts, strict=True):
        if layout != layouts[0]:
            raise ValueError(
                f"{index.shards[0]} holds {layout}, {indices[0].shards[0]} {layouts[0]}; the "
                "sources of a mixture need latents of one layout"
            )
    captions = config.captions()
    if layouts[0].context is not None and captions.varies:
        raise ValueError(
            "the cache holds the contexts of its captions, so data.tags and data.templates would "
            "have no effect; leave them out, or cache without contexts"
        )
    return LatentExamples(layout=layouts[0], seed=seed, captions=captions)


def _streamed(config: DataConfig, examples: Examples) -> Data:
    log.info("data.mode=stream: a resumed run goes on with other samples (no exact resume)")
    (source,) = config.sources()  # DataConfig sees to it
    train = StreamReader(
        shards=tuple(expand(source.shards)),
        examples=examples,
        buffer=config.shuffle_buffer,
        rules=parse_filter(config.filter),
    )
    return Data(config, train, _validation(config, examples, None))


def _indices(config: DataConfig) -> list[ShardIndex]:
    """The index of every source; a shard belongs to one of them."""
    listed = [expand(source.shards) for source in config.sources()]
    counted = Counter(shard for shards in listed for shard in set(shards))
    if shared := sorted(shard for shard, count in counted.items() if count > 1):
        raise ValueError(
            f"data.train has {shared[0]} in more than one source ({len(shared)} such shards); "
            "raise the weight of one instead"
        )
    return [
        build_index(
            shards,
            holding=_holding(config),
            captions=config.captions(),
            rules=parse_filter(config.filter),
            columns=_columns(config),
            cache=config.cache(),
        )
        for shards in listed
    ]


def _lines(
    config: DataConfig, indices: Sequence[ShardIndex], seed: int, batch_size: int | None
) -> Lines:
    share_gb = config.cache_gb / len(indices)
    sources = [
        Source(index=index, weight=source.weight, **_grouping(config, index, share_gb))
        for source, index in zip(config.sources(), indices, strict=True)
    ]
    if not config.buckets.used:
        return arrange(sources, seed=seed)
    assert batch_size is not None
    (column,) = _columns(config)
    latent = config.format == "latents"
    sizes = sizes_found(indices, column) if latent else config.buckets.sizes(config.size)
    return arrange_buckets(
        sources, sizes, column=column, seed=seed, batch_size=batch_size, exact=latent
    )


def _columns(config: DataConfig) -> tuple[str, ...]:
    """What the index files have to hold for the buckets."""
    if not config.buckets.used:
        return ()
    return (PICTURE_SIZE,) if config.format == "images" else (LATENT_SIZE,)


def _holding(config: DataConfig) -> tuple[str, ...]:
    return PICTURE_EXTS if config.format == "images" else LATENT_EXTS


def _validation(
    config: DataConfig, examples: Examples | LatentExamples, held_out: ShardIndex | None
) -> Reader:
    """The validation samples: the ones held out, or those of the shards given."""
    index = held_out
    if index is None:
        assert config.val.shards is not None  # DataConfig sees to it
        index = build_index(
            expand(config.val.shards),
            holding=_holding(config),
            captions=examples.captions,
            rules=parse_filter(config.filter),
            columns=_columns(config) if config.format == "latents" else (),
            cache=config.cache(),
        )
    if isinstance(examples, LatentExamples) and config.buckets.used:
        index = _of_size(index, examples.layout.shape)
    examples = replace(examples, captions=examples.captions.fixed())
    if isinstance(examples, Examples):
        examples = replace(examples, transform=config.val_transform(), kept=None)
    return Reader(index=index, order=Sequential(index.sizes), examples=examples)


def _of_size(index: ShardIndex, shape: tuple[int, ...]) -> ShardIndex:
    """The latents of one size, as validation makes batches without regard to buckets."""
    sizes = sizes_found([index], LATENT_SIZE)
    wanted = np.array([size == shape[1:] for size in sizes])
    kept = members(index, buckets_of(index, sizes, LATENT_SIZE, exact=True), wanted)
    if not len(kept):
        raise ValueError(f"no validation latents are {list(shape)}; they are {sizes[:5]}")
    log.info("validation: %d of %d latents are %s", len(kept), len(index), list(shape))
    return kept


def _grouping(config: DataConfig, index: ShardIndex, share_gb: float) -> dict[str, int]:
    """Local shards are shuffled as a whole; remote ones in groups of which the cache holds two.

    share_gb: this source's part of the cache.
    """
    if config.group:
        return {"group": config.group, "lanes": config.lanes}
    if not index.remote:
        return {"group": 0, "lanes": 1}
    mean_bytes = sum(size for size, _ in index.stamps) / len(index.stamps)
    group = min(int(share_gb * 1e9 / 2 / mean_bytes), len(index.shards))
    if group < 1:
        raise ValueError(
            f"data.cache_gb={config.cache_gb} does not hold two shards of "
            f"{mean_bytes / 1e9:.2f} GB of every source; raise it"
        )
    log.info("remote shards: groups of %d are shuffled in %d lanes", group, config.lanes)
    return {"group": group, "lanes": config.lanes}
