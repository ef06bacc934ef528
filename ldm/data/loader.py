"""Which rank and worker reads which samples?

Global micro-batch k is samples start + kB … start + (k+1)B - 1 whoever reads them: rank r takes
positions r::W of each, worker w of n yields whole rank batches w, w+n, …
"""

from __future__ import annotations

import logging
import math
import os
import signal
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from ldm.data.order import Order
from ldm.data.prefetch import Prefetch
from ldm.data.reader import Reader
from ldm.types import ImageBatch

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Workers:
    """How many processes read, and how.

    start_method: fork | spawn | forkserver; prefetch: batches ready per worker; the number is
    capped by the cores this process may use.
    """

    count: int = 0
    start_method: str = "fork"
    prefetch: int = 2
    pin_memory: bool = False

    def usable(self) -> int:
        """The number of processes that are really started."""
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        if self.count > (cores or 1):
            log.info("num_workers=%d is more than the %s cores; using %s", self.count, cores, cores)
        return min(self.count, cores or 1)


@dataclass(frozen=True, kw_only=True)
class Share:
    """What one rank gets of the samples from `start` on; micro_batch: samples of all ranks."""

    micro_batch: int
    rank: int = 0
    world: int = 1
    start: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.rank < self.world or self.start < 0:
            raise ValueError(f"{self}; use 0 <= rank < world and start >= 0")
        if self.micro_batch < 1 or self.micro_batch % self.world:
            raise ValueError(
                f"a micro-batch of {self.micro_batch} samples cannot be shared by {self.world} "
                f"ranks; use a multiple of {self.world}"
            )

    def positions(self) -> Iterator[Tensor]:
        """The sample numbers of each batch of this worker, without end. [micro_batch / world]"""
        worker, workers = worker_number()
        offsets = torch.arange(self.rank, self.micro_batch, self.world)
        at = self.start + worker * self.micro_batch
        while True:
            yield at + offsets
            at += workers * self.micro_batch


class BatchStream(IterableDataset[ImageBatch]):
    """The endless batches of one rank."""

    def __init__(self, reader: Reader, share: Share) -> None:
        self.reader = reader
        self.share = share

    def __iter__(self) -> Iterator[ImageBatch]:
        ahead = self._prefetch()
        try:
            for positions in self.share.positions():
                if ahead is not None:
                    ahead.reached(int(positions[0]))
                yield self.reader.batch(positions)
        finally:
            if ahead is not None:
                ahead.stop()

    def _prefetch(self) -> Prefetch | None:
        index, order = self.reader.index, self.reader.order
        if not index.remote or not isinstance(order, Order):
            return None
        worker, workers = worker_number()
        ahead = Prefetch(
            index=index,
            order=order,
            rank=self.share.rank,
            world=self.share.world,
            worker=worker,
            workers=workers,
        )
        ahead.start(self.share.start)
        return ahead


class EvalStream(IterableDataset[ImageBatch]):
    """Samples 0 … total-1 once, rank r those at r::W, in batches of `batch_size`.

    Every rank gets equally many rows: when W does not divide the total, the last ranks get rows
    with an index >= total, for the caller to leave out of its sums.
    """

    def __init__(
        self, *, reader: Reader, batch_size: int, limit: int = 0, rank: int = 0, world: int = 1
    ) -> None:
        if batch_size < 1 or limit < 0 or not 0 <= rank < world:
            raise ValueError(
                f"batch_size={batch_size}, limit={limit}, rank={rank}, world={world}; use "
                "batch_size >= 1, limit >= 0 (0 = all samples), 0 <= rank < world"
            )
        self.reader = reader
        self.batch_size = batch_size
        self.total = min(limit or len(reader.order), len(reader.order))
        self.rows = math.ceil(self.total / world)
        self.rank = rank
        self.world = world

    def __len__(self) -> int:
        """Batches, the same on every rank."""
        return math.ceil(self.rows / self.batch_size)

    def __iter__(self) -> Iterator[ImageBatch]:
        worker, workers = worker_number()
        mine = self.rank + self.world * torch.arange(self.rows)
        for batch in range(worker, len(self), workers):
            yield self.reader.batch(mine[batch * self.batch_size : (batch + 1) * self.batch_size])


def make_loader(
    reader: Reader,
    *,
    micro_batch: int,
    rank: int = 0,
    world: int = 1,
    start: int = 0,
    workers: Workers = Workers(),
) -> DataLoader[ImageBatch]:
    """Endless batches for training, from sample `start` on. micro_batch: samples of all ranks."""
    share = Share(micro_batch=micro_batch, rank=rank, world=world, start=start)
    return wrap(BatchStream(reader, share), workers)


def make_eval_loader(
    reader: Reader,
    *,
    batch_size: int,
    limit: int = 0,
    rank: int = 0,
    world: int = 1,
    workers: Workers = Workers(),
) -> DataLoader[ImageBatch]:
    """The first `limit` samples (0 = all) once, in order. batch_size: samples of this rank."""
    stream = EvalStream(reader=reader, batch_size=batch_size, limit=limit, rank=rank, world=world)
    return wrap(stream, workers)


def wrap(stream: IterableDataset[ImageBatch], workers: Workers) -> DataLoader[ImageBatch]:
    """The DataLoader of a stream that yields whole batches."""
    count = workers.usable()
    return DataLoader(
        stream,
        batch_size=None,
        num_workers=count,
        prefetch_factor=workers.prefetch if count else None,
        multiprocessing_context=workers.start_method if count else None,
        pin_memory=workers.pin_memory,
        worker_init_fn=_leave_signals_to_main if count else None,
        generator=torch.Generator(),  # or it would draw a seed for its workers from the global one
    )


def _leave_signals_to_main(_: int) -> None:
    """A scheduler signals the whole process group: the main process saves and stops its workers."""
    for number in (signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)


def worker_number() -> tuple[int, int]:
    """(w, n): this process is worker w of n."""
    info = get_worker_info()
    return (0, 1) if info is None else (info.id, info.num_workers)
