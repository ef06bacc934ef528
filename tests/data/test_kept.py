"""Are pictures decoded once where all fit, and the batches the same as ever?"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from ldm.data import examples
from ldm.data.buckets import Buckets
from ldm.data.settings import DataConfig, TrainSource, ValSource
from ldm.data.source import Data, open_data
from ldm.types import ImageBatch

SIDE = 8
COUNT = 12


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> Counter[bytes]:
    """How often each file was opened, in this process."""
    counted: Counter[bytes] = Counter()
    plain = examples.open_picture

    def opened(data: bytes, **options: int) -> object:
        counted[data] += 1
        return plain(data, **options)

    monkeypatch.setattr(examples, "open_picture", opened)
    return counted


@pytest.fixture
def opened(tmp_path: Path, write_shard: Callable[..., Path]) -> Callable[..., Data]:
    """opened(keep_mib=…): 12 training pictures of 12 px, and 4 others."""
    train, val = (tmp_path / f"{name}.tar" for name in ("train", "val"))
    write_shard(train, count=COUNT)
    write_shard(val, count=4, prefix="v")

    def make(**values: object) -> Data:
        config = DataConfig(
            train=TrainSource(shards=str(train)),
            val=ValSource(shards=str(val)),
            **{"size": SIDE, "num_workers": 0} | values,  # type: ignore[arg-type]
        )
        return open_data(config, seed=0, batch_size=4)

    return make


def batches(data: Data, count: int = 9) -> list[ImageBatch]:
    """Three epochs."""
    loader = data.train_loader(micro_batch=4, rank=0, world=1, start=0, pin_memory=False)
    return list(itertools.islice(loader, count))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "values", [{}, {"flip": 0.5}, {"size": 64, "buckets": Buckets(max_aspect=2.0, step=32)}]
)
def test_what_is_kept_makes_the_same_batches(
    opened: Callable[..., Data], decoded: Counter[bytes], values: dict[str, object]
) -> None:
    kept = batches(opened(**values))
    assert len(decoded) == COUNT
    assert set(decoded.values()) == {1}
    again = batches(opened(keep_mib=0, **values))
    assert set(decoded.values()) == {4}  # three visits more
    for one, other in zip(kept, again, strict=True):
        assert torch.equal(one.levels, other.levels)
        assert one.keys == other.keys
        assert one.original_size == other.original_size
        assert one.crop == other.crop
    if values.get("flip"):
        first: dict[str, torch.Tensor] = {}
        pairs = [pair for batch in kept for pair in zip(batch.keys, batch.levels, strict=True)]
        turned = [not torch.equal(first.setdefault(key, row), row) for key, row in pairs]
        assert any(turned)
        assert not all(turned[COUNT:])


@pytest.mark.parametrize("values", [{"crop": "random"}, {"max_zoom": 1.5}, {"size": 2000}])
def test_what_changes_or_does_not_fit_is_decoded_again(
    opened: Callable[..., Data], decoded: Counter[bytes], values: dict[str, object]
) -> None:
    """12 pictures of 2,000 px are 137 MiB."""
    assert opened().train.examples.kept is not None
    data = opened(**values)
    assert data.train.examples.kept is None
    if values.get("size") != 2000:
        batches(data)
        assert set(decoded.values()) == {3}
    assert opened(size=2000, keep_mib=138).train.examples.kept is not None


def test_validation_keeps_nothing(opened: Callable[..., Data], decoded: Counter[bytes]) -> None:
    data = opened()
    for _ in range(2):
        list(data.val_loader(batch_size=4, limit=0, rank=0, world=1))
    assert set(decoded.values()) == {2}
    assert len(data.train.examples.kept) == 0


def test_a_kept_picture_is_its_own_and_nobody_writes_into_it(opened: Callable[..., Data]) -> None:
    reader = opened().train
    shown = reader.example(0).shown
    assert reader.example(0).shown is shown
    pixels = shown.pixels
    assert pixels.base is None
    assert pixels.nbytes == SIDE * SIDE * 3
    with pytest.raises(ValueError, match="read-only"):
        pixels[0, 0, 0] = 1
    batch = reader.batch(torch.tensor([0]))
    before = np.array(pixels)
    batch.levels.zero_()  # a copy
    assert np.array_equal(reader.example(0).shown.pixels, before)


def test_a_broken_picture_is_told_at_every_visit(
    tmp_path: Path, write_tar: Callable[..., Path], png: Callable[..., bytes]
) -> None:
    pictures = [png(n) for n in range(4)]
    pictures[2] = pictures[2][:-40]
    members = [
        (f"{n}.{e}", d) for n, p in enumerate(pictures) for e, d in (("png", p), ("txt", b"a"))
    ]
    shard = write_tar(tmp_path / "s.tar", members)
    source = TrainSource(shards=str(shard))
    config = DataConfig(train=source, val=ValSource(shards=str(shard)), size=SIDE, num_workers=0)
    found = batches(open_data(config, seed=0), 3)
    assert [[bad.key for bad in batch.skipped] for batch in found] == [["2"]] * 3
