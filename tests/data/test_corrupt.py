"""Does a corpus with every kind of damage come to its end, with all of it in the quarantine?"""

from __future__ import annotations

import itertools
import json
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from ldm.data.buckets import Buckets
from ldm.data.settings import DataConfig, TrainSource, ValSource
from ldm.data.source import Data, open_data

Write = Callable[..., Path]
BATCH = 8


def bomb() -> bytes:
    """A PNG of 12,000 x 12,000 pixels, above max_pixels, whose data begin and do not go on."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = struct.pack(">IIBBBBB", 12_000, 12_000, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"x"))


@pytest.fixture
def corrupt(tmp_path: Path, write_tar: Write, png: Callable[..., bytes]) -> list[str]:
    """60 samples in a damaged shard, 12 in one that is cut off in its tenth."""
    wrong: dict[int, dict[str, bytes]] = {
        3: {"png": b"", "txt": b"zero-byte picture"},
        4: {"png": png(4), "txt": b""},
        5: {"jpg": png(5), "txt": b"a PNG that is called .jpg: good"},
        6: {"jpg": b"a text that is called .jpg", "txt": b"x"},
        7: {"gif": b"GIF89a", "txt": b"not a picture that is read"},
        8: {"png": bomb(), "txt": b"bomb"},
        9: {"png": png(9)},
        10: {"png": png(10), "txt": b"caf\xe9"},
        11: {"png": png(11)[:60], "txt": b"cut off"},
        12: {"txt": b"no picture"},
    }
    members = [
        (f"s{n:03d}.{ext}", data)
        for n in range(60)
        for ext, data in wrong.get(n, {"png": png(n), "txt": b"fine"}).items()
    ]
    damaged = write_tar(tmp_path / "damaged.tar", members)
    whole = [
        (f"t{n:03d}.{ext}", d) for n in range(12) for ext, d in (("png", png(n)), ("txt", b"x"))
    ]
    cut = write_tar(tmp_path / "cut.tar", whole)
    inside = cut.read_bytes().index(b"t009.png") + 512 + 100  # in the picture of the tenth
    cut.write_bytes(cut.read_bytes()[:inside])
    return [str(damaged), str(cut)]


EXPECTED = {
    "s003": "the image cannot be decoded",
    "s004": "the caption is empty",
    "s006": "the image cannot be decoded",
    "s007": "no picture",
    "s008": "the image is 12000x12000, above max_pixels",
    "s009": "no caption",
    "s010": "the .txt member is not UTF-8",
    "s011": "the image cannot be decoded",
    "s012": "no picture",
    "": "the shard is cut off",
}
LEFT_OUT = {"s007", "s009", "s012", ""}  # by the index


def train_through(data: Data, run_dir: Path, epochs: int) -> tuple[set[str], int]:
    """All epochs; the keys that were trained on, and how many bad samples were met."""
    quarantine = data.quarantine(run_dir)
    used: set[str] = set()
    loader = data.train_loader(micro_batch=BATCH, rank=0, world=1, start=0, pin_memory=False)
    for batch in itertools.islice(loader, epochs * data.train_size // BATCH):
        quarantine.add(batch.skipped)
        used |= set(batch.keys)
    return used, quarantine.count


def listed(run_dir: Path) -> dict[str, str]:
    lines = [json.loads(x) for x in (run_dir / "quarantine.jsonl").read_text().splitlines()]
    found = {line["key"]: line["reason"] for line in lines}
    assert len(found) == len(lines)  # each once
    return found


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("max_aspect", [1.0, 4.0])
def test_a_corrupt_corpus_comes_to_its_end(
    corrupt: list[str], tmp_path: Path, workers: int, max_aspect: float
) -> None:
    before = {path: Path(path).read_bytes() for path in corrupt}
    config = DataConfig(
        train=TrainSource(shards=corrupt),
        val=ValSource(shards=corrupt[0]),
        size=8,
        buckets=Buckets(max_aspect=max_aspect, step=8),
        num_workers=workers,
    )
    data = open_data(config, seed=0, batch_size=BATCH)
    assert len(data.train.index) == 57 + 9  # 3 without picture or caption; the cut shard's first 9
    used, met = train_through(data, tmp_path / "run", epochs=4)
    found = listed(tmp_path / "run")
    assert set(found) == set(EXPECTED)
    assert all(found[key].startswith(reason) for key, reason in EXPECTED.items())
    good = {f"s{n:03d}" for n in range(60)} | {f"t{n:03d}" for n in range(9)}
    assert used == good - set(EXPECTED)
    assert met >= 4 * (len(EXPECTED) - len(LEFT_OUT)) - BATCH  # at its place; more as a stand-in
    assert {path: Path(path).read_bytes() for path in corrupt} == before


def test_a_second_run_lists_nothing_twice(corrupt: list[str], tmp_path: Path) -> None:
    config = DataConfig(
        train=TrainSource(shards=corrupt), val=ValSource(shards=corrupt[0]), size=8, num_workers=0
    )
    for _ in range(2):
        train_through(open_data(config, seed=0), tmp_path / "run", epochs=2)
    assert set(listed(tmp_path / "run")) == set(EXPECTED)


@pytest.mark.parametrize("max_aspect", [1.0, 4.0])
def test_a_corrupt_cache_comes_to_its_end(
    tmp_path: Path, write_latents: Write, npy: Callable[..., bytes], max_aspect: float
) -> None:
    good = np.ones((8, 4, 6))
    bad = {
        1: {"moments.npy": npy(np.where(np.arange(6) == 3, np.nan, good))},
        2: {"moments.npy": npy(good * -np.inf)},
        3: {"moments.npy": npy(good)[:-2]},
        4: {"moments.npy": b"\x80\x04 no array"},
        5: {"txt": b"\xff"},
        6: {"moments.npy": b""},
    }
    shard = write_latents(tmp_path / "a.tar", 40, extra=lambda n: bad.get(n, {}))
    config = DataConfig(
        train=TrainSource(shards=str(shard)),
        val=ValSource(shards=str(shard)),
        format="latents",
        size=48,
        buckets=Buckets(max_aspect=max_aspect, step=8),
        num_workers=0,
    )
    data = open_data(config, seed=0, batch_size=BATCH)
    used, _ = train_through(data, tmp_path / "run", epochs=4)
    found = listed(tmp_path / "run")
    assert {key: reason.split(":")[0][:26] for key, reason in found.items()} == {
        "s001": "the moments are not finite",
        "s002": "the moments are not finite",
        "s003": "the .moments.npy member ha",
        "s004": "the .moments.npy member is",
        "s005": "the .txt member is not UTF",
        "s006": "no latent (.moments.npy or",
    }
    assert used == {f"s{n:03d}" for n in range(40)} - set(found)
