"""Do buckets, mixtures and latents keep the promise that the order has without them?

Whoever reads, with however many processes and workers, in micro-batches of any size, from whatever
point on: the same sequence of global batches.
"""

from __future__ import annotations

import itertools
import os
import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from ldm import rng
from ldm.data.buckets import Buckets
from ldm.data.settings import DataConfig, TrainSource, ValSource, WeightedSource
from ldm.data.source import Data, open_data

Write = Callable[..., Path]
BATCH = 8
UNEQUAL = (11, 7, 19, 5, 23, 2, 16)  # 83 samples in 7 shards
LAYOUTS = ("one shard", "seven shards")
KINDS = ("plain", "buckets", "mixture", "both", "latents", "latents in buckets")
QUICK = ("both", "latents in buckets")  # every mechanism once; the rest with `make test-all`
ALL = [kind if kind in QUICK else pytest.param(kind, marks=pytest.mark.slow) for kind in KINDS]


@pytest.fixture
def corpus(
    tmp_path: Path,
    write_shard: Write,
    write_latents: Write,
    png: Callable[..., bytes],
    npy: Callable[..., bytes],
) -> Callable[[str, str], Data]:
    """corpus(layout, kind): 83 samples in 1 or 7 shards, every third picture or latent wide."""

    def shards(layout: str, latents: bool, sizes: bool) -> list[str]:
        counts = (83,) if layout == "one shard" else UNEQUAL
        write = write_latents if latents else write_shard

        def extra(n: int) -> dict[str, bytes]:
            if latents:
                shape = (2, 2, 8) if sizes and n % 3 == 0 else (2, 4, 4)
                return {"moments.npy": npy(torch.full(shape, n / 8).numpy())}
            return {"png": png(n, width=48 if n % 3 == 0 else 12), "json": b"{}"}

        folder = tmp_path / f"{layout}-{latents}-{sizes}"
        return [
            str(write(folder / f"{n}.tar", count, prefix="abcdefg"[n], extra=extra))
            for n, count in enumerate(counts)
        ]

    def opened(layout: str, kind: str, *, seed: int = 0, batch_size: int = BATCH) -> Data:
        listed = shards(layout, "latents" in kind, "buckets" in kind)
        train: Any = TrainSource(shards=listed)
        if kind in ("mixture", "both"):
            more = tmp_path / "more" / "z.tar"
            if not more.exists():
                write_shard(more, 29, prefix="z")
            train = [WeightedSource(shards=listed, weight=2.0), WeightedSource(shards=str(more))]
        config = DataConfig(
            train=train,
            val=ValSource(shards=listed[0]),
            format="latents" if "latents" in kind else "images",
            size=16,
            crop="center" if "latents" in kind else "random",
            buckets=Buckets(max_aspect=6.0 if kind == "both" or "buckets" in kind else 1.0, step=8),
            num_workers=0,
        )
        return open_data(config, seed=seed, batch_size=batch_size)

    return opened


Row = tuple[str, str, tuple[int, ...], bytes]


def rows(
    data: Data,
    count: int,
    *,
    world: int = 1,
    workers: int = 0,
    start: int = 0,
    micro_batch: int = BATCH,
) -> list[tuple[int, Row]]:
    """(i, what is read) of `count` global batches by i, read by `world` ranks one after another."""
    object.__setattr__(data.config, "num_workers", workers)
    found: list[tuple[int, Row]] = []
    for rank in range(world):
        loader = data.train_loader(
            micro_batch=micro_batch, rank=rank, world=world, start=start, pin_memory=False
        )
        for batch in itertools.islice(loader, count * BATCH // micro_batch):
            values = batch.pixels if hasattr(batch, "pixels") else batch.moments
            for n, i in enumerate(batch.index.tolist()):
                row = (batch.keys[n], batch.captions[n], tuple(values[n].shape))
                found.append((i, (*row, values[n].numpy().tobytes())))
    return sorted(found)


@pytest.fixture
def many_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))


