"""A built run without a Trainer, and something that stands for the Trainer on one of many ranks."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from ldm.app.job import Job, build_job
from ldm.types import ImageBatch


@pytest.fixture
def tiny_job(tiny_cfg: Callable[..., dict[str, Any]], tmp_path: Path) -> Callable[..., Job]:
    """tiny_job("key=value", …): module, data, plan and card of a tiny run, nothing trained."""

    def build(*changes: str) -> Job:
        return build_job(tiny_cfg(tmp_path / "run", *changes))

    return build


@pytest.fixture
def batch_of() -> Callable[..., ImageBatch]:
    """batch_of(job, start, count): training samples start … start + count - 1."""

    def read(job: Job, start: int = 0, count: int = 8) -> ImageBatch:
        return job.data.train.batch(torch.arange(start, start + count))

    return read


class Ranks:
    """Stands for the processes of DDP: `trainer(rank)` for each, run one after the other.

    What a rank gives to a collective is kept in `given`; `others` is what it gets of the others.
    """

    def __init__(self, world: int) -> None:
        self.world = world
        self.given: dict[int, list[Tensor]] = {rank: [] for rank in range(world)}
        self.logged: list[dict[str, float]] = []

    def trainer(self, rank: int = 0) -> Any:
        def reduce(value: Tensor, reduce_op: str) -> Tensor:
            assert reduce_op == "sum"
            self.given[rank].append(value)
            turn = len(self.given[rank]) - 1
            return sum(self.given[r][turn] for r in range(rank + 1))  # complete on the last rank

        def all_gather(value: Tensor) -> Tensor:
            self.given[rank].append(value)
            if self.world == 1:
                return value
            known = [self.given[r][0] for r in range(rank + 1)]
            return torch.stack(known + [torch.zeros_like(value)] * (self.world - rank - 1))

        logger = SimpleNamespace(log_metrics=lambda row, step: self.logged.append(row))
        strategy = SimpleNamespace(
            reduce=reduce,
            all_gather=all_gather,
            precision_plugin=SimpleNamespace(forward_context=nullcontext),
        )
        return SimpleNamespace(
            world_size=self.world,
            global_rank=rank,
            is_global_zero=rank == 0,
            strategy=strategy,
            loggers=[logger],
        )


@pytest.fixture
def ranks() -> Callable[[int], Ranks]:
    """ranks(world): stand-ins for that many processes."""
    return Ranks
