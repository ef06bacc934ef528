"""How fast is our training step beside diffusers', with the same weights and batch?

    python benchmarks/train_step.py [--quick] [--sizes tiny mini] [--contenders NAME ...]
                                    [--device auto] [--threads 1] [--clock wall] [--out FILE.json]

Every contender is a process of its own, for the settings of a memory allocator are a process's;
they take turns, one step each, in an order that rotates: what else the machine does meets all of
them. `stock` and `best` are the medians over rounds of diffusers/ours, with diffusers as it comes
(fp32, AdamW's default) and at its best (the fastest of its other rows): above 1 is faster. `saved`
is what the forward keeps for the backward, exact; `peak` is what a step needs for a while above
weights and optimiser state: resident memory, on a GPU allocated. `--clock cpu` counts a
process's CPU time, which leaves out the waiting on a busy machine: for one thread.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import reporting
import torch
from doc_tables import Table, spread
from train_step_contender import BATCH, CONTENDERS, STOCK, Case, Contender

SETTINGS = {contender.name: contender for contender in CONTENDERS}


@dataclass(frozen=True)
class Row:
    """One line of the table. Times are those of one training step; speeds are against diffusers."""

    size: str
    contender: str
    median_ms: float
    quartiles_ms: tuple[float, float]
    stock: float
    stock_quartiles: tuple[float, float]
    best: float
    best_quartiles: tuple[float, float]
    saved_mib: float
    peak_mib: float
    steps: int


def main() -> None:
    args = parse()
    rows: list[Row] = []
    for size in args.sizes:
        case = Case(size, args.device, args.threads, args.clock)
        new = measure(case, args.contenders, seconds=args.seconds, steps=args.steps)
        print(table(new, header=not rows), flush=True)
        rows += new
    settings = {"clock": args.clock, "seconds": args.seconds}
    made = reporting.new(
        "train_step", device=args.device, threads=args.threads, settings=settings, rows=rows
    )
    reporting.finish(made, tables(made), args.out)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", nargs="+", default=list(BATCH), choices=list(BATCH))
    parser.add_argument(
        "--contenders",
        nargs="+",
        default=[contender.name for contender in CONTENDERS if not contender.compile],
        choices=list(SETTINGS),
        help="diffusers' stock is always run",
    )
    parser.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda"])
    parser.add_argument("--threads", type=int, default=0, help="CPU threads; 0: torch's default")
    parser.add_argument("--clock", default="wall", choices=["wall", "cpu"])
    parser.add_argument("--seconds", type=float, default=60.0, help="at most, a size")
    parser.add_argument("--steps", type=int, default=100, help="at most, a contender")
    parser.add_argument("--quick", action="store_true", help="--seconds 20 --steps 10")
    parser.add_argument("--out", type=Path, default=Path("reports/train_step.json"))
    args = parser.parse_args()
    if args.device == "auto":
        args.device = "cuda" if torch.cuda.is_available() else "cpu"
    if args.clock == "cpu" and (args.device != "cpu" or args.threads != 1):
        parser.error("--clock cpu is for one thread of a CPU; give --device cpu --threads 1")
    if args.quick:
        args.seconds, args.steps = 20.0, 10
    if STOCK not in args.contenders:
        args.contenders.append(STOCK)
    return args


def measure(case: Case, names: list[str], *, seconds: float, steps: int) -> list[Row]:
    """Every contender on one case, after a check that they compute the same."""
    runs = {name: Running(case, SETTINGS[name]) for name in names}
    agree({name: run.facts["answer"] for name, run in runs.items()})
    times: dict[str, list[float]] = {name: [] for name in names}
    order, end = list(names), time.monotonic() + seconds
    while len(times[STOCK]) < steps and (time.monotonic() < end or len(times[STOCK]) < 3):
        for name in order:
            times[name].append(runs[name].step())
        order = order[1:] + order[:1]
    memory = {name: (run.facts["saved_mib"], run.end()) for name, run in runs.items()}
    theirs = [name for name in names if SETTINGS[name].theirs and name != STOCK] or [STOCK]
    best = min(theirs, key=lambda name: statistics.median(times[name]))
    return [row(case, name, times, best, *memory[name]) for name in names]


def row(
    case: Case, name: str, times: dict[str, list[float]], best: str, saved: float, peak: float
) -> Row:
    low, middle, high = statistics.quantiles([1e3 * t for t in times[name]], n=4)
    stock, stock_quartiles = speed(times[STOCK], times[name])
    against_best, best_quartiles = speed(times[best], times[name])
    return Row(
        size=case.size,
        contender=name,
        median_ms=middle,
        quartiles_ms=(low, high),
        stock=stock,
        stock_quartiles=stock_quartiles,
        best=against_best,
        best_quartiles=best_quartiles,
        saved_mib=saved,
        peak_mib=peak,
        steps=len(times[name]),
    )


def speed(theirs: list[float], ours: list[float]) -> tuple[float, tuple[float, float]]:
    """Median and quartiles of theirs/ours, round by round."""
    ratios = [a / b for a, b in zip(theirs, ours, strict=True)]
    low, middle, high = statistics.quantiles(ratios, n=4)
    return middle, (low, high)


def agree(answers: dict[str, list[float]]) -> None:
    """The same answer before the first step, or the comparison means nothing."""
    expected = torch.tensor(answers[STOCK])
    for name, answer in answers.items():
        limit = (0.1 if SETTINGS[name].bf16 else 1e-4) * expected.abs().max()
        if not (torch.tensor(answer) - expected).abs().max() <= limit:
            raise SystemExit(f"{name} computes something else than {STOCK}")


class Running:
    """A contender in its process, which makes a step at every line that it is sent."""

    def __init__(self, case: Case, contender: Contender) -> None:
        script = Path(__file__).with_name("train_step_contender.py")
        command = [sys.executable, str(script), contender.name, json.dumps(asdict(case))]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.facts: dict[str, Any] = self._answer()

    def step(self) -> float:
        """Seconds of one step."""
        self._send("step")
        return float(self._answer())

    def end(self) -> float:
        """The peak memory of its steps, MiB."""
        self._send("end")
        peak = float(self._answer())
        self.process.wait()
        return peak

    def _send(self, what: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(what + "\n")
        self.process.stdin.flush()

    def _answer(self) -> Any:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"{self.process.args} ended with {self.process.wait()}")
        return json.loads(line)


def tables(report: dict[str, Any]) -> dict[str, Table]:
    """One table a network, for the page."""
    columns = ("contender", "ms", "against stock", "against their best", "kept, MiB", "peak, MiB")
    found = {}
    for size in BATCH:
        rows = [row for row in report["rows"] if row["size"] == size]
        lines = [
            (
                row["contender"],
                spread(row["median_ms"], row["quartiles_ms"], 0),
                spread(row["stock"], row["stock_quartiles"], 2),
                spread(row["best"], row["best_quartiles"], 2),
                f"{row['saved_mib']:.0f}" if row["saved_mib"] else "–",
                f"{row['peak_mib']:.0f}",
            )
            for row in rows
        ]
        if rows:
            found[f"train-step-{size}"] = Table(
                (*columns, "rounds"),
                [(*line, str(row["steps"])) for line, row in zip(lines, rows, strict=True)],
            )
    return found


def table(rows: list[Row], *, header: bool) -> str:
    lines = []
    if header:
        lines.append(
            f"{'network':8}{'contender':24}{'step ms (quartiles)':>25}{'stock (quartiles)':>21}"
            f"{'best (quartiles)':>21}{'saved MiB':>11}{'peak MiB':>10}{'steps':>7}"
        )
    for r in rows:
        step = f"{r.median_ms:.1f} ({r.quartiles_ms[0]:.1f}-{r.quartiles_ms[1]:.1f})"
        speeds = [
            f"{middle:.2f} ({low:.2f}-{high:.2f})"
            for middle, (low, high) in ((r.stock, r.stock_quartiles), (r.best, r.best_quartiles))
        ]
        lines.append(
            f"{r.size:8}{r.contender:24}{step:>25}{speeds[0]:>21}{speeds[1]:>21}"
            f"{r.saved_mib:>11.1f}{r.peak_mib:>10.1f}{r.steps:>7}"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
