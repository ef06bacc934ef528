"""Do buckets and mixtures give the order that the design states, and whole batches of one size?"""

from __future__ import annotations

import itertools
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ldm import rng
from ldm.data.buckets import Buckets
from ldm.data.order import Order
from ldm.data.settings import DataConfig, TrainSource, ValSource
from ldm.data.source import Data, open_data
from ldm.types import ImageBatch

Write = Callable[..., Path]
BATCH = 8
SHAPES = [(12, 12), (12, 18), (18, 12), (13, 12), (12, 60)]  # height, width of sample n mod 5


@pytest.fixture
def mixed_shards(tmp_path: Path, write_shard: Write, png: Callable[..., bytes]) -> list[str]:
    """90 pictures of five sizes in shards of 41, 30 and 19."""

    def extra(n: int) -> dict[str, bytes]:
        height, width = SHAPES[n % 5]
        return {"png": png(n, height=height, width=width), "json": b"{}"}

    counts = {"a": 41, "b": 30, "c": 19}
    return [
        str(write_shard(tmp_path / "mixed" / f"{name}.tar", count, prefix=name, extra=extra))
        for name, count in counts.items()
    ]


def opened(
    train: Any,
    *,
    batch_size: int | None = BATCH,
    seed: int = 0,
    max_aspect: float = 2.0,
    **more: Any,
) -> Data:
    val = more.pop("val", ValSource())
    listed = isinstance(train, list) and isinstance(train[0], (TrainSource, dict))
    config = DataConfig(
        train=train if listed else TrainSource(shards=train),
        val=val,
        size=more.pop("size", 16),
        buckets=Buckets(max_aspect=max_aspect, step=more.pop("step", 8)),
        num_workers=0,
        **more,
    )
    return open_data(config, seed=seed, batch_size=batch_size)


def batches(
    data: Data, count: int, *, micro_batch: int = BATCH, start: int = 0
) -> list[ImageBatch]:
    loader = data.train_loader(
        micro_batch=micro_batch, rank=0, world=1, start=start, pin_memory=False
    )
    return list(itertools.islice(loader, count))


def number_of(key: str) -> int:
    return int(key[1:])


# -- buckets --------------------------------------------------------------------------------------


