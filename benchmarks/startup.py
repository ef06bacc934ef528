"""How long is it from a command line to the first training step, on the packed-in stack?

    python benchmarks/startup.py [--runs 5]

Runs `scripts/train.py` for one batch, without validation, pictures or evaluation, in a fresh folder
each time; the whole life of the process is counted, so the step and its checkpoint are in it.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
LINE = (
    "experiment=quickstart",
    "training.max_samples=64",
    "training.optim.warmup=0",
    "training.log_every=64",
    "training.val_every=null",
    "training.sample_every=null",
    "training.callbacks.evaluation.every=null",
    "training.trainer.accelerator=cpu",
)


def once(shards: Path, folder: Path) -> tuple[float, float]:
    """Seconds by the wall clock, and of CPU time."""
    line = [*LINE, f"data.train.shards={shards}", f"run_dir={folder}"]
    before, begin = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    command = [sys.executable, str(ROOT / "scripts" / "train.py"), *line]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    wall = time.perf_counter() - begin
    if done.returncode:
        raise SystemExit(done.stderr[-2000:])
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return wall, used


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=5)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        shards = Path(place) / "shapes"
        make = [sys.executable, str(ROOT / "scripts" / "make_shards.py"), "source=shapes"]
        make += ["data.count=512", f"out={shards}"]
        subprocess.run(make, capture_output=True, check=True)
        times = [once(shards, Path(place) / f"run{n}") for n in range(args.runs)]
    wall, used = (sorted(column) for column in zip(*times, strict=True))
    print(f"load {os.getloadavg()[0]:.1f}, {args.runs} runs")
    print(f"wall {statistics.median(wall):.1f} s ({wall[0]:.1f} to {wall[-1]:.1f})")
    print(f"CPU  {statistics.median(used):.1f} s ({used[0]:.1f} to {used[-1]:.1f})")


if __name__ == "__main__":
    main()
