"""Is the sequence of batches the same whoever reads it, and from wherever it goes on?"""

from __future__ import annotations

import itertools
import os
import random
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from ldm.data.captions import Captions
from ldm.data.examples import Examples
from ldm.data.loader import (
    BatchStream,
    EvalStream,
    Share,
    Workers,
    make_eval_loader,
    make_loader,
    worker_number,
)
from ldm.data.order import Order, Sequential
from ldm.data.reader import Reader
from ldm.data.shards import build_index, expand
from ldm.data.transforms import Transform
from ldm.types import ImageBatch, Skipped

Write = Callable[..., Path]
BATCH = 8


def reader_of(shards: list[str], *, seed: int = 0, lanes: int = 1, group: int = 0) -> Reader:
    index = build_index(shards)
    return Reader(
        index=index,
        order=Order(index.sizes, seed=seed, lanes=lanes, group=group),
        examples=Examples(
            transform=Transform(size=8, crop="random", flip=0.5, max_zoom=1.4), seed=seed
        ),
    )


@pytest.fixture
def reader(three_shards: list[str]) -> Reader:
    return reader_of(three_shards)


def rows_of(batches: list[ImageBatch]) -> dict[int, tuple[str, str, bytes]]:
    """index -> (key, caption, pixels); an index that comes twice is an error."""
    rows: dict[int, tuple[str, str, bytes]] = {}
    for batch in batches:
        for n, i in enumerate(batch.index.tolist()):
            assert i not in rows
            rows[i] = (batch.keys[n], batch.captions[n], batch.pixels[n].numpy().tobytes())
    return rows


def run(
    reader: Reader, count: int, *, world: int = 1, workers: int = 0, start: int = 0
) -> dict[int, tuple[str, str, bytes]]:
    """The samples of `count` global batches, read by `world` ranks one after the other."""
    batches: list[ImageBatch] = []
    for rank in range(world):
        loader = make_loader(
            reader,
            micro_batch=BATCH,
            rank=rank,
            world=world,
            start=start,
            workers=Workers(count=workers),
        )
        batches += itertools.islice(loader, count)
    return rows_of(batches)


