"""Does the stream mode give endless, well-mixed batches from pipes that are never stored?"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from ldm.data.examples import Examples
from ldm.data.filters import parse_filter
from ldm.data.loader import Share, Workers, wrap
from ldm.data.locate import expand
from ldm.data.stream import StreamBatches, StreamReader
from ldm.data.transforms import Transform
from ldm.types import ImageBatch

Write = Callable[..., Path]
EXAMPLES = Examples(transform=Transform(size=8, crop="random"), seed=0)


def batches(reader: StreamReader, count: int, share: Share, workers: int = 0) -> list[ImageBatch]:
    loader = wrap(StreamBatches(reader, share), Workers(count=workers))
    return list(itertools.islice(loader, count))


@pytest.fixture
def reader(three_shards: list[str]) -> StreamReader:
    pipes = expand([f"pipe:cat {shard}" for shard in three_shards])
    return StreamReader(shards=tuple(pipes), examples=EXAMPLES, buffer=20)


def test_every_sample_comes_and_numbers_are_those_of_the_order(reader: StreamReader) -> None:
    got = batches(reader, 60, Share(micro_batch=8))
    assert [i for batch in got for i in batch.index.tolist()] == list(range(480))
    assert len({key for batch in got for key in batch.keys}) == 37
    assert got[0].keys != got[1].keys


def test_ranks_and_restarts_get_other_samples(reader: StreamReader) -> None:
    first = batches(reader, 4, Share(micro_batch=8, world=2))
    other = batches(reader, 4, Share(micro_batch=8, world=2, rank=1))
    later = batches(reader, 4, Share(micro_batch=8, world=2, start=32))
    assert [b.index.tolist() for b in other[:1]] == [[1, 3, 5, 7]]
    assert len({tuple(b.keys for b in run) for run in (first, other, later)}) == 3
    again = batches(reader, 4, Share(micro_batch=8, world=2))
    assert [b.keys for b in again] == [b.keys for b in first]


def test_workers_stream_side_by_side(reader: StreamReader) -> None:
    got = batches(reader, 4, Share(micro_batch=8), workers=2)
    assert sorted(i for batch in got for i in batch.index.tolist()) == list(range(32))


def test_filters_act_on_the_way(reader: StreamReader) -> None:
    rules = parse_filter({"number": "<3"})
    filtered = StreamReader(shards=reader.shards, examples=EXAMPLES, buffer=5, rules=rules)
    keys = {key for batch in batches(filtered, 10, Share(micro_batch=8)) for key in batch.keys}
    assert keys == {f"{prefix}00{n}" for prefix in "abc" for n in range(3)}


def test_bad_samples_and_shards_are_replaced_and_told(
    tmp_path: Path, write_shard: Write, three_shards: list[str]
) -> None:
    bad = write_shard(tmp_path / "bad.tar", 4, extra=lambda n: {"png": b"broken"} if n else {})
    no_tar = tmp_path / "no.tar"
    no_tar.write_text(json.dumps({"not": "a tar"}) * 100)
    reader = StreamReader(
        shards=(str(bad), str(no_tar), *three_shards), examples=EXAMPLES, buffer=20
    )
    got = batches(reader, 30, Share(micro_batch=8))
    assert all(len(batch) == 8 for batch in got)
    skipped = {(item.shard, item.key) for batch in got for item in batch.skipped}
    assert {(str(bad), f"s00{n}") for n in (1, 2, 3)} <= skipped
    assert (str(no_tar), "") in skipped


def test_nothing_but_bad_data_is_an_error(tmp_path: Path) -> None:
    no_tar = tmp_path / "no.tar"
    no_tar.write_text("x" * 2000)
    reader = StreamReader(shards=(str(no_tar),), examples=EXAMPLES, buffer=4)
    with pytest.raises(RuntimeError, match="in a row cannot be used"):
        batches(reader, 1, Share(micro_batch=2))
