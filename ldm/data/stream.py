"""How are pipes read that cannot be cached?

webdataset's own pipeline: shards drawn with replacement, read from front to back, shuffled in a
buffer. What comes is no function of a position, so there is no exact resume: a resumed run goes on
with other samples.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
import webdataset as wds
from torch import Tensor
from torch.utils.data import IterableDataset

from ldm import rng
from ldm.data.captions import BadSampleError
from ldm.data.collate import Example, collate
from ldm.data.examples import Examples
from ldm.data.filters import Rule
from ldm.data.loader import Share
from ldm.data.table import record
from ldm.types import ImageBatch, Skipped

log = logging.getLogger(__name__)

Raw = Mapping[str, object]
_MAX_BAD = 1000  # unusable samples or shards within a batch


@dataclass(frozen=True, kw_only=True)
class StreamReader:
    """Endless samples of some shards. buffer: samples that are shuffled at a time."""

    shards: tuple[str, ...]
    examples: Examples
    buffer: int = 1000
    rules: tuple[Rule, ...] = ()

    def samples(self, draw: int, skipped: list[Skipped]) -> Iterator[Raw]:
        """Raw samples that pass the filters; draw: key of this stream's own sequence."""
        words = rng.integers(self.examples.seed, "stream", torch.tensor([draw]), 1 << 32, (2,))
        shard_seed, shuffle_seed = words[0].tolist()

        def note(error: Exception) -> bool:
            shard = next((arg for arg in error.args if arg in self.shards), "?")
            skipped.append(Skipped(str(shard), "", f"{type(error).__name__}: {error}"))
            return len(skipped) <= _MAX_BAD  # True: go on with the next shard

        pipeline = wds.DataPipeline(
            # its own seeding by process number would make ranks draw alike after a restart
            wds.ResampledShards(
                list(self.shards), seed=shard_seed, worker_seed=lambda: 0, deterministic=True
            ),
            wds.tarfile_to_samples(handler=note),
            wds.shuffle(self.buffer, rng=random.Random(shuffle_seed)),
        )
        for sample in pipeline:
            fields = record(sample.get("json", b"")) if self.rules else {}
            if all(rule.passes(fields) for rule in self.rules):
                yield sample


class StreamBatches(IterableDataset[ImageBatch]):
    """The endless batches of one rank; sample numbers are those that BatchStream gives."""

    def __init__(self, reader: StreamReader, share: Share) -> None:
        self.reader = reader
        self.share = share

    def __iter__(self) -> Iterator[ImageBatch]:
        skipped: list[Skipped] = []
        samples: Iterator[Raw] | None = None
        for positions in self.share.positions():
            if samples is None:  # the first number is this worker's alone, and another on resume
                samples = self.reader.samples(int(positions[0]), skipped)
            yield self._batch(samples, positions, skipped)
            skipped.clear()

    def _batch(
        self, samples: Iterator[Raw], positions: Tensor, skipped: list[Skipped]
    ) -> ImageBatch:
        draws = self.reader.examples.draws(positions)
        made: list[Example] = []
        while len(made) < len(positions):
            sample = next(samples, None)
            if sample is None or len(skipped) > _MAX_BAD:
                bad = skipped[-1]
                raise RuntimeError(
                    f"{len(skipped)} samples or shards in a row cannot be used: "
                    f"{bad.shard}: {bad.reason}"
                )
            key, number = str(sample["__key__"]), int(positions[len(made)])
            members = {k: v for k, v in sample.items() if isinstance(v, bytes)}
            try:
                made.append(self.reader.examples.make(number, key, members, draws[len(made)]))
            except BadSampleError as error:
                skipped.append(Skipped(str(sample["__url__"]), key, str(error)))
        return collate(made, skipped)