@pytest.mark.parametrize("kind", ALL)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_two_epochs_are_the_same_whoever_reads(
    corpus: Callable[..., Data], layout: str, kind: str, many_cores: None
) -> None:
    data = corpus(layout, kind)
    count = -(-2 * data.train_size // BATCH)
    straight = rows(data, count)
    assert [i for i, _ in straight] == list(range(count * BATCH))
    assert rows(data, count, workers=2) == straight
    assert rows(data, count, world=2, workers=1) == straight
    assert rows(data, count, world=4) == straight
    assert rows(data, count, micro_batch=4) == straight  # accumulation 2
    assert rows(data, count, world=2, micro_batch=2) == straight  # accumulation 4


@pytest.mark.parametrize("kind", ALL)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_resume_at_twenty_random_points(
    corpus: Callable[..., Data], layout: str, kind: str
) -> None:
    straight = rows(corpus(layout, kind), 30)
    resumed = corpus(layout, kind)  # opened anew, as a restarted run does
    draw = random.Random(0)
    for _ in range(20):
        batch = draw.randrange(0, 29)
        world = draw.choice([1, 2])  # from 2 ranks to 1 and from 1 to 2
        got = rows(resumed, 1, start=batch * BATCH, world=world)
        assert got == straight[batch * BATCH : (batch + 1) * BATCH]


@pytest.mark.parametrize(("before", "after"), [(2, 1), (1, 2)])
@pytest.mark.parametrize("kind", ALL)
def test_resume_on_other_processes_mid_epoch(
    corpus: Callable[..., Data], kind: str, before: int, after: int
) -> None:
    data = corpus("seven shards", kind)
    straight = rows(data, 12)
    got = rows(data, 5, world=before) + rows(data, 7, world=after, start=5 * BATCH)
    assert got == straight


@pytest.mark.parametrize("kind", ALL)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_each_sample_exactly_once_an_epoch(
    corpus: Callable[..., Data], layout: str, kind: str
) -> None:
    """Of its line: 20 epochs, so that what is left over each time is found to come in the end."""
    data = corpus(layout, kind)
    index, order = data.train.index, data.train.order
    seen: Counter[tuple[int, str, str]] = Counter()
    for i in range(20 * data.train_size):
        epoch, shard, n = order.at(i)
        seen[epoch, index.shards[shard], index.key(shard, n)] += 1
    assert set(seen.values()) == {1}
    expected = {
        (index.shards[s], index.key(s, n)) for s, c in enumerate(index.sizes) for n in range(c)
    }
    first = {(shard, key) for epoch, shard, key in seen if epoch == 0}
    assert first == expected
    if kind in ("plain", "latents"):
        assert data.train_size == 83
        assert len(seen) == 20 * 83
    elif "buckets" in kind:
        rest = sum(bucket["rest"] for bucket in data.order_spec["buckets"])
        assert data.train_size + rest == 83
        assert rest < BATCH * len(data.order_spec["buckets"])


@pytest.mark.parametrize("kind", ["buckets", "both", "latents in buckets"])
def test_batches_are_homogeneous_on_every_rank(corpus: Callable[..., Data], kind: str) -> None:
    found = rows(corpus("seven shards", kind), 24, world=2)
    shapes = [{row[2] for _, row in found[k * BATCH : (k + 1) * BATCH]} for k in range(24)]
    assert all(len(of_batch) == 1 for of_batch in shapes)
    assert len(set().union(*shapes)) == 2


@pytest.mark.parametrize(("batch_size", "misses"), [(4, 0), (8, 6)])
@pytest.mark.parametrize("kind", ["plain", "buckets", "latents in buckets"])
def test_every_sample_meets_every_time_stratum(
    corpus: Callable[..., Data], kind: str, batch_size: int, misses: int
) -> None:
    """Place j of batch k is stratum pi_k(j) of B: within 50 epochs a sample meets all of them.

    By chance 83 B (1 - 1/B)^50 pairs are missing: 0.0002 of 332 for B = 4, 0.8 of 664 for B = 8.
    If samples kept their place in the batch it would be most of them.
    """
    data = corpus("one shard", kind, batch_size=batch_size)
    index, order = data.train.index, data.train.order
    strata: dict[str, set[int]] = {}
    for k in range(50 * data.train_size // batch_size):
        places = rng.permutation(0, "place", k, batch_size).tolist()
        for j in range(batch_size):
            key = index.key(*order.at(k * batch_size + j)[1:])
            strata.setdefault(key, set()).add(places[j])
    assert len(strata) == 83
    assert sum(batch_size - len(met) for met in strata.values()) <= misses


@pytest.mark.parametrize("kind", ALL)
def test_seeds_are_different_orders(corpus: Callable[..., Data], kind: str) -> None:
    keys = [
        tuple(row[0] for _, row in rows(corpus("seven shards", kind, seed=seed), 4))
        for seed in (0, 1, 0)
    ]
    assert keys[0] == keys[2] != keys[1]


@pytest.mark.parametrize("kind", ALL)
def test_far_ahead_is_as_cheap_as_near(corpus: Callable[..., Data], kind: str) -> None:
    data = corpus("seven shards", kind)
    start = 10**9 * BATCH
    assert [i for i, _ in rows(data, 1, start=start)] == list(range(start, start + BATCH))
