"""Which Trainer runs the loop, on which devices?"""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import Logger
from lightning.pytorch.profilers import AdvancedProfiler, Profiler, PyTorchProfiler, SimpleProfiler
from lightning.pytorch.strategies import DDPStrategy

from ldm.training.allocator import keep_freed_memory
from ldm.training.callbacks.checkpointing import DocumentIO
from ldm.training.launch import cluster_environment, launcher
from ldm.training.plan import Plan
from ldm.training.support import FP8

PRECISIONS = ("32-true", "bf16-mixed", "16-mixed", FP8)  # support.py says what runs where
ACCELERATORS = ("auto", "cpu", "gpu")
PROFILERS = {"simple": SimpleProfiler, "advanced": AdvancedProfiler, "pytorch": PyTorchProfiler}


@dataclass(frozen=True, kw_only=True)
class TrainerSettings:
    """Devices, precision and limits of the loop."""

    accelerator: str = "auto"
    devices: int | str = 1
    num_nodes: int = 1
    precision: str = "32-true"
    timeout_s: float = 1800.0
    deterministic: bool = False
    threads: int | None = None
    profiler: str | None = None

    def problems(self) -> list[str]:
        """Everything wrong with the values, each with what is allowed."""
        found = []
        for name, allowed in (("accelerator", ACCELERATORS), ("precision", PRECISIONS)):
            if getattr(self, name) not in allowed:
                came = getattr(self, name)
                found.append(f"training.trainer.{name}={came!r}; allowed: {', '.join(allowed)}")
        if self.devices != "auto" and not (isinstance(self.devices, int) and self.devices >= 1):
            found.append(f"training.trainer.devices={self.devices!r}; a number from 1, or auto")
        if self.profiler is not None and self.profiler not in PROFILERS:
            known = ", ".join(PROFILERS)
            found.append(f"training.trainer.profiler={self.profiler!r}; null or one of {known}")
        if self.num_nodes < 1:
            found.append(f"training.trainer.num_nodes={self.num_nodes}; 1 or more")
        if self.accelerator == "gpu" and not torch.cuda.is_available():
            found.append("training.trainer.accelerator=gpu, but torch sees no GPU; use auto or cpu")
        return found or self._launcher_problems()

    def _launcher_problems(self) -> list[str]:
        """Where torchrun or srun started other processes than the run needs: it would hang."""
        started, needed = launcher(), self.device_count * self.num_nodes
        if started is None or started.world == needed:
            return []
        count, per_node = started.world, started.per_node
        return [
            f"{started.name} started {count} process(es), {per_node} on each machine, but "
            f"training.trainer.devices={self.devices} x num_nodes={self.num_nodes} is {needed}; "
            f"set devices={per_node} num_nodes={count // per_node}, or start {needed}"
        ]

    @property
    def device(self) -> str:
        """cpu or cuda: what `accelerator` comes to on this machine."""
        on_gpu = self.accelerator == "gpu" or (
            self.accelerator == "auto" and torch.cuda.is_available()
        )
        return "cuda" if on_gpu else "cpu"

    @property
    def device_count(self) -> int:
        """Devices of this machine that the run takes."""
        if self.devices == "auto":
            return torch.cuda.device_count() if self.device == "cuda" else 1
        return int(self.devices)

    @property
    def world_size(self) -> int:
        """Processes of the whole run; under torchrun or SLURM, what the launcher says."""
        if "WORLD_SIZE" in os.environ:  # also of processes that Lightning has started
            return int(os.environ["WORLD_SIZE"])
        started = launcher()
        return started.world if started is not None else self.device_count * self.num_nodes


def build_trainer(
    settings: TrainerSettings,
    plan: Plan,
    *,
    callbacks: Sequence[Callback],
    loggers: Sequence[Logger],
    run_dir: Path,
) -> L.Trainer:
    """One endless Lightning epoch; epochs, intervals and validation are counted in samples."""
    for library in ("lightning.pytorch", "lightning.fabric"):  # device lists, tips, adverts
        logging.getLogger(library).setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", message=".*LeafSpec.* is deprecated")  # of Lightning's own
    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
    if settings.device == "cpu":
        keep_freed_memory()
    strategy: str | DDPStrategy = "auto"
    if settings.world_size > 1:
        strategy = DDPStrategy(
            timeout=timedelta(seconds=settings.timeout_s),
            gradient_as_bucket_view=True,
            find_unused_parameters=False,
            static_graph=plan.accumulate == 1,  # dies on an assert with accumulation
        )
    return L.Trainer(
        accelerator="gpu" if settings.device == "cuda" else "cpu",
        devices=settings.device_count,
        num_nodes=settings.num_nodes,
        strategy=strategy,
        precision=settings.precision,  # type: ignore[arg-type]
        max_epochs=-1,
        max_steps=plan.steps,
        accumulate_grad_batches=plan.accumulate,
        limit_val_batches=0,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        callbacks=list(callbacks),
        logger=list(loggers),
        plugins=[DocumentIO(), *cluster_environment()],
        log_every_n_steps=1 << 30,  # we log ourselves, in samples
        profiler=_profiler(settings.profiler, run_dir),
        enable_model_summary=False,
        enable_checkpointing=True,
        deterministic=settings.deterministic,
        default_root_dir=str(run_dir),
    )


def _profiler(name: str | None, run_dir: Path) -> Profiler | None:
    """Lightning's profiler of that name; it writes fit-profile.txt into the run folder."""
    return None if name is None else PROFILERS[name](dirpath=run_dir, filename="profile")
