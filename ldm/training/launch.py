"""How do several processes share one piece of work that is no training?"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Literal, TypeVar

import torch
import torch.distributed as dist

T = TypeVar("T")
Devices = int | Literal["auto"]
TIMEOUT = timedelta(days=7)  # the first process to be done waits for the last


@dataclass(frozen=True)
class Processes:
    """This process among all. device: its own, cpu or cuda:N."""

    rank: int
    world: int
    device: str

    def share(self, items: Sequence[T]) -> list[T]:
        """This process's part: every world-th item."""
        return list(items[self.rank :: self.world])

    def agree(self, value: T) -> T:
        """What the first process says; every process must ask."""
        if self.world == 1:
            return value
        said = [value]
        dist.broadcast_object_list(said)
        return said[0]

    def gather(self, value: T) -> list[T]:
        """What every process says, in their order; every process must ask."""
        if self.world == 1:
            return [value]
        said: list[T | None] = [None] * self.world
        dist.all_gather_object(said, value)
        return said  # type: ignore[return-value]


@contextmanager
def launch(devices: Devices = 1, device: str = "auto") -> Iterator[Processes]:
    """Starts `devices` processes of this script, or joins those that torchrun has started.

    auto: all GPUs, one process on a CPU. The script runs to here in each of them; what is wrong
    should be found before. Raises ValueError when there are fewer devices or torchrun started
    another number.
    """
    kind = _kind(device)
    count = _count(devices, kind, device)
    launched = int(os.environ["LOCAL_WORLD_SIZE"]) if _by_torchrun() else None
    if launched is not None and devices not in ("auto", 1, launched):
        raise ValueError(
            f"devices={devices}, but torchrun started {launched} processes here; leave devices out"
        )
    world = int(os.environ["WORLD_SIZE"]) if _by_torchrun() else count
    if world == 1:
        yield Processes(0, 1, kind if device == "auto" else device)
        return
    from lightning.fabric import Fabric
    from lightning.fabric.strategies.ddp import DDPStrategy

    for library in ("lightning.pytorch", "lightning.fabric"):  # banners
        logging.getLogger(library).setLevel(logging.WARNING)
    per_node = launched or count
    fabric = Fabric(
        accelerator=kind,
        devices=per_node,
        num_nodes=world // per_node,
        strategy=DDPStrategy(timeout=TIMEOUT),
    )
    fabric.launch()
    yield Processes(fabric.global_rank, fabric.world_size, str(fabric.device))
    dist.destroy_process_group()  # not after an error: the others may be in the middle of a call


def _by_torchrun() -> bool:
    return "TORCHELASTIC_RUN_ID" in os.environ


def _kind(device: str) -> str:
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(device).type


def _count(devices: Devices, kind: str, device: str) -> int:
    if devices == "auto":
        return torch.cuda.device_count() if kind == "cuda" and device in ("auto", "cuda") else 1
    if devices < 1:
        raise ValueError(f"devices={devices}; give 1 or more, or auto")
    if devices > 1 and torch.device(kind if device == "auto" else device).index is not None:
        raise ValueError(f"devices={devices} and device={device} contradict each other")
    if kind == "cuda" and devices > torch.cuda.device_count():
        raise ValueError(f"devices={devices}, but torch sees {torch.cuda.device_count()} GPUs")
    return devices
