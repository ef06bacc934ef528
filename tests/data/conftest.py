"""Small shards that the tests write themselves."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

Members = Mapping[str, bytes]


@pytest.fixture(autouse=True)
def cache_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No test touches the user's cache folder."""
    folder = tmp_path / "cache-home"
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
    return folder


@pytest.fixture
def png() -> Callable[..., bytes]:
    """A PNG whose pixels depend on `value`."""

    def make(value: int = 0, *, width: int = 12, height: int = 12) -> bytes:
        pixels = np.random.default_rng(value).integers(0, 256, (height, width, 3), dtype=np.uint8)
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, "PNG")
        return buffer.getvalue()

    return make


@pytest.fixture
def write_tar() -> Callable[..., Path]:
    """A tar of (name, bytes) in this order."""

    def write(
        path: Path, members: Sequence[tuple[str, bytes]], *, form: int = tarfile.USTAR_FORMAT
    ) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tarfile.open(path, "w", format=form) as archive:
            for name, data in members:
                info = tarfile.TarInfo(name)
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
        return path

    return write


@pytest.fixture
def write_shard(png: Callable[..., bytes], write_tar: Callable[..., Path]) -> Callable[..., Path]:
    """A shard of `count` samples keyed by `prefix` and number; `extra` replaces or adds members."""

    def write(
        path: Path,
        count: int,
        *,
        prefix: str = "s",
        extra: Callable[[int], Members] = lambda n: {},
    ) -> Path:
        members: list[tuple[str, bytes]] = []
        for n in range(count):
            sample = {
                "png": png(n),
                "txt": f"caption {prefix}{n}".encode(),
                "json": json.dumps({"width": 12, "height": 12, "number": n}).encode(),
            }
            sample |= dict(extra(n))
            members += [(f"{prefix}{n:03d}.{ext}", data) for ext, data in sample.items() if data]
        return write_tar(path, members)

    return write


@pytest.fixture
def three_shards(tmp_path: Path, write_shard: Callable[..., Path]) -> list[str]:
    """37 samples in shards of 11, 7 and 19; keys name shard and number."""
    sizes = {"a": 11, "b": 7, "c": 19}
    return [
        str(write_shard(tmp_path / "shards" / f"{name}.tar", size, prefix=name))
        for name, size in sizes.items()
    ]


@pytest.fixture
def npy() -> Callable[..., bytes]:
    """The npy file of an array, float16 unless told."""

    def make(array: np.ndarray, dtype: type = np.float16) -> bytes:
        buffer = io.BytesIO()
        np.save(buffer, array.astype(dtype))
        return buffer.getvalue()

    return make


@pytest.fixture
def write_latents(
    write_shard: Callable[..., Path], npy: Callable[..., bytes]
) -> Callable[..., Path]:
    """A shard of cached moments [8,4,6] whose values depend on prefix and number."""

    def write(
        path: Path,
        count: int,
        *,
        prefix: str = "s",
        extra: Callable[[int], Members] = lambda n: {},
        shape: tuple[int, ...] = (8, 4, 6),
    ) -> Path:
        def members(n: int) -> Members:
            values = np.random.default_rng([ord(prefix[0]), n]).standard_normal(shape)
            return {"png": b"", "moments.npy": npy(values), **extra(n)}

        return write_shard(path, count, prefix=prefix, extra=members)

    return write
