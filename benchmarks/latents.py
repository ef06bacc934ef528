"""How fast are cached latents read beside plain webdataset, and does a training step wait for them?

    python benchmarks/latents.py [--samples 4000] [--seconds 1.5] [--rounds 9] [--steps 100]
                                 [--clock wall] [--quick] [--out FILE.json]

Reading: shards of drawn moments [8,32,32] float16 (16 KB a sample), per core: one process, one
thread, files in the page cache; the two take turns, speed is paired round by round. Waiting: the
share of a training step (tiny UNet, batch 64, [8,8,8] moments as its own VAE makes of 32 px, one
worker process, no text encoder: as short a step as there is) until the next batch is there, by the
wall clock.
"""

from __future__ import annotations

import argparse
import io
import itertools
import statistics
import tarfile
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import reporting
import torch
import torch.nn.functional as F
import webdataset as wds
from doc_tables import Table, figure
from networks import shape
from turns import CLOCKS, quartiles, take_turns, with_quartiles

from ldm.data.settings import DataConfig, TrainSource, ValSource
from ldm.data.source import Data, open_data
from ldm.models.unet import UNet
from ldm.models.vae import sample_moments
from ldm.training.allocator import keep_freed_memory

BATCH = 64
WARM_UP = 5  # steps
OURS, BESIDE = "ours: keyed order", "webdataset, front to back"


def main() -> None:
    args = parse()
    torch.set_num_threads(1)
    keep_freed_memory()
    with tempfile.TemporaryDirectory() as scratch:
        rates = read_rates(Path(scratch) / "reading", args)
        waiting = data_wait(Path(scratch) / "waiting", args.samples, args.steps)
    rows = [
        {
            "contender": name,
            "samples_per_s": quartiles(rates[name]),
            "speed": quartiles([a / b for a, b in zip(rates[name], rates[BESIDE], strict=True)]),
        }
        for name in rates
    ]
    settings = {key: value for key, value in vars(args).items() if key != "out"}
    made = reporting.new(
        "latents", device="cpu", threads=1, settings=settings, rows=rows, waiting=waiting
    )
    reporting.finish(made, tables(made), args.out)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--samples", type=int, default=4000)
    parser.add_argument("--seconds", type=float, default=1.5, help="of each contender, a round")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--steps", type=int, default=100, help="of training, for the waiting")
    parser.add_argument("--clock", choices=CLOCKS, default="wall", help="of the reading")
    parser.add_argument("--quick", action="store_true", help="under a minute; says little")
    parser.add_argument("--out", type=Path, help="json file for the numbers")
    args = parser.parse_args()
    if args.quick:
        args.samples, args.seconds, args.rounds, args.steps = 500, 0.3, 3, 8
    return args


def tables(report: Mapping[str, Any]) -> dict[str, Table]:
    """The speed of reading and the share of waiting, for the page."""
    reading = Table(
        ("cached moments [8,32,32] float16", "samples/s and core (quartiles)", "speed (quartiles)"),
        [
            (row["contender"], *(with_quartiles(row[key]) for key in ("samples_per_s", "speed")))
            for row in report["rows"]
        ],
    )
    w = report["waiting"]
    waiting = Table(
        ("network, batch 64, moments [8,8,8]", "waiting, ms", "of a step of, ms", "share, %"),
        [
            (
                "tiny UNet, one thread, no text encoder",
                *(figure(w[key], 2) for key in ("median_wait_ms", "median_step_ms", "percent")),
            )
        ],
    )
    return {"latents-reading": reading, "latents-waiting": waiting}


def read_rates(folder: Path, args: argparse.Namespace) -> dict[str, list[float]]:
    """Moments through the training loader, and the same shards through webdataset."""
    paths = write_latents(folder, args.samples, shape=(8, 32, 32))
    loader = _loader(_opened(paths, size=256, workers=0))
    return take_turns(
        {OURS: map(len, loader), BESIDE: plain(paths)},
        rounds=args.rounds,
        seconds=args.seconds,
        clock=args.clock,
    )


def plain(paths: list[str]) -> Iterator[int]:
    stages = wds.WebDataset(paths, shardshuffle=False, empty_check=False).decode()
    pairs = stages.to_tuple("moments.npy", "txt")
    batches = pairs.batched(
        BATCH, collation_fn=lambda rows: torch.from_numpy(np.stack([r[0] for r in rows]))
    )
    for _ in itertools.count():
        for batch in batches:
            yield len(batch)


def data_wait(folder: Path, count: int, steps: int) -> dict[str, float]:
    """Per cent of the training steps' time, and the medians of wait and step in ms."""
    data = _opened(write_latents(folder, count, shape=(8, 8, 8)), size=32, workers=1)
    unet = UNet(shape("tiny"))
    optimizer = torch.optim.AdamW(unet.parameters(), lr=1e-4, fused=True)
    context = torch.randn(BATCH, 8, unet.config.cross_attention_dim or 0)
    waits, totals = [], []
    batches = iter(_loader(data))
    for _ in range(WARM_UP + steps):
        begin = time.perf_counter()
        batch = next(batches)
        waited = time.perf_counter() - begin
        noise = torch.randn(len(batch), 4, 8, 8)
        x0 = sample_moments(batch.moments.float(), torch.randn_like(noise))
        F.mse_loss(unet(x0 + noise, torch.full((len(batch),), 500.0), context), noise).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        waits.append(waited)
        totals.append(time.perf_counter() - begin)
    waits, totals = waits[WARM_UP:], totals[WARM_UP:]
    return {
        "percent": 100 * sum(waits) / sum(totals),
        "median_wait_ms": 1e3 * statistics.median(waits),
        "median_step_ms": 1e3 * statistics.median(totals),
    }


def write_latents(folder: Path, count: int, *, shape: tuple[int, ...]) -> list[str]:
    folder.mkdir()
    draw = np.random.default_rng(0)
    paths = []
    for start in range(0, count, 2000):
        paths.append(str(folder / f"{start:07d}.tar"))
        with tarfile.open(paths[-1], "w", format=tarfile.USTAR_FORMAT) as archive:
            for n in range(start, min(start + 2000, count)):
                buffer = io.BytesIO()
                np.save(buffer, draw.standard_normal(shape).astype(np.float16))
                members = {"moments.npy": buffer.getvalue(), "txt": f"caption {n}".encode()}
                for ext, data in members.items():
                    info = tarfile.TarInfo(f"{n:07d}.{ext}")
                    info.size = len(data)
                    archive.addfile(info, io.BytesIO(data))
    return paths


def _opened(paths: list[str], *, size: int, workers: int) -> Data:
    config = DataConfig(
        train=TrainSource(shards=paths),
        val=ValSource(shards=paths[0]),
        format="latents",
        size=size,
        num_workers=workers,
    )
    return open_data(config, seed=0)


def _loader(data: Data) -> Iterable[Any]:
    return data.train_loader(micro_batch=BATCH, rank=0, world=1, start=0, pin_memory=False)


if __name__ == "__main__":
    main()
