"""How fast do we read shards beside plain webdataset with Pillow, and how good are the pixels?

    python benchmarks/data.py [SHARDS] [--size 256] [--seconds 4] [--latents N] [--out FILE.json]

SHARDS: a folder or glob of image shards; without it, only latents are measured. Per core: one
process, one thread, CPU time of that process, files in the page cache; the contenders take turns.
PSNR is to the reference resize: Lanczos in float64 over the whole picture, then the centre crop.
The latents are shards of N drawn moments [8,32,32] float16 (16 KB a sample) in a temporary folder.
The data wait is the share of a training step (tiny UNet, batch 64, [8,8,8] moments as its own VAE
makes of 32 px, one worker process, no text encoder: as short a step as there is) that is spent in
waiting for the next batch, by the clock.
"""

from __future__ import annotations

import argparse
import io
import itertools
import json
import math
import statistics
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
import webdataset as wds
import yaml
from numpy.typing import NDArray
from PIL import Image

from ldm.data.decode import decode
from ldm.data.locate import expand
from ldm.data.picture_size import PICTURE_EXTS
from ldm.data.settings import DataConfig, TrainSource, ValSource
from ldm.data.source import open_data
from ldm.data.transforms import Transform
from ldm.models.unet import UNet, UNetConfig
from ldm.models.vae import sample_moments

BATCH = 64
WARM_UP = 5  # steps
TINY = Path(__file__).parents[1] / "conf" / "models" / "unet" / "tiny.yaml"
ROUNDS = 5
FILTERS = {"bicubic": Image.Resampling.BICUBIC, "Lanczos": Image.Resampling.LANCZOS}
Pixels = NDArray[np.uint8]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("shards", nargs="?")
    parser.add_argument("--size", type=int, default=256, help="px")
    parser.add_argument("--seconds", type=float, default=4.0, help="of CPU time a round")
    parser.add_argument("--latents", type=int, default=4000, help="samples; 0 leaves them out")
    parser.add_argument("--steps", type=int, default=100, help="of training, for the data wait")
    parser.add_argument("--pictures", type=int, default=100, help="for the PSNR")
    parser.add_argument("--out", type=Path, help="json file for the numbers")
    args = parser.parse_args()
    torch.set_num_threads(1)
    found: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as scratch:
        if args.shards:
            found["images_per_s"] = image_rates(args.shards, args.size, args.seconds, scratch)
            found["psnr_db"] = quality(args.shards, args.size, args.pictures)
        if args.latents:
            found["latents_per_s"] = latent_rates(Path(scratch), args.latents, args.seconds)
            found["data_wait"] = data_wait(Path(scratch), args.latents, args.steps)
    print(json.dumps(found, indent=2))
    if args.out:
        args.out.write_text(json.dumps(found, indent=2) + "\n")


# -- speed ----------------------------------------------------------------------------------------


def image_rates(shards: str, size: int, seconds: float, scratch: str) -> dict[str, list[float]]:
    """Samples a second of CPU time, [quartile, median, quartile] over the rounds."""
    paths = expand(shards)
    contenders = {"ours": ours(paths, size, scratch)}
    contenders |= {f"webdataset + Pillow {name}": plain(paths, size, name) for name in FILTERS}
    return take_turns(contenders, seconds)


def ours(paths: list[str], size: int, scratch: str) -> Iterator[int]:
    """The training loader in this process, in the keyed order."""
    config = DataConfig(
        train=TrainSource(shards=paths),
        val=ValSource(shards=paths[0]),
        size=size,
        num_workers=0,
        cache_dir=scratch,
    )
    data = open_data(config, seed=0)
    for batch in data.train_loader(micro_batch=BATCH, rank=0, world=1, start=0, pin_memory=False):
        yield len(batch)


def plain(paths: list[str], size: int, name: str) -> Iterator[int]:
    """Front to back: decode with Pillow, resize the shorter side, centre crop, to [-1,1]."""

    def pixels(picture: Image.Image) -> torch.Tensor:
        cut = np.array(resize_then_crop(picture.convert("RGB"), size, FILTERS[name]))
        return torch.from_numpy(cut).permute(2, 0, 1).contiguous().float().div_(127.5).sub_(1.0)

    stages = wds.WebDataset(paths, shardshuffle=False, empty_check=False).decode(
        "pil", only=[*PICTURE_EXTS, "txt"]
    )
    pairs = stages.to_tuple("jpg;jpeg;png;webp", "txt").map_tuple(pixels, str)
    batches = pairs.batched(BATCH, collation_fn=lambda rows: torch.stack([r[0] for r in rows]))
    for _ in itertools.count():
        for batch in batches:
            yield len(batch)


def latent_rates(folder: Path, count: int, seconds: float) -> dict[str, list[float]]:
    """Cached moments through the training loader, and the same shards through webdataset."""
    paths = write_latents(folder / "latents", count, shape=(8, 32, 32))
    config = DataConfig(
        train=TrainSource(shards=paths),
        val=ValSource(shards=paths[0]),
        format="latents",
        size=256,
        num_workers=0,
    )
    data = open_data(config, seed=0)
    loader = data.train_loader(micro_batch=BATCH, rank=0, world=1, start=0, pin_memory=False)
    return take_turns({"ours": map(len, loader), "webdataset": plain_latents(paths)}, seconds)


def plain_latents(paths: list[str]) -> Iterator[int]:
    stages = wds.WebDataset(paths, shardshuffle=False, empty_check=False).decode()
    pairs = stages.to_tuple("moments.npy", "txt")
    batches = pairs.batched(
        BATCH, collation_fn=lambda rows: torch.from_numpy(np.stack([r[0] for r in rows]))
    )
    for _ in itertools.count():
        for batch in batches:
            yield len(batch)


