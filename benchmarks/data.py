"""How fast do JPEGs become training pictures, beside webdataset with Pillow, and how exactly?

    python benchmarks/data.py [SHARDS] [--size 256] [--seconds 1.5] [--rounds 9] [--quick]
                              [--clock wall] [--out FILE.json]

Decode, resize the shorter side, crop the middle, to float32 in [-1,1], in batches of 64. SHARDS: a
folder or glob of image shards; without it generated pictures of twice the size (photographs.py).
One process, one thread, files in the page cache; the contenders take turns in an order that
rotates, and speed is against webdataset with Pillow's default filter, paired round by round. The
allocator keeps freed memory for all of them, as our trainer lets it.

Before that their pixels are compared: PSNR, of the mean squared error over all pictures, to Pillow
with its default filter, to Pillow with the same filter, and to the same filter in float64.
"""

from __future__ import annotations

import argparse
import io
import itertools
import math
import statistics
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import reporting
import torch
import webdataset as wds
from doc_tables import Table
from numpy.typing import NDArray
from photographs import write_photographs
from PIL import Image
from resize_reference import by_pillow, in_float64
from turns import CLOCKS, quartiles, take_turns, with_quartiles

from ldm.data.decode import open_picture
from ldm.data.locate import expand
from ldm.data.picture_size import PICTURE_EXTS
from ldm.data.settings import DataConfig, Resample, TrainSource, ValSource
from ldm.data.source import open_data
from ldm.data.transforms import Transform
from ldm.training.allocator import keep_freed_memory

BATCH = 64
MIDDLE = np.array([0.5, 0.5, 0.99, 0.0], dtype=np.float32)  # the draws of a centre crop, not turned
SAME_DB = 60.0  # below this it is another filter


@dataclass(frozen=True, kw_only=True)
class Contender:
    """Who decodes and resizes, and how."""

    ours: bool
    resample: Resample = "bicubic"
    dct_scaling: bool = False


BESIDE = "webdataset + Pillow, bicubic (its default)"
CONTENDERS = {
    "ours, bicubic (default)": Contender(ours=True),
    "ours, bicubic, DCT-scaled decode": Contender(ours=True, dct_scaling=True),
    "ours, Lanczos": Contender(ours=True, resample="lanczos"),
    BESIDE: Contender(ours=False),
    "webdataset + Pillow, Lanczos": Contender(ours=False, resample="lanczos"),
}


@dataclass(frozen=True, kw_only=True)
class Row:
    """One contender. Quartiles are lower, middle, upper; speed is against BESIDE.

    PSNRs in dB, None: the same pixels.
    """

    contender: str
    images_per_s: list[float]
    speed: list[float]
    to_default_db: float | None
    to_pillow_db: float | None
    to_float64_db: float | None


def main() -> None:
    args = parse()
    torch.set_num_threads(1)
    keep_freed_memory()
    with tempfile.TemporaryDirectory() as scratch:
        if args.shards:
            paths = expand(args.shards)
        else:
            paths = write_photographs(Path(scratch) / "shards", args.generated, 2 * args.size)
        psnr = quality(paths, args.size, args.pictures)
        rates = take_turns(
            contenders(paths, args.size, scratch),
            rounds=args.rounds,
            seconds=args.seconds,
            clock=args.clock,
        )
    rows = [
        Row(
            contender=name,
            images_per_s=quartiles(rates[name]),
            speed=quartiles([a / b for a, b in zip(rates[name], rates[BESIDE], strict=True)]),
            **psnr[name],
        )
        for name in CONTENDERS
    ]
    settings = {key: value for key, value in vars(args).items() if key != "out"}
    made = reporting.new("data", device="cpu", threads=1, settings=settings, rows=rows)
    reporting.finish(made, tables(made), args.out)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("shards", nargs="?")
    parser.add_argument("--size", type=int, default=256, help="px")
    parser.add_argument("--seconds", type=float, default=1.5, help="of each contender, a round")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--pictures", type=int, default=200, help="for the PSNR, at most")
    parser.add_argument("--generated", type=int, default=256, help="pictures, without SHARDS")
    parser.add_argument("--clock", choices=CLOCKS, default="wall")
    parser.add_argument("--quick", action="store_true", help="under a minute; says little")
    parser.add_argument("--out", type=Path, help="json file for the numbers")
    args = parser.parse_args()
    if args.quick:
        args.seconds, args.rounds, args.pictures, args.generated = 0.5, 3, 40, 64
    return args


