"""What is faster than what on this machine? Runs the comparisons one after another, into one page.

    python benchmarks/run.py [NAME ...] [--quick] [--write] [--script FILE] [--list]

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
from glance import glance

HERE = Path(__file__).parent
ROOT = HERE.parent
PAGE = ROOT / "docs" / "performance.md"
NUMBERS = ROOT / "docs" / "performance"
REPORTS = ROOT / "reports" / "bench"
PLOT = ROOT / "docs" / "images" / "cost_against_size.svg"


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """A script, what it answers, and its arguments.

    threads: OMP_NUM_THREADS of its process; their_script: it takes diffusers' example script.
    """

    name: str
    question: str
    args: str = ""
    quick: str = "--quick"
    threads: int | None = 1
    script: str = ""
    their_script: bool = False

    @property
    def path(self) -> Path:
        return HERE / f"{self.script or self.name}.py"


ALL = (
    Benchmark(
        name="train_step",
        question="a training step of the UNet beside diffusers', tiny and mini",
        args="--seconds 90 --threads 1 --contenders 'ours, bf16' 'ours, bf16, compiled' "
        "'ours, fp32' 'diffusers, fp32, fused' 'diffusers, bf16' 'diffusers, bf16, eager' "
        "'diffusers, bf16, compiled'",
        quick="--quick --threads 1",
    ),
    Benchmark(
        name="whole_run",
        question="a whole small run, pictures to weights, beside diffusers' example script",
        args="--pictures 1024",
        their_script=True,
    ),
    Benchmark(
        name="whole_run_512",
        script="whole_run",
        question="the same from JPEGs of 512 px, at 64 px with a VAE of eight pixels a latent",
        args="--pictures 1024 --side 512 --size 64 --rounds 3 --contenders 'ours, bf16' "
        "'ours, bf16, latents made first' \"diffusers' loop\" \"diffusers' script\"",
        quick="--quick --side 512 --size 64",
        their_script=True,
    ),
    Benchmark(name="outside", question="a step outside forward, backward and optimiser"),
    Benchmark(
        name="sample",
        question="txt2img of 50 steps beside diffusers' pipeline",
        args="--seconds 40",
    ),
    Benchmark(name="data", question="decode, resize and crop beside webdataset with Pillow"),
    Benchmark(name="latents", question="reading cached latents, and waiting for data"),
    Benchmark(name="lora", question="training a LoRA beside PEFT's", args="--seconds 30"),
    Benchmark(
        name="startup",
        question="from the command line to the first training step",
        threads=None,
    ),
    Benchmark(
        name="size",
        question="a step and reading against batch, text, picture and number of shards",
        args=f"--seconds 45 --plot {os.path.relpath(PLOT, ROOT)}",
    ),
    Benchmark(name="memory", question="memory and FLOPs of a step beside diffusers'"),
    Benchmark(
        name="sd15_step",
        question="the whole training step of SD 1.5 on a GPU beside diffusers with accelerate",
        threads=None,
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
        more = ["--script", str(args.script)] if args.script and benchmark.their_script else []
        if not run(benchmark, out, *more, quick=args.quick):
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
    parser.add_argument("--script", type=Path, help="diffusers' train_text_to_image.py")
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


def run(benchmark: Benchmark, out: Path, *more: str, quick: bool) -> bool:
    """Whether the script ended well. Its output goes where ours does."""
    how = shlex.split(benchmark.quick if quick else benchmark.args)
    script, place = (os.path.relpath(path, ROOT) for path in (benchmark.path, out))
    command = [sys.executable, script, *how, *more, "--out", place]
    env = dict(os.environ)
    if benchmark.threads is not None:
        env["OMP_NUM_THREADS"] = str(benchmark.threads)
    return subprocess.run(command, env=env, cwd=ROOT, check=False).returncode == 0


def tables_in(folder: Path) -> dict[str, Table]:
    """Every table of the reports of a folder."""
    reports = reports_in(folder)
    found = {"glance": glance(reports)}
    for report in reports.values():
        found |= importlib.import_module(report["name"]).tables(report)
    return found


def page_of(folder: Path) -> str:
    """All tables with the machine and the command of each, as one page."""
    parts = ["# Benchmarks\n"]
    reports = reports_in(folder)
    parts.append(glance(reports).markdown())
    for name, report in reports.items():
        facts = ", ".join(f"{key} {value}" for key, value in report["machine"].items())
        parts.append(f"## {name}\n\n`{report['command']}`\n\n{facts}\n")
        parts += [
            table.markdown()
            for table in importlib.import_module(report["name"]).tables(report).values()
        ]
    return "\n".join(parts)


def reports_in(folder: Path) -> dict[str, dict[str, Any]]:
    """The reports of a folder by the names of the benchmarks, in their order."""
    paths = {benchmark.name: folder / f"{benchmark.name}.json" for benchmark in ALL}
    return {name: json.loads(p.read_text()) for name, p in paths.items() if p.is_file()}


if __name__ == "__main__":
    main()
