"""What came of every comparison, in one line each? The first table of docs/performance.md."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from doc_tables import Table

Reports = dict[str, dict[str, Any]]
Lines = Iterator[tuple[str, str, str, str]]  # work, beside, found, floor and goal
COLUMNS = ("work", "beside", "measured", "floor; goal")


def glance(reports: Reports) -> Table:
    """The reports by their name; what has not been measured is left out."""
    made = {
        "train_step": _train_step,
        "whole_run": _whole_run,
        "whole_run_512": _whole_run,
        "outside": _outside,
        "sample": _sample,
        "data": _data,
        "lora": _lora,
        "startup": _startup,
        "memory": _memory,
        "sd15_step": _sd15_step,
    }
    lines = [line for name, make in made.items() if name in reports for line in make(reports[name])]
    return Table(COLUMNS, lines)


def _train_step(report: dict[str, Any]) -> Lines:
    aims = {"tiny": ("1.4; 2", "1.05; 1.3"), "mini": ("1.9; 2.5", "1.05; 1.3")}
    for size, (stock, best) in aims.items():
        rows = [r for r in report["rows"] if r["size"] == size]
        if not rows:
            continue
        ours = max((r for r in rows if r["contender"].startswith("ours")), key=lambda r: r["stock"])
        work = f"training step, {size}, {ours['contender'].removeprefix('ours, ')}"
        yield work, "diffusers, stock", f"{ours['stock']:.2f} ×", stock
        yield work, "diffusers at its best", f"{ours['best']:.2f} ×", best


def _whole_run(report: dict[str, Any]) -> Lines:
    from whole_run import SHOWN, STOCK, parts

    names = {row["contender"] for row in report["rows"]}
    stock = next(name for name in STOCK if name in names)
    work = f"whole run, pictures of {report['settings']['side_px']} px"
    for name in sorted(n for n in names if n.startswith("ours, bf16")):
        found = []
        for epochs in SHOWN:
            pair = (parts(report, one, "wall") for one in (name, stock))
            ours, theirs = (start + epochs * epoch for start, epoch in pair)
            found.append(f"{theirs / ours:.2f} × over {epochs}")
        yield f"{work}, {name.removeprefix('ours, ')}", stock, ", ".join(found) + " epochs", "3; 5"


def _outside(report: dict[str, Any]) -> Lines:
    from outside import around

    for row in report["rows"]:
        work = f"step outside the network and the optimiser, {row['precision']}"
        found = f"{100 * row['outside']:.1f} %; data, caches, logging, EMA, callbacks {{:.1f}} %"
        yield work, "the step", found.format(100 * around(row)), "5; 2 %"


def _sample(report: dict[str, Any]) -> Lines:
    rows = [row for row in report["rows"] if row["contender"] == "ours"]
    for size, batch in dict.fromkeys((row["size"], row["batch"]) for row in rows):
        here = [row for row in rows if (row["size"], row["batch"]) == (size, batch)]
        work = f"txt2img, {size}, batch {batch}"
        same = ", ".join(f"{row['same']:.2f} × ({row['dtype']})" for row in here)
        yield work, "diffusers, same dtype", same, "1.05; 1.15"
        best = max(here, key=lambda row: row["stock"])
        found = f"{best['stock']:.2f} × ({best['dtype']})"
        yield f"{work}, best", "diffusers, stock", found, "1.3; 1.6"


def _data(report: dict[str, Any]) -> Lines:
    aims = {
        "ours, bicubic (default)": "2.5; 3.5",
        "ours, bicubic, DCT-scaled decode": "4; 6",
    }
    for row in report["rows"]:
        if row["contender"] in aims:
            work = f"JPEG 512 → 256 px, {row['contender']}"
            yield work, "webdataset + Pillow", f"{row['speed'][1]:.2f} ×", aims[row["contender"]]


def _lora(report: dict[str, Any]) -> Lines:
    for row in report["rows"]:
        yield f"LoRA step, {row['size']}", "PEFT", f"{row['speed']:.2f} ×", "1; –"


def _startup(report: dict[str, Any]) -> Lines:
    (row,) = (row for row in report["rows"] if "step" in row["until"])
    yield "start to first training step", "–", f"{row['wall_s']:.1f} s", "10; 5 s"


def _memory(report: dict[str, Any]) -> Lines:
    from memory import STOCK, Derived

    rows = [Derived(**row) for row in report["rows"]]
    peaks = {(row.px, row.batch, row.contender): row.peak for row in rows}
    for px, batch, contender in peaks:
        if contender != STOCK:
            ratio = peaks[px, batch, contender] / peaks[px, batch, STOCK]
            work = f"peak memory, SD 1.5, {px} px, batch {batch} (derived)"
            yield work, "diffusers", f"{ratio:.2f} ×", "1.0; 0.7"


def _sd15_step(report: dict[str, Any]) -> Lines:
    if "not_run" in report:
        yield "training step, SD 1.5, bf16", STOCK_GPU, f"not run: {report['not_run']}", "1.3; 2"
        return
    for row in report["rows"]:
        if row["contender"].startswith("ours"):
            work = f"training step, SD 1.5, {row['px']} px, {row['contender']}"
            yield work, STOCK_GPU, f"{row['stock']:.2f} ×", "1.3; 2"
            aim = "30; 45 %" if row["px"] == 256 else "38; 55 %"
            yield f"{work}: utilisation", "matmul peak", f"{row['measured_mfu']:.0%}", aim


STOCK_GPU = "diffusers + accelerate"
