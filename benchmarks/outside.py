"""How much of a step of a real run is not forward, backward or optimiser?

    OMP_NUM_THREADS=1 python benchmarks/outside.py [--quick] [--clock cpu] [--out FILE]

Trains the quickstart (what `scripts/train.py experiment=quickstart` runs: data, caches, EMA, the
logger and all callbacks) at batch 32 without pictures, validation and evaluation, and times every
part of the loop by itself; the first epoch fills the caches and is left out. Share: of the time of
a step, everything but the network's forward pass, backward and the optimiser's step. A checkpoint
is timed by itself and spread over the samples between two.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import wraps
from pathlib import Path
from statistics import quantiles
from typing import Any

import hydra
import lightning.pytorch.loops.fetchers as fetchers
import reporting
import torch
from doc_tables import Table, figure
from lightning.pytorch.loops.optimization.automatic import Closure
from lightning.pytorch.loops.training_epoch_loop import _TrainingEpochLoop
from lightning.pytorch.strategies import Strategy
from omegaconf import OmegaConf

from ldm import app, cli
from ldm.data.quarantine import Quarantine
from ldm.models.unet import UNet
from ldm.training.base import TrainedModule
from ldm.training.callbacks.checkpointing import RunCheckpoint
from ldm.training.callbacks.metrics import Metrics
from ldm.training.callbacks.progress import SamplesProgress
from ldm.training.callbacks.validation import Validation
from ldm.training.ema import EMA
from ldm.training.encoders import FrozenEncoders
from ldm.training.module import DiffusionModule

SCRIPTS = Path(__file__).parents[1] / "scripts"
PRECISIONS = ("bf16-mixed", "32-true")
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
BATCH = 32
SAVED = "checkpoint"  # is spread over an interval, the other parts are of a step
SAVE_EVERY = 10_000  # samples, as in the quickstart
CORE = ("forward", "backward", "optimiser")
REST = "Lightning's loop"
CACHES = "latents and contexts from the caches"
AROUND = ("waiting for data", CACHES, "EMA", "logging", "other callbacks")
LINE = (
    "experiment=quickstart",
    "init_from=tiny",
    f"training.batch_size={BATCH}",
    "training.val_every=null",
    "training.sample_every=null",
    "training.callbacks.evaluation.every=null",
    "training.trainer.accelerator=cpu",
    f"training.save_every={SAVE_EVERY}",
)

# Part of a step -> the functions that are it; a function within another counts for itself alone.
PARTS: dict[str, tuple[tuple[type, str], ...]] = {
    "forward": ((UNet, "forward"),),
    "backward": ((torch.Tensor, "backward"),),
    "optimiser": ((torch.optim.AdamW, "step"),),
    REST: ((_TrainingEpochLoop, "advance"), (Closure, "closure")),
    "waiting for data": (
        (fetchers._PrefetchDataFetcher, "__next__"),
        (Strategy, "batch_to_device"),
        (Quarantine, "add"),
    ),
    CACHES: (
        (FrozenEncoders, "latents"),
        (FrozenEncoders, "conditioning"),
        (FrozenEncoders, "concat"),
    ),
    "noise, times, caption dropout": (
        (DiffusionModule, "_noise"),
        (DiffusionModule, "_times"),
        (DiffusionModule, "_drop"),
    ),
    "noisy latents and loss": (
        (DiffusionModule, "losses"),
        (DiffusionModule, "batch_loss"),
        (TrainedModule, "training_step"),
    ),
    "notes for a failure report": ((TrainedModule, "note"),),
    "gradient norm and clipping": ((TrainedModule, "configure_gradient_clipping"),),
    "EMA": ((EMA, "update"),),
    "logging": (
        (TrainedModule, "settle"),
        (Metrics, "on_train_batch_end"),
        (SamplesProgress, "on_train_batch_end"),
    ),
    "other callbacks": (
        (Validation, "on_train_batch_end"),
        (RunCheckpoint, "on_train_batch_end"),
    ),
    "learning rate, clearing gradients": (
        (torch.optim.lr_scheduler.LambdaLR, "step"),
        (torch.optim.Optimizer, "zero_grad"),
    ),
    SAVED: ((RunCheckpoint, "save"),),
}


@dataclass
class Clock:
    """Time of every part by itself, step by step: what is called within a part is not its own."""

    now: Callable[[], float]
    steps: list[dict[str, float]] = field(default_factory=list)
    _open: list[float] = field(default_factory=list)  # per part we are in: time of inner ones

    def timed(self, part: str, function: Callable[..., Any], *, step: bool) -> Callable[..., Any]:
        """function, its own time added to `part`; step: each call begins a new step."""

        @wraps(function)
        def run(*args: Any, **kwargs: Any) -> Any:
            if step:
                self.steps.append(dict.fromkeys(PARTS, 0.0))
            begin = self.now()
            self._open.append(0.0)
            try:
                return function(*args, **kwargs)
            finally:
                took = self.now() - begin
                inner = self._open.pop()
                if self._open:
                    self._open[-1] += took
                if self.steps:
                    self.steps[-1][part] += took - inner

        return run


@contextmanager
def watched(clock: Clock) -> Iterator[None]:
    """Inside, the functions of PARTS report to the clock."""
    before = []
    for part, places in PARTS.items():
        for owner, name in places:
            function = getattr(owner, name)
            before.append((owner, name, owner.__dict__.get(name)))
            step = owner is _TrainingEpochLoop
            setattr(owner, name, clock.timed(part, function, step=step))
    try:
        yield
    finally:
        for owner, name, function in before:
            delattr(owner, name) if function is None else setattr(owner, name, function)


def summary(steps: list[dict[str, float]], *, first: int) -> dict[str, Any]:
    """Seconds of each part a step from step `first` on, the share outside, and its quartiles."""
    kept = steps[first:]
    saves = [step[SAVED] for step in steps if step[SAVED]]
    parts = {name: sum(s[name] for s in kept) / len(kept) for name in PARTS if name != SAVED}
    each = [1 - _core(step) / _step(step) for step in kept]
    total = sum(map(_step, kept))
    save_s = max(saves, default=0.0)
    return {
        "steps": len(kept),
        "step_s": total / len(kept),
        "outside": 1 - sum(map(_core, kept)) / total,
        "quartiles": quantiles(each, n=4),
        "parts_s": parts,
        "checkpoint_s": save_s,
        "checkpoint_share": save_s / (SAVE_EVERY / BATCH) / (total / len(kept)),
    }


def _core(step: dict[str, float]) -> float:
    return sum(step[name] for name in CORE)


def _step(step: dict[str, float]) -> float:
    return sum(seconds for name, seconds in step.items() if name != SAVED)


def configuration(*arguments: str) -> dict[str, Any]:
    """What `scripts/train.py` makes of these arguments."""
    if not OmegaConf.has_resolver("verbatim"):
        OmegaConf.register_new_resolver("verbatim", lambda text: bytes.fromhex(text[1:]).decode())
    with hydra.initialize_config_dir(str(cli.CONF), version_base="1.3"):
        cfg = hydra.compose("train", overrides=cli.encode(list(arguments)))
    plain = OmegaConf.to_container(cfg, resolve=True)
    assert isinstance(plain, dict)
    return plain


def measure(
    folder: Path, *, precision: str, clock: str, images: int, epochs: int
) -> dict[str, Any]:
    """One run, as the parts of its steps."""
    shards = folder / "shapes"
    if not shards.exists():
        make = [sys.executable, str(SCRIPTS / "make_shards.py"), "source=shapes"]
        subprocess.run(
            [*make, f"data.count={images}", f"out={shards}"], capture_output=True, check=True
        )
    cfg = configuration(
        *LINE,
        f"data.train.shards={shards}",
        f"run_dir={folder / precision}",
        f"training.max_samples={images * epochs}",
        "training.optim.warmup=0",
        f"training.trainer.precision={precision}",
    )
    found = Clock(CLOCKS[clock])
    with watched(found):
        app.train(cfg)
    first = -(-images // BATCH) + 4
    return {"precision": precision, **summary(found.steps, first=first)}


def tables(report: dict[str, Any]) -> dict[str, Table]:
    """outside: every part of a step, per precision."""
    rows = report["rows"]
    lines = [
        ["step, ms", *(figure(1e3 * row["step_s"]) for row in rows)],
        ["**outside, of a step**", *(f"**{100 * row['outside']:.1f} %**" for row in rows)],
        [f"of it {', '.join(AROUND)}", *(f"{100 * around(row):.1f} %" for row in rows)],
        [
            "quartiles of all",
            *("{:.1f}–{:.1f} %".format(*_percent(row["quartiles"])) for row in rows),
        ],
    ]
    for name in PARTS:
        if name != SAVED:
            lines.append([name, *(_cell(row, name) for row in rows)])
    saved = f"a checkpoint every {SAVE_EVERY:,} samples"
    lines.append([saved, *(f"{100 * row['checkpoint_share']:.2f} %" for row in rows)])
    return {"outside": Table(["part", *(row["precision"] for row in rows)], lines)}


def around(row: dict[str, Any]) -> float:
    """The share of a step that is not even work on its loss and gradients."""
    return sum(row["parts_s"][part] for part in AROUND) / float(row["step_s"])


def _percent(values: list[float]) -> tuple[float, float]:
    return 100 * values[0], 100 * values[2]


def _cell(row: dict[str, Any], part: str) -> str:
    seconds = row["parts_s"][part]
    return f"{1e3 * seconds:.2f} ms ({100 * seconds / row['step_s']:.2f} %)"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clock", choices=CLOCKS, default="wall")
    parser.add_argument("--precisions", nargs="+", choices=PRECISIONS, default=list(PRECISIONS))
    parser.add_argument("--images", type=int, default=512)
    parser.add_argument("--epochs", type=int, default=8, help="the first fills the caches")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--quick", action="store_true", help="one precision, a few steps")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    if args.quick:
        args.images, args.epochs, args.precisions = 128, 8, args.precisions[:1]
    torch.set_num_threads(args.threads)
    options = {"clock": args.clock, "images": args.images, "epochs": args.epochs}
    rows = []
    with tempfile.TemporaryDirectory() as place:
        for precision in args.precisions:
            rows.append(measure(Path(place), precision=precision, **options))
    settings = {**options, "batch": BATCH}
    made = reporting.new(
        "outside", device="cpu", threads=args.threads, settings=settings, rows=rows
    )
    reporting.finish(made, tables(made), args.out)


if __name__ == "__main__":
    main()