def data_wait(folder: Path, count: int, steps: int) -> dict[str, float]:
    """Per cent of the training steps' time, and the median step in ms."""
    paths = write_latents(folder / "small", count, shape=(8, 8, 8))
    config = DataConfig(
        train=TrainSource(shards=paths),
        val=ValSource(shards=paths[0]),
        format="latents",
        size=32,
        num_workers=1,
    )
    data = open_data(config, seed=0)
    loader = data.train_loader(micro_batch=BATCH, rank=0, world=1, start=0, pin_memory=False)
    node = yaml.safe_load(TINY.read_text())
    del node["_target_"]
    unet = UNet(UNetConfig(**node))
    optimizer = torch.optim.AdamW(unet.parameters(), lr=1e-4, fused=True)
    context = torch.randn(BATCH, 8, unet.config.cross_attention_dim or 0)
    waits, totals = [], []
    batches = iter(loader)
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
        "percent": round(100 * sum(waits) / sum(totals), 2),
        "median_wait_ms": round(1e3 * statistics.median(waits), 2),
        "median_step_ms": round(1e3 * statistics.median(totals), 1),
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


def take_turns(contenders: dict[str, Iterator[int]], seconds: float) -> dict[str, list[float]]:
    """What else the machine does meets all of them; the first turn of each only warms up."""
    rates: dict[str, list[float]] = {name: [] for name in contenders}
    for turn in range(ROUNDS + 1):
        for name, batches in contenders.items():
            rate = _rate(batches, seconds if turn else min(seconds, 1.0))
            if turn:
                rates[name].append(rate)
    return {name: [round(q, 1) for q in statistics.quantiles(r, n=4)] for name, r in rates.items()}


def _rate(batches: Iterator[int], seconds: float) -> float:
    started, samples = time.process_time(), 0
    while (spent := time.process_time() - started) < seconds:
        samples += next(batches)
    return samples / spent


# -- quality --------------------------------------------------------------------------------------


def quality(shards: str, size: int, count: int) -> dict[str, float]:
    """PSNR in dB to the reference resize of the same decoded pixels, mean over the pictures."""
    transform, middle = Transform(size=size), np.array([0.5, 0.5, 0.99, 0.0], dtype=np.float32)
    contenders: dict[str, Callable[[Image.Image], Pixels]] = {
        "ours": lambda picture: transform.apply(picture, middle).pixels,
    }
    for name, kind in FILTERS.items():
        contenders[f"Pillow {name}"] = lambda picture, kind=kind: np.asarray(
            resize_then_crop(picture, size, kind)
        )
    contenders["torch bilinear, not antialiased"] = lambda picture: _nearest_four(picture, size)
    sums: dict[str, list[float]] = {name: [] for name in contenders}
    stages = wds.WebDataset(expand(shards), shardshuffle=False, empty_check=False)
    for (data,) in itertools.islice(stages.to_tuple("jpg;jpeg;png;webp"), count):
        picture = decode(data, max_pixels=10**8)
        wanted = reference(picture, size)
        for name, contender in contenders.items():
            error = np.mean((contender(picture).astype(np.float64) - wanted) ** 2)
            sums[name].append(10 * math.log10(255**2 / max(error, 1e-9)))
    return {name: round(statistics.fmean(values), 1) for name, values in sums.items()}


def resize_then_crop(picture: Image.Image, size: int, kind: Image.Resampling) -> Image.Image:
    width, height = resized = _covering(picture, size)
    left, top = (width - size) // 2, (height - size) // 2
    whole = picture.resize(resized, kind)
    return whole.crop((left, top, left + size, top + size))


def reference(picture: Image.Image, size: int) -> NDArray[np.float64]:
    """Lanczos with a support of 3 target pixels, in float64, rounded to nothing. [size,size,3]"""
    width, height = _covering(picture, size)
    pixels = np.asarray(picture, dtype=np.float64)
    rows = lanczos(picture.height, height)[(height - size) // 2 :][:size]
    columns = lanczos(picture.width, width)[(width - size) // 2 :][:size]
    cut = np.einsum("yh,hwc,xw->yxc", rows, pixels, columns, optimize=True)
    return np.clip(cut, 0, 255)


def lanczos(source: int, target: int) -> NDArray[np.float64]:
    """The weights [target,source] of resizing one axis."""
    scale = source / target
    widening = max(scale, 1.0)
    centres = (np.arange(target) + 0.5) * scale
    x = (np.arange(source) + 0.5 - centres[:, None]) / widening
    weights = np.where(np.abs(x) < 3, np.sinc(x) * np.sinc(x / 3), 0.0)
    return weights / weights.sum(axis=1, keepdims=True)


def _nearest_four(picture: Image.Image, size: int) -> Pixels:
    """What torch.nn.functional.interpolate does by default: the four pixels around each."""
    width, height = _covering(picture, size)
    planes = torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None].float()
    whole = torch.nn.functional.interpolate(planes, (height, width), mode="bilinear")
    top, left = (height - size) // 2, (width - size) // 2
    cut = whole[0, :, top : top + size, left : left + size].round().clamp(0, 255)
    return cut.permute(1, 2, 0).to(torch.uint8).numpy()


def _covering(picture: Image.Image, size: int) -> tuple[int, int]:
    """(width, height) with the shorter side at `size`."""
    scale = size / min(picture.size)
    return max(size, round(picture.width * scale)), max(size, round(picture.height * scale))


if __name__ == "__main__":
    main()
