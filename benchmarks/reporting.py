"""What does a benchmark write of a run, and on what machine was it?"""

from __future__ import annotations

import json
import platform
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any

import torch
from doc_tables import Table


def machine(device: str, threads: int) -> dict[str, Any]:
    """What it was measured on. threads 0: torch's default."""
    if device == "cuda":
        name = torch.cuda.get_device_name()
    else:
        cpus = Path("/proc/cpuinfo")
        lines = cpus.read_text().splitlines() if cpus.exists() else []
        names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
        name = names[0] if names else platform.processor()
    facts = {"device": name, "threads": threads or torch.get_num_threads()}
    if device == "cpu":
        facts["bf16 instructions"] = torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return {**facts, "torch": torch.__version__, "python": platform.python_version()}


def new(
    name: str,
    *,
    device: str,
    threads: int,
    settings: Mapping[str, Any],
    rows: Sequence[Any],
    line: Sequence[str] | None = None,
    **more: Any,
) -> dict[str, Any]:
    """The report of `benchmarks/<name>.py`. rows: dataclasses or dicts; line: its arguments, those
    of this process by default; more: other lists of the report."""
    words = sys.argv[1:] if line is None else line
    return {
        "name": name,
        "command": shlex.join(["python", f"benchmarks/{name}.py", *words]),
        "machine": machine(device, threads),
        "settings": dict(settings),
        "rows": [asdict(row) if is_dataclass(row) else row for row in rows],
        **more,
    }


def finish(report: Mapping[str, Any], tables: Mapping[str, Table], out: Path | None) -> None:
    """Prints the tables that were made of the report, and writes it."""
    for name, table in tables.items():
        print(f"\n{name}\n\n{table.markdown()}", end="")
    print(f"\n{report['machine']}")
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(report, indent=1) + "\n")
        print(f"\nwritten to {out}")
