"""What is faster than what on this machine? Runs the comparisons one after another, into one page.

    python benchmarks/run.py [NAME ...] [--quick] [--write] [--list]

Every script runs alone, in a process of its own, and leaves its numbers as JSON; the tables made of
them are put together in reports/bench/bench.md. `--write` keeps the JSON in docs/performance/ and
renews the tables of docs/performance.md (tests compare the two). `--quick`: a few minutes in all,
to see that everything works; its numbers say little, so it writes no page.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from doc_tables import Table, fill

HERE = Path(__file__).parent
ROOT = HERE.parent
PAGE = ROOT / "docs" / "performance.md"
NUMBERS = ROOT / "docs" / "performance"
REPORTS = ROOT / "reports" / "bench"


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """A script, what it answers, and its arguments. threads: OMP_NUM_THREADS of its process."""

    name: str
    question: str
    args: str = ""
    threads: int | None = None


ALL = (
    Benchmark(
        name="train_step",
        question="a training step of the UNet beside diffusers', tiny and mini",
        args="--seconds 90",
        threads=1,
    ),
    Benchmark(
        name="size",
        question="a step and reading against batch, text, picture and number of shards",
        args="--seconds 45",
        threads=1,
    ),
    Benchmark(
        name="startup",
        question="from the command line to the first training step",
    ),
)


def main() -> None:
    args = parse()
    if args.list:
        for benchmark in ALL:
            print(f"{benchmark.name:14}{benchmark.question}")
        return
    failed = []
    REPORTS.mkdir(parents=True, exist_ok=True)
    for benchmark in ALL:
        if args.names and benchmark.name not in args.names:
            continue
        begin = time.monotonic()
        print(f"== {benchmark.name}: {benchmark.question}", flush=True)
        out = REPORTS / f"{benchmark.name}.json"
        if not run(benchmark, out, quick=args.quick):
            failed.append(benchmark.name)
            continue
        print(f"== {benchmark.name}: {time.monotonic() - begin:.0f} s\n", flush=True)
        if args.write:
            NUMBERS.mkdir(exist_ok=True)
            shutil.copy(out, NUMBERS / out.name)
    (REPORTS / "bench.md").write_text(page_of(REPORTS))
    print(f"{REPORTS / 'bench.md'}")
    if args.write:
        PAGE.write_text(fill(PAGE.read_text(), tables_in(NUMBERS)))
        print(f"{PAGE}")
    if failed:
        raise SystemExit(f"failed: {', '.join(failed)}; what they said stands above")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help="; ".join(b.name for b in ALL))
    parser.add_argument("--quick", action="store_true", help="few rounds")
    parser.add_argument("--write", action="store_true", help="renew docs/performance.md")
    parser.add_argument("--list", action="store_true", help="what there is")
    args = parser.parse_args()
    unknown = sorted(set(args.names) - {benchmark.name for benchmark in ALL})
    if unknown:
        parser.error(
            f"no benchmark {', '.join(unknown)}; there are: {', '.join(b.name for b in ALL)}"
        )
    if args.quick and args.write:
        parser.error("--quick is too short for the page; leave out one of --quick, --write")
    return args


def run(benchmark: Benchmark, out: Path, *, quick: bool) -> bool:
    """Whether the script ended well. Its output goes where ours does."""
    how = ["--quick"] if quick else shlex.split(benchmark.args)
    command = [sys.executable, str(HERE / f"{benchmark.name}.py"), *how, "--out", str(out)]
    env = dict(os.environ)
    if benchmark.threads is not None:
        env["OMP_NUM_THREADS"] = str(benchmark.threads)
    return subprocess.run(command, env=env, cwd=ROOT, check=False).returncode == 0


def tables_in(folder: Path) -> dict[str, Table]:
    """Every table of the reports of a folder."""
    found: dict[str, Table] = {}
    for report in reports_in(folder):
        found |= importlib.import_module(report["name"]).tables(report)
    return found


def page_of(folder: Path) -> str:
    """All tables with the machine and the command of each, as one page."""
    parts = ["# Benchmarks\n"]
    for report in reports_in(folder):
        facts = ", ".join(f"{key} {value}" for key, value in report["machine"].items())
        parts.append(f"## {report['name']}\n\n`{report['command']}`\n\n{facts}\n")
        parts += [
            table.markdown()
            for table in importlib.import_module(report["name"]).tables(report).values()
        ]
    return "\n".join(parts)


def reports_in(folder: Path) -> list[dict[str, Any]]:
    """The reports of a folder in the order of the benchmarks."""
    paths = (folder / f"{benchmark.name}.json" for benchmark in ALL)
    return [json.loads(path.read_text()) for path in paths if path.is_file()]


if __name__ == "__main__":
    main()
