"""Does `scripts/train.py` finish on a corrupt corpus, with exact counts and untouched files?"""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ldm.data.settings import DataConfig, TrainSource, ValSource
from ldm.data.source import open_data

Write = Callable[..., Path]
BATCH, SAMPLES = 8, 200
RUN = (
    "data.size=16",
    "data.num_workers=1",
    "data.max_bad_ratio=1",
    f"training.max_samples={SAMPLES}",
)


def bomb(side: int) -> bytes:
    """A small PNG that says it has side x side pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        crc = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + crc

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"x"))


@pytest.fixture
def pictures(tmp_path: Path, write_tar: Write, png: Callable[..., bytes]) -> list[Path]:
    """60 samples, 10 of them unusable, and a shard of 12 that is cut off in its tenth."""
    wrong: dict[int, dict[str, bytes]] = {
        3: {"png": b"", "txt": b"zero-byte picture"},
        4: {"png": png(4), "txt": b""},
        5: {"jpg": png(5), "txt": b"a PNG that is called .jpg: good"},
        6: {"jpg": b"a text that is called .jpg", "txt": b"x"},
        7: {"gif": b"GIF89a", "txt": b"not a picture that is read"},
        8: {"png": bomb(12_000), "txt": b"above data.max_pixels"},
        9: {"png": png(9)},
        10: {"png": png(10), "txt": b"caf\xe9"},
        11: {"png": png(11)[:60], "txt": b"cut off"},
        12: {"txt": b"no picture"},
        13: {"png": bomb(20_000), "txt": b"above what Pillow opens"},
    }
    members = [
        (f"s{n:03d}.{ext}", data)
        for n in range(60)
        for ext, data in wrong.get(n, {"png": png(n), "txt": b"fine"}).items()
    ]
    whole = [
        (f"t{n:03d}.{ext}", d) for n in range(12) for ext, d in (("png", png(n)), ("txt", b"x"))
    ]
    cut = write_tar(tmp_path / "shards" / "cut.tar", whole)
    inside = cut.read_bytes().index(b"t009.png") + 512 + 100  # in the picture of the tenth
    cut.write_bytes(cut.read_bytes()[:inside])
    return [write_tar(tmp_path / "shards" / "damaged.tar", members), cut]


@pytest.fixture
def latents(tmp_path: Path, write_latents: Write, npy: Callable[..., bytes]) -> list[Path]:
    """40 cached samples, 6 of them unusable, two by what is in their arrays."""
    good = np.random.default_rng(0).standard_normal((8, 4, 4))
    bad = {
        1: {"moments.npy": npy(np.where(np.arange(4) == 3, np.nan, good))},
        2: {"moments.npy": npy(good * -np.inf)},
        3: {"moments.npy": npy(good)[:-2]},
        4: {"moments.npy": b"\x80\x04 no array"},
        5: {"txt": b"\xff"},
        6: {"moments.npy": b""},
    }
    shard = tmp_path / "shards" / "cache.tar"
    return [write_latents(shard, 40, shape=(8, 4, 4), extra=lambda n: bad.get(n, {}))]


OF_PICTURES = {
    "s003": "the image cannot be decoded",
    "s004": "the caption is empty",
    "s006": "the image cannot be decoded",
    "s007": "no picture",
    "s008": "the image is 12000x12000, above max_pixels",
    "s009": "no caption",
    "s010": "the .txt member is not UTF-8",
    "s011": "the image cannot be decoded",
    "s012": "no picture",
    "s013": "the image cannot be decoded: DecompressionBombError",
    "": "the shard is cut off",
}
OF_LATENTS = {
    "s001": "the moments are not finite",
    "s002": "the moments are not finite",
    "s003": "the .moments.npy member ha",
    "s004": "the .moments.npy member is",
    "s005": "the .txt member is not UTF-8",
    "s006": "no latent",
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("corpus", "kind", "expected"),
    [("pictures", "images", OF_PICTURES), ("latents", "latents", OF_LATENTS)],
)
def test_a_run_on_a_corrupt_corpus_ends_well(
    request: pytest.FixtureRequest,
    script: Callable[..., Any],
    tmp_path: Path,
    metrics: Callable[[Path], list[dict[str, float]]],
    document: Callable[[Path], dict[str, Any]],
    corpus: str,
    kind: str,
    expected: dict[str, str],
) -> None:
    shards: list[Path] = request.getfixturevalue(corpus)
    before = [shard.read_bytes() for shard in shards]
    run_dir = tmp_path / "run"
    where = (f"data.train.shards={tmp_path / 'shards'}", f"data.val.shards={shards[0]}")
    done = script("train", *RUN, *where, f"data.format={kind}", f"run_dir={run_dir}", cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    assert document(run_dir)["samples_seen"] == SAMPLES
    assert [shard.read_bytes() for shard in shards] == before

    lines = (run_dir / "quarantine.jsonl").read_text().splitlines()
    listed = {line["key"]: line["reason"] for line in map(json.loads, lines)}
    assert len(lines) == len(listed) == len(expected)  # each once, whether or how often it was met
    assert set(listed) == set(expected)
    assert all(listed[key].startswith(reason) for key, reason in expected.items())

    config = DataConfig(
        train=TrainSource(shards=[str(shard) for shard in sorted(shards)]),
        val=ValSource(shards=str(shards[0])),
        format=kind,  # type: ignore[arg-type]
        size=16,
        num_workers=0,
    )
    met = open_data(config, seed=0, batch_size=BATCH).train.batch(torch.arange(SAMPLES)).skipped
    assert metrics(run_dir)[-1]["skipped"] == len(met) > 0
