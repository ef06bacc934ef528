"""How do several processes share one piece of work that is no training, and part from any?"""

from __future__ import annotations

import gc
import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Literal, TypeVar

import torch
import torch.distributed as dist

if TYPE_CHECKING:
    from lightning.fabric.plugins.environments import ClusterEnvironment

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


@dataclass(frozen=True)
class Launcher:
    """Who has started the processes of this job, how many in all, and how many on each machine."""

    name: str
    world: int
    per_node: int


def launcher() -> Launcher | None:
    """torchrun, or srun of a SLURM job; None: we start them ourselves."""
    if "TORCHELASTIC_RUN_ID" in os.environ:
        sizes = (int(os.environ[name]) for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE"))
        return Launcher("torchrun", *sizes)
    if not _in_slurm() or _without_srun():
        return None
    world = int(os.environ["SLURM_NTASKS"])
    nodes = int(os.environ.get("SLURM_NNODES", "1"))
    return Launcher("srun", world, int(os.environ.get("SLURM_NTASKS_PER_NODE", world // nodes)))


def cluster_environment() -> list[ClusterEnvironment]:
    """The plugin by which Lightning sees the launcher as we do, for a Trainer or a Fabric.

    By itself it would wait for other tasks in a SLURM job whose script does not use srun, and at
    SIGUSR1 write a checkpoint of its own and requeue the job.
    """
    from lightning.fabric.plugins.environments import LightningEnvironment, SLURMEnvironment

    if not _in_slurm() or "TORCHELASTIC_RUN_ID" in os.environ:
        return []
    return [LightningEnvironment() if _without_srun() else SLURMEnvironment(auto_requeue=False)]


def _in_slurm() -> bool:
    """Not in an interactive shell: programs that are called there are nobody's tasks."""
    shell = os.environ.get("SLURM_JOB_NAME") in ("bash", "interactive")
    return "SLURM_NTASKS" in os.environ and not shell


def _without_srun() -> bool:
    """In the script of a job itself, which is no step of it."""
    return "SLURM_JOB_ID" in os.environ and "SLURM_STEP_ID" not in os.environ


@contextmanager
def launch(devices: Devices = 1, device: str = "auto") -> Iterator[Processes]:
    """Starts `devices` processes of this script, or joins those that torchrun or srun has started.

    auto: all GPUs, one process on a CPU. The script runs to here in each of them; what is wrong
    should be found before. Raises ValueError when there are fewer devices or the launcher started
    another number.
    """
    kind = device_kind(device)
    count = _count(devices, kind, device)
    started = launcher()
    if started is not None and devices not in ("auto", 1, started.per_node):
        raise ValueError(
            f"devices={devices}, but {started.name} started {started.per_node} processes here; "
            "leave devices out"
        )
    world = started.world if started is not None else count
    if world == 1:
        yield Processes(0, 1, kind if device == "auto" else device)
        return
    from lightning.fabric import Fabric
    from lightning.fabric.strategies.ddp import DDPStrategy

    for library in ("lightning.pytorch", "lightning.fabric"):  # banners
        logging.getLogger(library).setLevel(logging.WARNING)
    per_node = started.per_node if started is not None else count
    fabric = Fabric(
        accelerator=kind,
        devices=per_node,
        num_nodes=world // per_node,
        strategy=DDPStrategy(timeout=TIMEOUT),
        plugins=cluster_environment(),
    )
    fabric.launch()
    yield Processes(fabric.global_rank, fabric.world_size, str(fabric.device))
    part()


def part() -> None:
    """Ends the process group and its threads; nothing where there is none.

    Not after an error: the others may be in the middle of a call. A thread of gloo that still held
    a tensor when Python ends would abort the process, all its work being done
    (github.com/pytorch/pytorch/issues/190489).
    """
    if not (dist.is_available() and dist.is_initialized()):
        return
    gc.collect()  # what is left of DistributedDataParallel holds the group, and so the threads
    dist.destroy_process_group()


def device_kind(device: str) -> str:
    """cpu, cuda …; auto: what there is."""
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
