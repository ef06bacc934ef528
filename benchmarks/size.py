"""How do a training step and the reading of shards grow with the size of the work?

    python benchmarks/size.py [--quick] [--sweeps batch tokens positions shards] [--seconds 60]
                              [--device auto] [--threads 0] [--out FILE.json] [--plot FILE.svg]

The tiny network in our best setting of the device, over the batch (8 x 8 latents, 8 text
positions), the text positions (batch 32) and the latent's positions (batch 8). A sweep's points
take turns, one step each, in an order that rotates. Shards: folders of 10 to 10,000 shards of 8
cached latents each; the index made at first and met again, and the reading of 2,048 samples in the
keyed order. `line` is time / the straight line through the sweep's points (least squares of the
relative error): 1 is linear.
"""

from __future__ import annotations

import argparse
import io
import itertools
import statistics
import tarfile
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import reporting
import torch
import torch.nn.functional as F
from doc_tables import Table, figure
from networks import OURS, network, shape

from ldm.data.settings import DataConfig, TrainSource, ValSource
from ldm.data.source import open_data
from ldm.training.allocator import keep_freed_memory

SWEEPS = {
    "batch": (8, 16, 32, 64, 128),
    "tokens": (8, 77, 154, 231, 308),
    "positions": (64, 144, 256, 576, 1024),  # of latents of 8, 12, 16, 24, 32 to a side
    "shards": (10, 100, 1_000, 10_000),
}
AXES = {
    "batch": "batch",
    "tokens": "text positions, batch 32",
    "positions": "latent positions, batch 8",
    "shards": "shards",
}
SHARDS = ("index, first time", "index, again", "reading 2,048 samples")
IN_A_SHARD = 8
READ = 2048
MOMENTS = (8, 8, 8)


@dataclass(frozen=True, kw_only=True)
class Row:
    """One point. what: of the shards, which work; line: time / the fitted line, None: no line."""

    sweep: str
    what: str
    x: int
    median_ms: float
    quartiles_ms: tuple[float, float]
    line: float | None


def main() -> None:
    args = parse()
    if args.threads:
        torch.set_num_threads(args.threads)
    if args.device == "cpu":
        keep_freed_memory()
    rows: list[Row] = []
    for sweep in args.sweeps:
        points = SWEEPS[sweep][: 3 if args.quick else None]
        if sweep == "shards":
            rows += shard_rows(points)
        else:
            rows += step_rows(sweep, points, args.device, args.seconds)
    made = reporting.new(
        "size",
        device=args.device,
        threads=args.threads,
        settings={"bf16": fast_bf16(args.device), "seconds": args.seconds},
        rows=rows,
    )
    reporting.finish(made, tables(made), args.out)
    if args.plot:
        from size_plot import plot

        plot(made, args.plot)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--sweeps", nargs="+", default=list(SWEEPS), choices=list(SWEEPS))
    parser.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda"])
    parser.add_argument("--threads", type=int, default=0, help="CPU threads; 0: torch's default")
    parser.add_argument("--seconds", type=float, default=60.0, help="at least, a sweep of steps")
    parser.add_argument("--quick", action="store_true", help="three points, --seconds 5")
    parser.add_argument("--out", type=Path, default=Path("reports/size.json"))
    parser.add_argument("--plot", type=Path, help="SVG file of the curves")
    args = parser.parse_args()
    if args.device == "auto":
        args.device = "cuda" if torch.cuda.is_available() else "cpu"
    if args.quick:
        args.seconds = 5.0
    return args


def fast_bf16(device: str) -> bool:
    return device == "cuda" or bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


# --- steps -----------------------------------------------------------------------------------


def step_rows(sweep: str, points: Sequence[int], device: str, seconds: float) -> list[Row]:
    unet, _ = network("tiny", OURS)
    unet.to(device).train()
    optimizer = torch.optim.AdamW(unet.parameters(), lr=1e-4, fused=True)
    steps = {x: step_of(sweep, x, unet, optimizer, device) for x in points}
    times: dict[int, list[float]] = {x: [] for x in points}
    order, end = list(points), time.monotonic() + seconds
    for step in steps.values():
        step()  # makes the optimiser's state, loads what torch loads on first use
    while len(times[points[0]]) < 4 or time.monotonic() < end:
        for x in order:
            times[x].append(steps[x]())
        order = order[1:] + order[:1]
    return fitted(sweep, "step", times)


def step_of(
    sweep: str, x: int, unet: torch.nn.Module, optimizer: torch.optim.Optimizer, device: str
) -> Callable[[], float]:
    """A training step of that size, which says its seconds."""
    batch = {"batch": x, "tokens": 32, "positions": 8}[sweep]
    tokens = x if sweep == "tokens" else 8
    side = round(x**0.5) if sweep == "positions" else 8
    config = shape("tiny")
    rng = torch.Generator().manual_seed(1)
    assert config.cross_attention_dim is not None
    latents = (batch, config.in_channels, side, side)
    noisy, target = (torch.randn(latents, generator=rng).to(device) for _ in "xy")
    context = torch.randn(batch, tokens, config.cross_attention_dim, generator=rng).to(device)
    t = torch.linspace(0.0, 999.0, batch).round().to(device)

    def step() -> float:
        wait(device)
        begin = time.perf_counter()
        with torch.autocast(device, torch.bfloat16, enabled=fast_bf16(device)):
            predicted = unet(noisy, t, context)
        F.mse_loss(predicted.float(), target).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        wait(device)
        return time.perf_counter() - begin

    return step


def wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


# --- shards ----------------------------------------------------------------------------------


def shard_rows(points: Sequence[int]) -> list[Row]:
    times: dict[str, dict[int, list[float]]] = {what: {x: [] for x in points} for what in SHARDS}
    with tempfile.TemporaryDirectory() as place:
        for x in points:
            folder = Path(place) / str(x)
            write_shards(folder, x)
            for turn in range(3):
                for index in folder.glob("*.index"):
                    index.unlink()
                first, again, reading = read_shards(folder, Path(place) / f"cache{x}-{turn}")
                for what, took in zip(SHARDS, (first, again, reading), strict=True):
                    times[what][x].append(took)
    return [row for what in SHARDS for row in fitted("shards", what, times[what])]


def write_shards(folder: Path, count: int) -> None:
    """`count` shards of IN_A_SHARD cached latents each, with captions."""
    folder.mkdir()
    buffer = io.BytesIO()
    np.save(buffer, np.random.default_rng(0).standard_normal(MOMENTS).astype(np.float16))
    for shard in range(count):
        with tarfile.open(folder / f"{shard:06d}.tar", "w", format=tarfile.USTAR_FORMAT) as archive:
            for n in range(IN_A_SHARD):
                caption = f"caption {n} of shard {shard}".encode()
                for ext, data in (("moments.npy", buffer.getvalue()), ("txt", caption)):
                    member = tarfile.TarInfo(f"{shard:06d}{n:03d}.{ext}")
                    member.size = len(data)
                    archive.addfile(member, io.BytesIO(data))


def read_shards(folder: Path, cache: Path) -> tuple[float, float, float]:
    """Seconds of the first index, of the next one, and of reading READ samples."""
    config = DataConfig(
        train=TrainSource(shards=str(folder)),
        val=ValSource(shards=str(folder / "000000.tar")),
        format="latents",
        size=32,
        num_workers=0,
        cache_dir=str(cache),
    )
    marks = [time.perf_counter()]
    for _ in range(2):
        data = open_data(config, seed=0)
        marks.append(time.perf_counter())
    batches = data.train_loader(micro_batch=64, rank=0, world=1, start=0, pin_memory=False)
    count = 0
    for batch in batches:
        count += len(batch)
        if count >= READ:
            break
    marks.append(time.perf_counter())
    first, again, reading = (b - a for a, b in itertools.pairwise(marks))
    return first, again, reading


# --- the line --------------------------------------------------------------------------------


def fitted(sweep: str, what: str, times: dict[int, list[float]]) -> list[Row]:
    """Rows with time / line. Reading has no line: it should not grow with the shards at all."""
    quartiles = {x: statistics.quantiles([1e3 * t for t in ts], n=4) for x, ts in times.items()}
    on_line: list[float | None] = [None] * len(times)
    if what != SHARDS[2]:
        medians = [quartiles[x][1] for x in times]
        base, slope = line(list(times), medians)
        on_line = [m / (base + slope * x) for x, m in zip(times, medians, strict=True)]
    return [
        Row(
            sweep=sweep,
            what=what,
            x=x,
            median_ms=quartiles[x][1],
            quartiles_ms=(quartiles[x][0], quartiles[x][2]),
            line=relative,
        )
        for x, relative in zip(times, on_line, strict=True)
    ]


def line(xs: Sequence[float], ys: Sequence[float]) -> tuple[float, float]:
    """(base, slope) of the least squares of (base + slope x) / y - 1."""
    y = np.asarray(ys)
    design = np.stack([1 / y, np.asarray(xs) / y], axis=1)
    base, slope = np.linalg.lstsq(design, np.ones(len(y)), rcond=None)[0]
    return float(base), float(slope)


def tables(report: dict[str, Any]) -> dict[str, Table]:
    """One table a sweep."""
    found = {}
    for sweep, what in AXES.items():
        rows = [row for row in report["rows"] if row["sweep"] == sweep]
        if rows:
            make = _shard_table if sweep == "shards" else _step_table
            found[f"size-{sweep}"] = make(what, rows)
    return found


def _step_table(what: str, rows: list[dict[str, Any]]) -> Table:
    lines = [
        (
            f"{row['x']:,}",
            f"{row['median_ms']:.1f} ({row['quartiles_ms'][0]:.1f}–{row['quartiles_ms'][1]:.1f})",
            figure(row["median_ms"] / row["x"]),
            f"{row['line']:.2f}",
        )
        for row in rows
    ]
    return Table((what, "step, ms (quartiles)", "ms each", "time / line"), lines)


def _shard_table(what: str, rows: list[dict[str, Any]]) -> Table:
    by_size: dict[int, list[str]] = {}
    for row in rows:
        relative = "" if row["line"] is None else f" ({row['line']:.2f} of the line)"
        by_size.setdefault(row["x"], []).append(f"{figure(row['median_ms'])}{relative}")
    headings = [f"{name}, ms" for name in SHARDS]
    return Table((what, *headings), [(f"{x:,}", *cells) for x, cells in by_size.items()])


if __name__ == "__main__":
    main()