def test_batches_are_of_one_size_and_samples_in_their_own(mixed_shards: list[str]) -> None:
    """17 pictures, those with n mod 5 = 4, are nearest to 8x32, 73 to the square, none to 32x8."""
    data = opened(mixed_shards, max_aspect=6.0, val=ValSource(shards=mixed_shards[2]))
    assert Buckets(max_aspect=6.0, step=8).sizes(16) == [(32, 8), (16, 16), (8, 32)]
    shapes = Counter()
    for batch in batches(data, len(data.train.order) // BATCH):
        height, width = batch.pixels.shape[2:]
        assert batch.pixels.shape[:2] == (BATCH, 3)
        for key in batch.keys:
            wide = number_of(key) % 5 == 4
            assert (height, width) == ((8, 32) if wide else (16, 16))
        shapes[height, width] += BATCH
    assert shapes == {(16, 16): 72, (8, 32): 16}  # of 73 and 17


@pytest.mark.parametrize("seed", [0, 7])
def test_the_bucket_of_a_batch_is_a_keyed_permutation(mixed_shards: list[str], seed: int) -> None:
    """The rule of the design, written out with lists."""
    val = ValSource(shards=mixed_shards[2])
    data = opened(mixed_shards, max_aspect=6.0, seed=seed, val=val)
    index = data.train.index
    members: dict[int, list[list[str]]] = {0: [], 1: []}  # bucket -> keys by shard
    for number, count in enumerate((41, 30, 19)):
        keys = [f"{'abc'[number]}{n:03d}" for n in range(count)]
        for bucket in members:
            members[bucket].append([k for k in keys if (number_of(k) % 5 == 4) == bool(bucket)])
    lines = [Order([len(keys) for keys in members[b]], seed=seed) for b in (0, 1)]
    copies = [73 // BATCH, 17 // BATCH]
    used = [0, 0]
    expected = []
    for epoch in range(3):
        turns = rng.permutation(seed, "bucket order", epoch, sum(copies)).tolist()
        for turn in turns:
            bucket = int(turn >= copies[0])
            places = [lines[bucket].at(used[bucket] + j) for j in range(BATCH)]
            used[bucket] += BATCH
            expected += [members[bucket][shard][n] for _, shard, n in places]
    total = 3 * sum(copies) * BATCH
    got = [index.key(*data.train.order.at(i)[1:]) for i in range(total)]
    assert got == expected


def test_each_sample_once_an_epoch_but_for_the_counted_rest(mixed_shards: list[str]) -> None:
    data = opened(mixed_shards, max_aspect=6.0, val=ValSource(shards=mixed_shards[2]))
    spec = data.spec()
    assert spec["buckets"] == [
        {"height": 16, "width": 16, "rest": 1},
        {"height": 8, "width": 32, "rest": 1},
    ]
    assert spec["turns"] == [9, 2]
    assert (spec["block"], data.train_size) == (BATCH, 88)
    epoch = [key for batch in batches(data, 11) for key in batch.keys]
    assert len(set(epoch)) == 88
    left = {f"{p}{n:03d}" for p, c in (("a", 41), ("b", 30), ("c", 19)) for n in range(c)}
    left -= set(epoch)
    assert len(left) == 2
    following = [key for batch in batches(data, 11, start=88) for key in batch.keys]
    first = [
        next(k for k in following if (number_of(k) % 5 == 4) == wide) for wide in (True, False)
    ]
    assert set(first) == left  # what was left comes first in the next epoch


def test_a_bucket_smaller_than_a_batch_joins_its_neighbour(
    mixed_shards: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO"):
        data = opened(
            mixed_shards, max_aspect=6.0, batch_size=20, val=ValSource(shards=mixed_shards[2])
        )
    assert "17 samples of sizes with less than a batch joined the nearest" in caplog.text
    assert set(data.train.shapes) == {(16, 16)}
    assert (data.train_size, data.order_spec["buckets"][0]["rest"]) == (80, 10)
    keys = {key for batch in batches(data, 9, micro_batch=20) for key in batch.keys}
    assert len(keys) == 90


def test_too_few_samples_for_one_batch_is_an_error(mixed_shards: list[str]) -> None:
    with pytest.raises(ValueError, match=r"90 training samples fill no batch of 91"):
        opened(mixed_shards, batch_size=91, val=ValSource(shards=mixed_shards[2]))


def test_buckets_need_the_batch_size(mixed_shards: list[str]) -> None:
    with pytest.raises(ValueError, match=r"batch_size=…"):
        opened(mixed_shards, batch_size=None)


def test_a_micro_batch_may_not_hold_two_sizes(mixed_shards: list[str]) -> None:
    data = opened(mixed_shards, max_aspect=6.0)
    whole = batches(data, 4)
    halves = batches(data, 8, micro_batch=4)
    assert [k for b in whole for k in b.keys] == [k for b in halves for k in b.keys]
    for micro_batch, start in ((16, 0), (3, 0), (8, 4)):
        with pytest.raises(ValueError, match="does not lie inside the batches of 8"):
            batches(data, 1, micro_batch=micro_batch, start=start)


def test_validation_is_on_squares(mixed_shards: list[str]) -> None:
    data = opened(mixed_shards, max_aspect=6.0, val=ValSource(shards=mixed_shards[2]))
    (batch,) = data.val_loader(batch_size=19, limit=0, rank=0, world=1)
    assert batch.pixels.shape == (19, 3, 16, 16)


def test_one_means_the_order_without_buckets(mixed_shards: list[str]) -> None:
    plain = opened(mixed_shards, max_aspect=1.0)
    assert plain.train.shapes == ()
    assert isinstance(plain.train.order, Order)
    assert set(plain.order_spec) == {"group", "lanes", "sizes"}


def test_the_step_decides_the_sizes(mixed_shards: list[str]) -> None:
    data = opened(mixed_shards, max_aspect=2.0, step=4)
    assert set(data.train.shapes) == {(16, 16), (12, 20), (20, 12)}
    assert all(side % 4 == 0 for shape in data.train.shapes for side in shape)
    assert max(w / h for h, w in data.train.shapes) <= 2.0


def test_filters_and_the_held_out_stay_out_of_the_buckets(
    tmp_path: Path, write_shard: Write, png: Callable[..., bytes]
) -> None:
    def extra(n: int) -> dict[str, bytes]:
        wide = png(n, width=40 if n % 2 else 12)
        return {"png": wide, "json": json.dumps({"number": n}).encode()}

    shard = str(write_shard(tmp_path / "x.tar", 60, extra=extra))
    data = opened(shard, max_aspect=6.0, filter={"number": ">=20"})
    seen = {key for batch in batches(data, 12) for key in batch.keys}
    assert seen == {f"s{n:03d}" for n in range(20, 59)}  # s059 is the validation sample


def test_broken_pictures_are_met_as_squares(
    tmp_path: Path, write_shard: Write, png: Callable[..., bytes]
) -> None:
    """So they come into the quarantine, and a stand-in of the same bucket takes the place."""
    bad = {3: b"broken", 5: b"no picture"}

    def extra(n: int) -> dict[str, bytes]:
        wide = png(n, width=40 if n % 2 else 12)
        return {"png": bad.get(n, wide), "json": b"{}"}

    shard = str(write_shard(tmp_path / "x.tar", 42, extra=extra))
    data = opened(shard, max_aspect=6.0, val=ValSource(shards=shard))
    found = batches(data, 5 * 3)
    assert {item.key for batch in found for item in batch.skipped} == {"s003", "s005"}
    assert {batch.pixels.shape for batch in found} == {(8, 3, 16, 16), (8, 3, 8, 32)}


def test_remote_lines_walk_their_shards_together(mixed_shards: list[str], tmp_path: Path) -> None:
    """Or the cache would have to hold as many groups as there are buckets."""
    pipes = [f"pipe:cat {shard}" for shard in mixed_shards]
    data = opened(
        pipes,
        max_aspect=6.0,
        val=ValSource(shards=pipes[2]),
        cache_dir=str(tmp_path / "c"),
        group=1,
    )
    order = data.train.order
    for _ in range(2):
        walks = [
            [shard for shard, _ in itertools.groupby(line.at(i)[1] for i in range(len(line)))]
            for line in order.lines
        ]
        assert walks[0] == walks[1]
    assert np.all([b.pixels.isfinite().all() for b in batches(data, 4)])
