"""How fast are index files made and read, and checkpoints written, on this machine?"""

from __future__ import annotations

import io
import json
import os
import tarfile
import tempfile
import time
from pathlib import Path

import torch

from ldm.data.cache import ShardCache
from ldm.data.shards import build_index
from ldm.io import checkpoint

SHARDS, SAMPLES = 4, 10_000
PICTURE = 2_500  # bytes; headers are walked, pictures are not read


def measure() -> str:
    """Rates of CPU time for index files (samples a second and core), wall time for checkpoints."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        shards = [str(_shard(root / f"{n:05d}.tar")) for n in range(SHARDS)]
        first, again = (_rate(shards, root / "cache") for _ in range(2))
        index = sum(path.stat().st_size for path in root.glob("*.index")) / (SHARDS * SAMPLES)
        return "\n".join(
            [
                f"index made: {first:,.0f} samples/s and core, {index:.0f} bytes a sample",
                f"index read: {again:,.0f} samples/s and core",
                f"checkpoint: {_written(root) / 1e6:,.0f} MB/s, written, synced and hashed",
            ]
        )


def _shard(path: Path) -> Path:
    picture, caption = os.urandom(PICTURE), b"a caption of the length that they have on the web"
    fields = {"caption": "x" * 50, "width": 512, "height": 512, "similarity": 0.3}
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for n in range(SAMPLES):
            for ext, data in (
                ("jpg", picture),
                ("txt", caption),
                ("json", json.dumps({**fields, "key": n}).encode()),
            ):
                member = tarfile.TarInfo(f"{path.stem}{n:04d}.{ext}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    return path


def _rate(shards: list[str], cache: Path) -> float:
    began = time.process_time()
    found = build_index(shards, cache=ShardCache(folder=cache))
    return len(found) / (time.process_time() - began)


def _written(root: Path) -> float:
    path = root / "s000000001.ckpt"
    document = {str(n): torch.randn(1 << 24) for n in range(8)}
    began = time.perf_counter()
    checkpoint.write(document, path)
    return path.stat().st_size / (time.perf_counter() - began)
