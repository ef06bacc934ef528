"""How does a search for suspects go, from the configuration to the page?"""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress
from rich.table import Table as RichTable

from ldm import pipeline
from ldm.app.evaluation.drawing import batch_size_of
from ldm.app.evaluation.folder import open_folder
from ldm.app.recipes import DTYPE_NAMES
from ldm.app.suspects.findings import KINDS, Findings, judge, write_findings
from ldm.app.suspects.ledger import Ledger, Measured, rounded
from ldm.app.suspects.losses import SEED, Meter
from ldm.app.suspects.naming import name_suspects
from ldm.app.suspects.page import write_page
from ldm.app.suspects.request import Request
from ldm.app.suspects.samples import Samples, open_samples
from ldm.app.together import on_all, together
from ldm.data.alike import look
from ldm.evaluation.reference_stats import shards_hash
from ldm.pipeline import Pipeline
from ldm.training.launch import Devices, Processes

log = logging.getLogger(__name__)
PAGE = "suspects.html"


def run(request: Request, *, devices: Devices, device: str) -> int:
    """Gives the exit code. Raises ConfigError in the first process, for all."""
    return on_all(partial(_find, request), devices=devices, device=device)


def _find(request: Request, processes: Processes) -> None:
    pipe = together(
        processes,
        lambda: pipeline.load(
            request.checkpoint,
            weights=request.weights,
            device=processes.device,
            dtype=request.dtype,
        ),
    )
    samples = together(processes, lambda: open_samples(request, pipe))
    protocol = together(processes, lambda: _protocol(request, pipe, samples))
    first = processes.rank == 0
    name = f"suspects-{Path(request.checkpoint).expanduser().resolve().stem}"
    made = together(
        processes,
        lambda: open_folder(request.out, protocol, name=name, overwrite=False) if first else None,
    )
    out = processes.agree(made)
    assert out is not None
    ledger = Ledger(out)
    known = processes.agree(together(processes, lambda: ledger.known() if first else set()))
    missing = [number for number in samples.numbers if number not in known]
    if first and len(missing) < len(samples.numbers):
        done = len(samples.numbers) - len(missing)
        log.info("%s: %d of %d samples are measured", out, done, len(samples.numbers))
    side = samples.pictures.size_px
    meter = Meter(
        pipe,
        bins=request.bins,
        draws=request.draws,
        batch_size=batch_size_of(pipe, (side, side), request.batch_size),
    )
    together(processes, lambda: _measure(request, meter, samples, missing, ledger, processes))
    together(processes, lambda: _finish(request, meter, samples, protocol, out) if first else None)


def _protocol(request: Request, pipe: Pipeline, samples: Samples) -> dict[str, Any]:
    """Plain facts. Who changes one of them measures something else."""
    reader = samples.pictures.reader
    return {
        "model": pipe.fingerprint(),
        "weights": pipe.weights,
        "dtype": DTYPE_NAMES[next(pipe.unet.parameters()).dtype],
        "data": samples.pictures.name,
        "data_hash": shards_hash(reader.index),
        "captions": list(reader.examples.captions.names),  # type: ignore[attr-defined]
        "samples": len(samples.numbers),
        "size_px": samples.pictures.size_px,
        "bins": request.bins,
        "draws": request.draws,
        "others": request.others,
        "seed": SEED,
    }


def _measure(
    request: Request,
    meter: Meter,
    samples: Samples,
    missing: Sequence[int],
    ledger: Ledger,
    processes: Processes,
) -> None:
    """This process's part of what is missing; enters no collective."""
    mine = processes.share(missing)
    if not mine:
        return
    with Progress(console=Console(stderr=True), disable=processes.rank != 0) as bar:
        task = bar.add_task("measuring samples", total=len(mine))
        for number in mine:
            ledger.append(processes.rank, _measured(meter, samples, number, request.others))
            bar.advance(task)


def _measured(meter: Meter, samples: Samples, number: int, others: int) -> Measured:
    shard, key = samples.place(number)
    (caption,) = samples.pictures.captions([number])
    if caption is None:
        return Measured(number=number, shard=shard, key=key, unusable="no caption")
    (picture,) = samples.pictures.pictures([number])
    if picture is None:
        return Measured(number=number, shard=shard, key=key, unusable="the picture cannot be read")
    tried = samples.others(number, caption, others)
    losses, latent = rounded(meter.explain(number, picture, [caption, *tried]))
    return Measured(
        number=number,
        shard=shard,
        key=key,
        caption=caption,
        others=tried,
        losses=losses,
        latent=latent,
        look=look(picture),
    )


def _finish(
    request: Request, meter: Meter, samples: Samples, protocol: Mapping[str, Any], out: Path
) -> None:
    table = Ledger(out).table(samples.numbers)
    device = str(meter.pipe.device)
    found = judge(table, bins=request.bins, z=request.z, near=request.near, device=device)
    count = min(request.shown, len(found.of("mislabelled")))
    with Progress(console=Console(stderr=True), disable=not count) as bar:
        task = bar.add_task("naming suspects", total=count)
        found = name_suspects(
            found,
            meter,
            samples,
            out,
            tried=request.tried,
            most=request.shown,
            advance=lambda: bar.advance(task),
        )
    write_findings(out, found)
    facts = {
        "checkpoint": request.checkpoint,
        **protocol,
        "samples measured": len(table.samples),
        "samples that cannot be used": len(table.unusable),
        "left out of the index": samples.pictures.left_out,
        "z": request.z,
        "near": request.near,
    }
    write_page(
        out / PAGE,
        found,
        samples.pictures.pictures,
        title=f"Suspects in {samples.pictures.name}",
        facts=facts,
        shown=request.shown,
        footer=" ".join([Path(sys.argv[0]).name, *sys.argv[1:]]),
    )
    _show(found, out)


def _show(found: Findings, out: Path) -> None:
    """How many of each kind, with the clearest of them."""
    table = RichTable(show_edge=False, pad_edge=False)
    for column in ("kind", "samples", "the clearest"):
        table.add_column(column, overflow="fold")
    for kind in KINDS:
        listed = found.of(kind)
        told = f"{listed[0].sample.key}: {listed[0].sample.caption}" if listed else ""
        table.add_row(kind, str(len(listed)), told)
    console = Console()
    console.print(table)
    console.print(f"{out / PAGE}", highlight=False, soft_wrap=True)
