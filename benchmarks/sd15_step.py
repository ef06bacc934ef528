"""How fast is our training step of SD 1.5 on a GPU, beside diffusers with accelerate?

    python benchmarks/sd15_step.py [--quick] [--size sd15] [--px 256 512] [--batch N]
                                   [--contenders NAME ...] [--device auto] [--out FILE.json]

The whole step from cached moments and contexts to averaged weights, in bf16 with weights in fp32:
ours in the Trainer of a training run, theirs as the example script for text-to-image makes it.
Every contender is a process of its own; they take turns of some steps each, in an order that
rotates, after an untimed step, and give the memory back that they hold between turns. `stock` is
diffusers / ours, paired round by round: above 1 is faster; `compiled` the same for theirs under
torch.compile. Utilisation is model FLOPs (flops.py) of the best bf16 product of matrices that this
device did in the same run, and of its data sheet's number. Without a GPU SD 1.5 is not run.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import reporting
import torch
from doc_tables import Table, figure, spread
from flops import data_sheet_peak, matmul_peak, mfu
from sd15_contender import CLOCKS, CONTENDERS, STOCK, STOCK_COMPILED, Case

KNOWN = {contender.name: contender for contender in CONTENDERS}
# side of the picture -> images a step, which an H200 holds with four contenders' weights on it
BATCH = {"sd15": {256: 128, 512: 32}, "tiny": {64: 32}}
STEPS = 10  # of a turn
NO_GPU = "no GPU"
SPEED_COLUMNS = ["contender", "step, ms (quartiles)", "of stock (quartiles)", "of compiled"]
USE_COLUMNS = ["contender", "images/s", "of the measured peak", "of the data sheet's", "peak, MiB"]


@dataclass(frozen=True, kw_only=True)
class Row:
    """One contender. Shares and speeds are fractions; None: not known, or nothing to compare."""

    size: str
    px: int
    batch: int
    contender: str
    step_ms: float
    step_quartiles_ms: tuple[float, float]
    images_per_s: float
    stock: float
    stock_quartiles: tuple[float, float]
    compiled: float | None
    measured_mfu: float
    data_sheet_mfu: float | None
    peak_mib: float
    turns: int


def main() -> None:
    args = parse()
    made = reporting.new(
        "sd15_step",
        device=args.device,
        threads=args.threads,
        settings={"size": args.size, "turns": args.turns, "steps": args.steps, "bf16": True},
        rows=[],
    )
    if args.size == "sd15" and args.device == "cpu":
        made["not_run"] = NO_GPU
        print(f"{NO_GPU}: not run. --size tiny tries the benchmark on a CPU")
    else:
        measure_all(args, made)
    reporting.finish(made, tables(made), args.out)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--size", default="sd15", choices=list(BATCH))
    parser.add_argument("--px", type=int, nargs="+", help="sides of the picture; default: all")
    parser.add_argument("--batch", type=int, help="images a step; default: by --size and --px")
    parser.add_argument(
        "--contenders",
        nargs="+",
        choices=list(KNOWN),
        help="diffusers' stock is always run; default: all, on a CPU those not compiled",
    )
    parser.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda"])
    parser.add_argument("--threads", type=int, default=0, help="CPU threads; 0: torch's default")
    parser.add_argument("--clock", default="wall", choices=["wall", "cpu"])
    parser.add_argument("--turns", type=int, default=12, help="of each contender")
    parser.add_argument("--steps", type=int, default=STEPS, help="timed ones of a turn")
    parser.add_argument("--quick", action="store_true", help="--turns 3 --steps 2")
    parser.add_argument("--out", type=Path, default=Path("reports/bench/sd15_step.json"))
    args = parser.parse_args()
    if args.device == "auto":
        args.device = "cuda" if torch.cuda.is_available() else "cpu"
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda, but torch sees no GPU; --device cpu --size tiny runs here")
    if args.clock == "cpu" and (args.device != "cpu" or args.threads != 1):
        parser.error("--clock cpu is for one thread of a CPU; give --device cpu --threads 1")
    if args.quick:
        args.turns, args.steps = 3, 2
    if min(args.turns - 1, args.steps, 1 if args.batch is None else args.batch) < 1:
        parser.error(
            f"--turns {args.turns} --steps {args.steps} --batch {args.batch}: 2 turns or more for "
            "quartiles, and 1 step and image or more"
        )
    args.px = args.px or list(BATCH[args.size])
    unknown = [px for px in args.px if px % 64 or (args.batch is None and px not in _batches(args))]
    if unknown:
        parser.error(
            f"--px {unknown}: multiples of 64; other sizes than {list(_batches(args))} need --batch"
        )
    on_gpu = args.device == "cuda"
    args.contenders = args.contenders or [n for n, c in KNOWN.items() if on_gpu or not c.compile]
    if STOCK not in args.contenders:
        args.contenders.append(STOCK)
    return args


def _batches(args: argparse.Namespace) -> dict[int, int]:
    return BATCH[args.size]


def measure_all(args: argparse.Namespace, report: dict[str, Any]) -> None:
    """Puts rows, peaks and who could not be run into the report."""
    if args.threads:
        torch.set_num_threads(args.threads)
    sheet = data_sheet_peak(report["machine"]["device"])
    now = CLOCKS[args.clock]
    products = matmul_peak(args.device, torch.bfloat16, now=now)
    measured, report["left_out"] = [], {}
    for px in args.px:
        batch = args.batch or _batches(args)[px]
        case = Case(args.size, px, batch, args.device, args.threads, args.clock)
        times, memory, left_out = measure(case, args.contenders, turns=args.turns, steps=args.steps)
        report["left_out"] |= {f"{px} px: {name}": why for name, why in left_out.items()}
        measured.append((case, times, memory))
        for side, speed in matmul_peak(args.device, torch.bfloat16, now=now).items():
            products[side] = max(products[side], speed)  # a warm device may be slower, or faster
    peaks = max(products.values()), sheet
    report["rows"] = [
        asdict(row(case, name, times, memory, peaks))
        for case, times, memory in measured
        for name in times
    ]
    report["matmul_flops_per_s"] = {str(side): speed for side, speed in products.items()}
    report["data_sheet_flops_per_s"] = sheet


def measure(
    case: Case, names: list[str], *, turns: int, steps: int
) -> tuple[dict[str, list[float]], dict[str, float], dict[str, str]]:
    """Seconds a step by turn, memory, and who was left out and why. All have to agree first."""
    runs, answers, left_out = {}, {}, {}
    try:
        for name in names:
            runs[name] = Running(case, name)
            try:
                answers[name] = runs[name].ask("predict")
            except ChildProcessError as error:
                if not KNOWN[name].compile:  # the others must run everywhere
                    raise SystemExit(str(error)) from error
                left_out[name] = str(error)
                runs.pop(name).end()
                print(f"left out: {error}", flush=True)
        agree(answers)
        times: dict[str, list[float]] = {name: [] for name in runs}
        order = list(runs)
        for run in runs.values():
            run.ask("turn 1")  # compiles the backward, makes the optimiser's state
        for _ in range(turns):
            for name in order:
                times[name].append(runs[name].ask(f"turn {steps}"))
            order = order[1:] + order[:1]
        return times, {name: run.ask("memory") for name, run in runs.items()}, left_out
    finally:
        for run in runs.values():
            run.end()


def agree(answers: dict[str, list[float]]) -> None:
    """The same prediction before the first step, or the comparison means nothing."""
    expected = torch.tensor(answers[STOCK])
    for name, answer in answers.items():
        away = (torch.tensor(answer) - expected).abs().max()
        if not away <= 0.1 * expected.abs().max():  # bf16, rounded at other places
            raise SystemExit(f"{name} predicts something else than {STOCK}: {away:.3g} away")


def row(
    case: Case,
    name: str,
    times: dict[str, list[float]],
    memory: dict[str, float],
    peaks: tuple[float, float | None],
) -> Row:
    """peaks: FLOP/s measured, and of the data sheet where that is known."""
    low, middle, high = statistics.quantiles([1e3 * t for t in times[name]], n=4)
    stock_low, stock, stock_high = paired(times[STOCK], times[name])
    compiled = times.get(STOCK_COMPILED)
    images_per_s = 1e3 * case.batch / middle
    measured, sheet = (
        None if peak is None else mfu(case.size, case.px, images_per_s=images_per_s, peak=peak)
        for peak in peaks
    )
    assert measured is not None
    return Row(
        size=case.size,
        px=case.px,
        batch=case.batch,
        contender=name,
        step_ms=middle,
        step_quartiles_ms=(low, high),
        images_per_s=images_per_s,
        stock=stock,
        stock_quartiles=(stock_low, stock_high),
        compiled=None if compiled is None else paired(compiled, times[name])[1],
        measured_mfu=measured,
        data_sheet_mfu=sheet,
        peak_mib=memory[name],
        turns=len(times[name]),
    )


def paired(theirs: list[float], ours: list[float]) -> tuple[float, float, float]:
    """Quartiles of theirs/ours, turn by turn."""
    low, middle, high = statistics.quantiles(
        [a / b for a, b in zip(theirs, ours, strict=True)], n=4
    )
    return low, middle, high


class Running:
    """A contender in its process, which answers every line that it is sent."""

    def __init__(self, case: Case, name: str) -> None:
        script = Path(__file__).with_name("sd15_contender.py")
        command = [sys.executable, str(script), name, json.dumps(asdict(case))]
        self.name = name
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def ask(self, what: str) -> Any:
        """Raises ChildProcessError when the process ends instead."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        try:
            print(what, file=self.process.stdin, flush=True)
        except BrokenPipeError:
            line = ""
        else:
            line = self.process.stdout.readline()
        if not line:
            code = self.process.wait()
            raise ChildProcessError(f"{self.name} ended with {code}; its error stands above")
        return json.loads(line)

    def end(self) -> None:
        """Without a line to read from it goes by itself."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdout.close()
        with suppress(BrokenPipeError):
            self.process.stdin.close()
        self.process.wait()


# -- the page -------------------------------------------------------------------------------------


def tables(report: dict[str, Any]) -> dict[str, Table]:
    """Step time and speed; throughput, utilisation and memory."""
    if "not_run" in report:
        cells = [f"not run: {report['not_run']}"]
        return {
            "sd15-step": Table(SPEED_COLUMNS, [cells + ["–"] * (len(SPEED_COLUMNS) - 1)]),
            "sd15-step-use": Table(USE_COLUMNS, [cells + ["–"] * (len(USE_COLUMNS) - 1)]),
        }
    speed, use = [], []
    for r in report["rows"]:
        name = f"{r['size']}, {r['px']} px, batch {r['batch']}: {r['contender']}"
        speed.append(
            [
                name,
                spread(r["step_ms"], r["step_quartiles_ms"], 1),
                spread(r["stock"], r["stock_quartiles"], 2),
                "–" if r["compiled"] is None else f"{r['compiled']:.2f}",
            ]
        )
        use.append(
            [
                name,
                figure(r["images_per_s"]),
                f"{r['measured_mfu']:.1%}",
                "–" if r["data_sheet_mfu"] is None else f"{r['data_sheet_mfu']:.1%}",
                figure(r["peak_mib"]),
            ]
        )
    for name in report["left_out"]:
        speed.append([f"{name}: left out", *["–"] * (len(SPEED_COLUMNS) - 1)])
    return {"sd15-step": Table(SPEED_COLUMNS, speed), "sd15-step-use": Table(USE_COLUMNS, use)}


if __name__ == "__main__":
    main()