def tables(report: Mapping[str, Any]) -> dict[str, Table]:
    """The speed and the exactness of each contender, for the page."""
    rows = [Row(**row) for row in report["rows"]]
    speed = Table(
        ("contender", "images/s and core (quartiles)", "against webdataset + Pillow (quartiles)"),
        [(r.contender, with_quartiles(r.images_per_s), with_quartiles(r.speed)) for r in rows],
    )
    dbs = ("to_default_db", "to_pillow_db", "to_float64_db")
    exact = Table(
        (
            "PSNR, dB, to",
            "webdataset + Pillow's default",
            "Pillow, same filter",
            "float64, same filter",
        ),
        [(row.contender, *(_decibel(getattr(row, db)) for db in dbs)) for row in rows],
    )
    return {"data-speed": speed, "data-exactness": exact}


# -- speed ----------------------------------------------------------------------------------------


def contenders(paths: list[str], size: int, scratch: str) -> dict[str, Iterator[int]]:
    """Endless batches of each, as their numbers of pictures."""
    return {
        name: ours(paths, size, scratch, who) if who.ours else plain(paths, size, who.resample)
        for name, who in CONTENDERS.items()
    }


def ours(paths: list[str], size: int, scratch: str, who: Contender) -> Iterator[int]:
    """The training loader in this process, in the keyed order."""
    config = DataConfig(
        train=TrainSource(shards=paths),
        val=ValSource(shards=paths[0]),
        size=size,
        num_workers=0,
        cache_dir=scratch,
        resample=who.resample,
        dct_scaling=who.dct_scaling,
        keep_mib=0,
    )
    data = open_data(config, seed=0)
    for batch in data.train_loader(micro_batch=BATCH, rank=0, world=1, start=0, pin_memory=False):
        yield len(batch.pixels)


def plain(paths: list[str], size: int, resample: str) -> Iterator[int]:
    """Front to back, without an order."""

    def pixels(picture: Image.Image) -> torch.Tensor:
        cut = np.array(by_pillow(picture, size, resample))
        return torch.from_numpy(cut).permute(2, 0, 1).contiguous().float().div_(127.5).sub_(1.0)

    stages = wds.WebDataset(paths, shardshuffle=False, empty_check=False).decode(
        "pil", only=[*PICTURE_EXTS, "txt"]
    )
    pairs = stages.to_tuple("jpg;jpeg;png;webp", "txt").map_tuple(pixels, str)
    batches = pairs.batched(BATCH, collation_fn=lambda rows: torch.stack([r[0] for r in rows]))
    for _ in itertools.count():
        for batch in batches:
            yield len(batch)


# -- exactness ------------------------------------------------------------------------------------


def quality(paths: list[str], size: int, count: int) -> dict[str, dict[str, float | None]]:
    """The three PSNRs of each contender. Raises SystemExit where ours is another filter."""
    errors: dict[str, list[list[float]]] = {name: [] for name in CONTENDERS}
    stages = wds.WebDataset(paths, shardshuffle=False, empty_check=False)
    for (data,) in itertools.islice(stages.to_tuple("jpg;jpeg;png;webp"), count):
        picture = Image.open(io.BytesIO(data)).convert("RGB")
        default = np.asarray(by_pillow(picture, size, "bicubic"))
        for name, who in CONTENDERS.items():
            theirs = np.asarray(by_pillow(picture, size, who.resample))
            exact = in_float64(picture, size, who.resample)
            got = (_ours_of(data, size, who) if who.ours else theirs).astype(np.float64)
            errors[name].append([float(np.mean((got - w) ** 2)) for w in (default, theirs, exact)])
    names = ("to_default_db", "to_pillow_db", "to_float64_db")
    found = {
        name: dict(zip(names, (_psnr(column) for column in zip(*rows, strict=True)), strict=True))
        for name, rows in errors.items()
    }
    for name, who in CONTENDERS.items():
        same = found[name]["to_pillow_db"]
        if not who.dct_scaling and same is not None and same < SAME_DB:
            raise SystemExit(
                f"{name}: {same:.1f} dB to Pillow; below {SAME_DB} it is no such filter"
            )
    return found


def _ours_of(data: bytes, size: int, who: Contender) -> NDArray[np.uint8]:
    transform = Transform(size=size, resample=who.resample, dct_scaling=who.dct_scaling)
    return transform.apply(open_picture(data, max_pixels=10**8), MIDDLE).pixels


def _psnr(squares: tuple[float, ...]) -> float | None:
    mean = statistics.fmean(squares)
    return 10 * math.log10(255**2 / mean) if mean else None


def _decibel(value: float | None) -> str:
    return "the same" if value is None else f"{value:.1f}"


if __name__ == "__main__":
    main()
