"""How long is it from a command line to the first training step, on the packed-in stack?

    python benchmarks/startup.py [--runs 5] [--threads N] [--out FILE.json]

Each run is a process of its own that trains one batch with the line of `scripts/train.py`, without
validation, pictures or evaluation, in a fresh folder. Told are the imports of such a run alone, the
time until the optimiser has taken its first step, and the whole life of the process, in which the
checkpoint and the curves are. One more process goes before them, so that files are in the system's
cache and modules compiled, as they are for whoever has trained before.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import reporting
from doc_tables import Table, spread

ROOT = Path(__file__).parents[1]
BATCH = 64
LINE = (
    "experiment=quickstart",
    f"training.max_samples={BATCH}",
    f"training.log_every={BATCH}",
    "training.optim.warmup=0",
    "training.val_every=null",
    "training.sample_every=null",
    "training.callbacks.evaluation.every=null",
    "training.trainer.accelerator=cpu",
)
# what scripts/train.py does, and a line with the two clocks at what is asked
CHILD = """
import os, sys, time

def tell(place, *_):
    used = os.times()
    cpu = used.user + used.system + used.children_user + used.children_system
    print("clock", place, time.time(), cpu, flush=True)

from ldm.app import train
from ldm.cli import run
from torch.optim.optimizer import register_optimizer_step_post_hook

if sys.argv[1:] == ["imports"]:
    from ldm.app.startup import without_sweeps
    with without_sweeps():
        import ldm.models.text.clip
        import ldm.training.module
        import ldm.training.trainer
    tell("imports")
else:
    register_optimizer_step_post_hook(lambda *_: tell("first training step"))
    run(train, config="train")
"""
PLACES = ("imports", "first training step", "whole process")


def once(root: Path, arguments: list[str], threads: int) -> dict[str, tuple[float, float]]:
    """Seconds by the wall clock, and of CPU time, until each place; root: of the checkout."""
    environment = dict(os.environ)
    environment.pop("PYTHONDONTWRITEBYTECODE", None)  # or all of ours is compiled at every start
    environment["PYTHONPATH"] = str(root)
    if threads:
        environment["OMP_NUM_THREADS"] = str(threads)
    command = [sys.executable, "-c", CHILD, *arguments]
    before, begin = os.times(), time.time()
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env=environment, cwd=root
    )
    end, after = time.time(), os.times()
    if done.returncode:
        raise SystemExit(done.stderr[-2000:])
    found = {}
    for line in done.stdout.splitlines():
        if line.startswith("clock "):
            place, wall, cpu = line.removeprefix("clock ").rsplit(" ", 2)
            found[place] = (float(wall) - begin, float(cpu))
    if arguments != ["imports"]:
        used = after.children_user + after.children_system
        used -= before.children_user + before.children_system
        found["whole process"] = (end - begin, used)
    return found


def measure(root: Path, runs: int, threads: int) -> list[dict[str, Any]]:
    """A row for each place: median and quartiles of both clocks."""
    times: dict[str, list[tuple[float, float]]] = {place: [] for place in PLACES}
    with tempfile.TemporaryDirectory() as folder:
        shards = Path(folder) / "shapes"
        make = [sys.executable, str(root / "scripts" / "make_shards.py"), "source=shapes"]
        subprocess.run([*make, "data.count=512", f"out={shards}"], capture_output=True, check=True)
        for number in range(runs + 1):
            line = [*LINE, f"data.train.shards={shards}", f"run_dir={folder}/run{number}"]
            found = once(root, ["imports"], threads) | once(root, line, threads)
            if number:  # the first one warms up
                for place in PLACES:
                    times[place].append(found[place])
    return [row(place, times[place]) for place in PLACES]


def row(place: str, times: list[tuple[float, float]]) -> dict[str, Any]:
    """times: (wall, CPU) of every run, in seconds."""
    found: dict[str, Any] = {"until": place, "runs": len(times)}
    for name, values in zip(("wall_s", "cpu_s"), zip(*times, strict=True), strict=True):
        twice = values * 2 if len(values) == 1 else values  # one run has no spread
        low, middle, high = statistics.quantiles(twice, n=4, method="inclusive")
        found |= {name: middle, f"{name}_quartiles": [low, high]}
    return found


def tables(report: dict[str, Any]) -> dict[str, Table]:
    """The table of docs/performance.md, from what `--out` wrote."""
    rows = [
        [
            found["until"],
            *(spread(found[name], found[f"{name}_quartiles"], 1) for name in ("wall_s", "cpu_s")),
            str(found["runs"]),
        ]
        for found in report["rows"]
    ]
    columns = ["until", "wall, s (quartiles)", "CPU, s (quartiles)", "runs"]
    return {"startup": Table(columns, rows)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--threads", type=int, default=0, help="0: torch's choice")
    parser.add_argument("--quick", action="store_true", help="one run")
    parser.add_argument("--root", type=Path, default=ROOT, help="another checkout of the project")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    runs = 1 if args.quick else args.runs
    rows = measure(args.root.resolve(), runs, args.threads)
    settings = {"runs": runs, "batch": BATCH, "load": round(os.getloadavg()[0], 1)}
    made = reporting.new(
        "startup", device="cpu", threads=args.threads, settings=settings, rows=rows
    )
    reporting.finish(made, tables(made), args.out)


if __name__ == "__main__":
    main()