@pytest.mark.parametrize(("world", "workers"), [(1, 2), (2, 1), (4, 0)])
def test_two_epochs_are_the_same_whoever_reads(
    reader: Reader, world: int, workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    count = -(-2 * 37 // BATCH)
    assert run(reader, count, world=world, workers=workers) == run(reader, count)


def test_every_sample_once_an_epoch(reader: Reader) -> None:
    rows = run(reader, -(-2 * 37 // BATCH))
    for epoch in range(2):
        keys = sorted(rows[i][0] for i in range(epoch * 37, (epoch + 1) * 37))
        assert len(set(keys)) == 37
    captions = {key: caption for key, caption, _ in rows.values()}
    assert all(caption.removeprefix("caption ")[0] == key[0] for key, caption in captions.items())


@pytest.mark.parametrize("lanes", [1, 8])
def test_resume_at_twenty_random_points(three_shards: list[str], lanes: int) -> None:
    group = 2 if lanes > 1 else 0
    reader = reader_of(three_shards, lanes=lanes, group=group)
    straight = run(reader, 40)
    draw = random.Random(0)
    for _ in range(20):
        start = draw.randrange(0, 38 * BATCH)  # any number of samples, not only whole batches
        resumed = run(reader_of(three_shards, lanes=lanes, group=group), 1, start=start)
        assert resumed == {i: straight[i] for i in range(start, start + BATCH)}


def test_resume_with_another_number_of_ranks(reader: Reader) -> None:
    straight = run(reader, 10)
    assert run(reader, 5, world=2) | run(reader, 5, world=4, start=5 * BATCH) == straight


def test_a_sample_does_not_depend_on_its_batch(reader: Reader) -> None:
    whole = rows_of([reader.batch(torch.arange(64))])
    for positions in ([63, 5, 17], [40], list(range(30, 10, -1))):
        assert rows_of([reader.batch(torch.tensor(positions))]) == {i: whole[i] for i in positions}
    key, caption, _ = whole[11]
    example = reader.example(11)
    assert (example.key, example.caption) == (key, caption)


def test_seeds_shuffle_and_crop_differently(three_shards: list[str]) -> None:
    runs = [run(reader_of(three_shards, seed=seed), 5) for seed in (0, 1, 2**32)]
    assert runs[0] != runs[1] != runs[2] != runs[0]


def test_the_same_picture_looks_different_every_epoch(reader: Reader) -> None:
    looks: dict[str, set[bytes]] = {}
    for key, _, pixels in run(reader, 37).values():  # eight epochs
        looks.setdefault(key, set()).add(pixels)
    assert min(len(seen) for seen in looks.values()) > 4


def test_the_global_generator_is_not_used(reader: Reader) -> None:
    torch.manual_seed(1)
    random.seed(1)
    before = torch.get_rng_state(), random.getstate()
    first = run(reader, 3)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert random.getstate() == before[1]
    torch.manual_seed(2)
    assert run(reader, 3) == first


@pytest.mark.slow
@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_other_ways_to_start_workers(reader: Reader, method: str) -> None:
    loader = make_loader(
        reader, micro_batch=BATCH, workers=Workers(count=1, start_method=method, prefetch=1)
    )
    batches = iter(loader)
    first = rows_of([next(batches)])
    del batches
    assert first == run(reader, 1)


def test_workers_share_whole_batches(reader: Reader, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    for worker in range(3):
        monkeypatch.setattr("ldm.data.loader.worker_number", lambda w=worker: (w, 3))
        share = Share(micro_batch=8, rank=1, world=2, start=100)
        seen.append([p.tolist() for p in itertools.islice(share.positions(), 2)])
    assert seen[0] == [[101, 103, 105, 107], [125, 127, 129, 131]]
    assert seen[1][0] == [109, 111, 113, 115]
    assert seen[2][0] == [117, 119, 121, 123]
    assert worker_number() == (0, 1)


def test_workers_are_capped_by_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 5, 6})
    assert [Workers(count=n).usable() for n in (0, 2, 3, 64)] == [0, 2, 3, 3]


@pytest.mark.parametrize(("micro_batch", "world"), [(6, 4), (0, 1), (1, 2)])
def test_ranks_must_divide_the_micro_batch(micro_batch: int, world: int) -> None:
    with pytest.raises(ValueError, match=f"micro-batch of {micro_batch} .* {world} ranks"):
        Share(micro_batch=micro_batch, world=world)


@pytest.mark.parametrize("wrong", [{"rank": 2}, {"rank": -1}, {"start": -1}])
def test_a_wrong_share_is_an_error(wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="0 <= rank < world"):
        Share(micro_batch=8, world=2, **wrong)


def test_pinned_and_moved_batches_keep_their_rows(reader: Reader) -> None:
    batch = reader.batch(torch.arange(3))
    moved = batch.to("cpu")
    assert rows_of([moved]) == rows_of([batch])
    assert batch.original_size == ((12, 12),) * 3


# -- samples that cannot be used ----------------------------------------------------------------


def bad_shard(tmp_path: Path, write_shard: Write) -> str:
    wrong = {
        3: {"png": b"not a picture"},
        8: {"txt": b"\xff\xfe"},
        9: {"txt": b"   "},
        20: {"png": b""},  # missing: left out of the index
    }
    return str(write_shard(tmp_path / "bad.tar", 24, extra=lambda n: wrong.get(n, {})))


def test_a_bad_sample_keeps_its_position(tmp_path: Path, write_shard: Write) -> None:
    shard = bad_shard(tmp_path, write_shard)
    reader = reader_of([shard], lanes=4)
    assert len(reader.order) == 23
    order = reader.order
    bad_keys = {"s003", "s008", "s009"}
    batch = reader.batch(torch.arange(23))
    assert {bad.key for bad in batch.skipped} == bad_keys
    assert all(
        isinstance(bad, Skipped) and bad.shard == shard and bad.reason for bad in batch.skipped
    )
    for i, key in enumerate(batch.keys):
        attempts = (order.at(i, attempt) for attempt in range(23))
        first_good = next(
            k for k in (reader.index.key(s, n) for _, s, n in attempts) if k not in bad_keys
        )
        assert key == first_good


def test_stand_ins_are_the_same_whoever_reads(tmp_path: Path, write_shard: Write) -> None:
    reader = reader_of([bad_shard(tmp_path, write_shard)], lanes=4)
    assert run(reader, 9, world=4) == run(reader, 9)
    assert run(reader, 4, start=40) == {k: v for k, v in run(reader, 9).items() if 40 <= k < 72}


def test_a_stand_in_draws_its_own_numbers(tmp_path: Path, write_shard: Write) -> None:
    """It is shown as sample i, so not cropped like the same picture at its own position."""
    reader = reader_of([bad_shard(tmp_path, write_shard)])
    batch = reader.batch(torch.arange(23))
    twice = [key for key in set(batch.keys) if batch.keys.count(key) > 1]
    assert twice
    for key in twice:
        looks = {
            batch.pixels[n].numpy().tobytes() for n, other in enumerate(batch.keys) if other == key
        }
        assert len(looks) > 1


def test_data_without_any_good_picture_stop_at_once(tmp_path: Path, write_shard: Write) -> None:
    shard = write_shard(tmp_path / "x.tar", 70, extra=lambda n: {"png": b"broken"})
    with pytest.raises(RuntimeError, match=r"64 samples in a row cannot be used.*s0.*decoded"):
        reader_of([str(shard)]).batch(torch.arange(2))


def test_too_large_pictures_are_skipped(tmp_path: Path, write_shard: Write, png: Write) -> None:
    shard = write_shard(
        tmp_path / "x.tar", 9, extra=lambda n: {"png": png(n, width=40)} if n == 4 else {}
    )
    index = build_index([str(shard)])
    reader = Reader(
        index=index,
        order=Order(index.sizes, seed=0),
        examples=Examples(transform=Transform(size=8), seed=0, max_pixels=200),
    )
    (bad,) = reader.batch(torch.arange(9)).skipped
    assert (bad.key, bad.reason) == ("s004", "the image is 40x12, above max_pixels=200")


def test_one_of_several_captions_by_visit(tmp_path: Path, write_shard: Write) -> None:
    shard = write_shard(
        tmp_path / "x.tar", 4, extra=lambda n: {"json": b'{"captions": ["a", "b", "c"]}'}
    )
    captions = Captions(key="captions")
    index = build_index([str(shard)], captions=captions)
    reader = Reader(
        index=index,
        order=Order(index.sizes, seed=0),
        examples=Examples(transform=Transform(size=8), seed=0, captions=captions),
    )
    seen = reader.batch(torch.arange(300)).captions
    assert min(seen.count(text) for text in "abc") > 70  # 100 each, standard deviation 8
    assert reader.batch(torch.tensor([299, 7])).captions == (seen[299], seen[7])


# -- validation ---------------------------------------------------------------------------------


def evaluation(reader: Reader) -> Reader:
    return Reader(
        index=reader.index,
        order=Sequential(reader.index.sizes),
        examples=Examples(transform=Transform(size=8), seed=0),
    )


@pytest.mark.parametrize("world", [1, 2, 5])
@pytest.mark.parametrize("limit", [0, 1, 12, 36, 1000])
def test_evaluation_reads_each_sample_once(reader: Reader, world: int, limit: int) -> None:
    val = evaluation(reader)
    total = min(limit or 37, 37)
    per_rank = [
        list(make_eval_loader(val, batch_size=4, limit=limit, rank=rank, world=world))
        for rank in range(world)
    ]
    shapes = {tuple(len(batch) for batch in batches) for batches in per_rank}
    assert len(shapes) == 1  # as many steps and rows on every rank, so no collective waits
    rows = rows_of([batch for batches in per_rank for batch in batches])
    counted = {i: row for i, row in rows.items() if i < total}
    assert sorted(counted) == list(range(total))
    assert len(rows) - total < world
    keys = [val.index.key(*val.order.at(i)[1:]) for i in range(total)]
    assert [counted[i][0] for i in range(total)] == keys


def test_evaluation_is_the_same_with_workers(reader: Reader) -> None:
    val = evaluation(reader)
    alone = rows_of(list(make_eval_loader(val, batch_size=4)))
    assert rows_of(list(make_eval_loader(val, batch_size=4, workers=Workers(count=2)))) == alone
    assert rows_of(list(make_eval_loader(val, batch_size=4))) == alone  # and a second time


def test_evaluation_knows_its_length(reader: Reader) -> None:
    stream = EvalStream(reader=evaluation(reader), batch_size=4, limit=10, world=2)
    assert len(stream) == len(list(stream)) == 2
    with pytest.raises(ValueError, match="batch_size=0"):
        EvalStream(reader=evaluation(reader), batch_size=0)


def test_a_stream_has_no_length(reader: Reader) -> None:
    """Lightning would end an epoch there and begin again with the same samples."""
    with pytest.raises(TypeError):
        len(BatchStream(reader, Share(micro_batch=4)))  # type: ignore[arg-type]


@pytest.mark.real_data
def test_real_shards_resume_and_scale() -> None:
    shards = expand(os.environ["LDM_REAL_DATA"] + "/emoji64")
    reader = reader_of(shards)
    straight = run(reader, 12, start=6200)  # across the end of an epoch
    assert run(reader, 12, world=2, workers=1, start=6200) == straight
    assert run(reader, 4, start=6200 + 8 * BATCH).items() <= straight.items()
