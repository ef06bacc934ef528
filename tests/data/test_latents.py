"""Do cached latents arrive as they were stored, exactly and fast, and are bad ones replaced?"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import save as save_numpy

from ldm.data.buckets import Buckets
from ldm.data.latents import CERTAIN_LOGVAR, Layout
from ldm.data.reader import Reader
from ldm.data.settings import DataConfig, TrainSource, ValSource, WeightedSource
from ldm.data.source import Data, open_data
from ldm.data.tags import Tags
from ldm.types import LatentBatch

Write = Callable[..., Path]
Npy = Callable[..., bytes]


def opened(train: Any, *, seed: int = 0, batch_size: int | None = None, **more: Any) -> Data:
    source = train if isinstance(train, list) else TrainSource(shards=str(train))
    config = DataConfig(train=source, size=48, format="latents", num_workers=0, **more)
    return open_data(config, seed=seed, batch_size=batch_size)


def batches(data: Data, count: int, micro_batch: int = 8) -> list[LatentBatch]:
    loader = data.train_loader(micro_batch=micro_batch, rank=0, world=1, start=0, pin_memory=False)
    found = list(itertools.islice(loader, count))
    assert all(isinstance(batch, LatentBatch) for batch in found)
    return found


def moments_of(prefix: str, n: int, shape: tuple[int, ...] = (8, 4, 6)) -> torch.Tensor:
    values = np.random.default_rng([ord(prefix), n]).standard_normal(shape)
    return torch.from_numpy(values.astype(np.float16))


def test_moments_arrive_as_they_were_stored(tmp_path: Path, write_latents: Write) -> None:
    data = opened(write_latents(tmp_path / "a.tar", 20))
    assert data.layout == Layout("moments", (8, 4, 6), None)
    assert (data.train_size, data.val_size, data.size) == (19, 1, 48)
    for batch in batches(data, 5):
        assert batch.moments.dtype == torch.float16
        assert batch.context is None
        for n, key in enumerate(batch.keys):
            assert torch.equal(batch.moments[n], moments_of("s", int(key[1:])))
            assert batch.captions[n] == f"caption s{int(key[1:])}"
    assert data.spec()["latents"] == {"kind": "moments", "shape": [8, 4, 6]}


def test_the_order_is_that_of_the_pictures(
    tmp_path: Path, write_shard: Write, write_latents: Write
) -> None:
    """So a run on the cache sees the same captions as one on the pictures."""
    pictures = write_shard(tmp_path / "p.tar", 30)
    latents = write_latents(tmp_path / "l.tar", 30)
    config = DataConfig(train=TrainSource(shards=str(pictures)), size=8, num_workers=0)
    positions = torch.arange(60)
    one = open_data(config, seed=3).train.batch(positions)
    other = opened(latents, seed=3).train.batch(positions)
    assert (other.keys, other.captions) == (one.keys, one.captions)
    assert torch.equal(other.index, one.index)


def test_contexts_come_along(tmp_path: Path, write_latents: Write, npy: Npy) -> None:
    def context(n: int) -> dict[str, bytes]:
        return {"context.npy": npy(np.full((7, 5), n))}

    data = opened(write_latents(tmp_path / "a.tar", 12, extra=context))
    assert data.layout is not None
    assert data.layout.context == (7, 5)
    (batch,) = batches(data, 1)
    assert batch.context is not None
    assert batch.context.shape == (8, 7, 5)
    assert batch.context[:, 0, 0].tolist() == [int(key[1:]) for key in batch.keys]


@pytest.mark.parametrize("ext", ["latents.npy", "npy", "safetensors"])
@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_latents_of_others_have_no_variance(
    tmp_path: Path, write_latents: Write, npy: Npy, ext: str, dtype: type
) -> None:
    values = np.random.default_rng(0).standard_normal((12, 16, 2, 3)).astype(dtype)

    def latents(n: int) -> dict[str, bytes]:
        written = save_numpy({"latents": values[n]})
        return {"moments.npy": b"", ext: written if ext == "safetensors" else npy(values[n], dtype)}

    data = opened(write_latents(tmp_path / "a.tar", 12, extra=latents))
    assert data.layout == Layout("latents", (16, 2, 3), None)
    (batch,) = batches(data, 1)
    mean, logvar = batch.moments.chunk(2, dim=1)
    assert torch.all(logvar == CERTAIN_LOGVAR)
    rows = [int(key[1:]) for key in batch.keys]
    assert torch.equal(mean, torch.from_numpy(values[rows]))


def test_a_safetensors_member_may_hold_all(tmp_path: Path, write_latents: Write) -> None:
    def members(n: int) -> dict[str, bytes]:
        arrays = {"moments": np.full((2, 1, 1), n), "context": np.full((3, 4), -n)}
        saved = save_numpy({name: array.astype(np.float16) for name, array in arrays.items()})
        return {"moments.npy": b"", "safetensors": saved}

    # the context is inside, so the index need not ask for a member of its own
    data = opened(write_latents(tmp_path / "a.tar", 12, extra=members))
    (batch,) = batches(data, 1)
    assert batch.context is not None
    assert torch.equal(batch.moments[:, 0, 0, 0], -batch.context[:, 0, 0])


def test_bad_latents_are_replaced_and_told(tmp_path: Path, write_latents: Write, npy: Npy) -> None:
    good = np.ones((8, 4, 6))
    wrong = good.copy()
    wrong[3, 2, 1] = np.nan
    bad = {
        2: {"moments.npy": npy(wrong)},
        3: {"moments.npy": npy(good * np.inf)},
        5: {"moments.npy": npy(good)[:-1]},
        6: {"moments.npy": npy(good[:, :2])},
        7: {"moments.npy": b"", "latents.npy": npy(good)},
        8: {"txt": b"\xff"},
        9: {"moments.npy": b""},  # none at all: left out of the index
    }
    shard = write_latents(tmp_path / "a.tar", 40, extra=lambda n: bad.get(n, {}))
    data = opened(shard, val=ValSource(shards=str(shard)))
    assert isinstance(data.train, Reader)
    assert data.train_size == 39
    batch = data.train.batch(torch.arange(39))
    reasons = {item.key: item.reason for item in batch.skipped}
    assert set(reasons) == {f"s00{n}" for n in (2, 3, 5, 6, 7, 8)}
    assert reasons["s002"] == reasons["s003"] == "the moments are not finite"
    assert "cut off or wrong" in reasons["s005"]
    assert reasons["s006"] == "it holds moments [8, 2, 6], the others moments [8, 4, 6]"
    assert reasons["s007"].startswith("it holds latents")
    assert torch.isfinite(batch.moments).all()
    assert (data.train.index.dropped[0].key, data.train.index.dropped[0].reason[:9]) == (
        "s009",
        "no latent",
    )


def test_a_missing_or_bad_context_is_a_bad_sample(
    tmp_path: Path, write_latents: Write, npy: Npy
) -> None:
    contexts = {4: b"", 5: npy(np.full((3, 2), np.nan)), 6: npy(np.zeros((3, 3)))}
    plain = npy(np.zeros((3, 2)))
    shard = write_latents(
        tmp_path / "a.tar", 30, extra=lambda n: {"context.npy": contexts.get(n, plain)}
    )
    data = opened(shard, val=ValSource(shards=str(shard)))
    reasons = {s.key: s.reason for s in data.train.batch(torch.arange(30)).skipped}
    assert reasons == {
        "s004": "it holds no context, the others one [3, 2]",
        "s005": "the context is not finite",
        "s006": "it holds a context [3, 3], the others one [3, 2]",
    }


def test_validation_reads_latents_too(tmp_path: Path, write_latents: Write) -> None:
    val = write_latents(tmp_path / "v.tar", 5, prefix="v")
    data = opened(write_latents(tmp_path / "a.tar", 12), val=ValSource(shards=str(val)))
    (batch,) = data.val_loader(batch_size=8, limit=0, rank=0, world=1)
    assert isinstance(batch, LatentBatch)
    assert torch.equal(batch.moments[2], moments_of("v", 2))


# -- buckets and mixtures -------------------------------------------------------------------------

SHAPES = [(8, 4, 6), (8, 6, 4), (8, 4, 6), (8, 8, 12), (8, 3, 3)]


@pytest.fixture
def of_many_sizes(tmp_path: Path, write_latents: Write, npy: Npy) -> Path:
    """62 latents of five shapes, of 8x3x3 only two; 4x6 and 8x12 have one aspect."""

    def extra(n: int) -> dict[str, bytes]:
        shape = SHAPES[n % 4] if n < 60 else SHAPES[4]
        return {"moments.npy": npy(moments_of("s", n, shape).numpy())}

    return write_latents(tmp_path / "many.tar", 62, extra=extra)


def test_latents_are_batched_by_their_own_size(of_many_sizes: Path) -> None:
    buckets, val = Buckets(max_aspect=2.0, step=8), ValSource(shards=str(of_many_sizes))
    data = opened(of_many_sizes, buckets=buckets, batch_size=5, val=val)
    assert data.train_size == 60  # 30, 15 and 15; the two small ones fill no batch
    found = batches(data, 12, 5)
    shapes = [tuple(batch.moments.shape[1:]) for batch in found]
    assert {shape: shapes.count(shape) for shape in shapes} == {
        (8, 4, 6): 6,
        (8, 6, 4): 3,
        (8, 8, 12): 3,
    }
    seen = {key for batch in found for key in batch.keys}
    assert seen == {f"s{n:03d}" for n in range(60)}
    assert not [item for batch in found for item in batch.skipped]


def test_validation_of_many_sizes_is_on_the_commonest(of_many_sizes: Path) -> None:
    buckets, val = Buckets(max_aspect=2.0, step=8), ValSource(shards=str(of_many_sizes))
    data = opened(of_many_sizes, buckets=buckets, batch_size=5, val=val)
    (batch,) = data.val_loader(batch_size=64, limit=0, rank=0, world=1)
    assert batch.moments.shape == (30, 8, 4, 6)
    assert not batch.skipped


def test_without_buckets_other_sizes_are_bad_samples(of_many_sizes: Path) -> None:
    data = opened(of_many_sizes, val=ValSource(shards=str(of_many_sizes)))
    assert len(data.train.batch(torch.arange(62)).skipped) >= 32


def test_broken_latents_are_met_in_the_commonest_bucket(
    tmp_path: Path, write_latents: Write, npy: Npy
) -> None:
    extra = {3: {"moments.npy": b"broken"}}
    shard = write_latents(tmp_path / "a.tar", 16, extra=lambda n: extra.get(n, {}))
    buckets, val = Buckets(max_aspect=2.0, step=8), ValSource(shards=str(shard))
    data = opened(shard, buckets=buckets, batch_size=4, val=val)
    skipped = {item.key for batch in batches(data, 4, 4) for item in batch.skipped}
    assert skipped == {"s003"}


def test_latents_mix_by_weight(tmp_path: Path, write_latents: Write) -> None:
    shards = [write_latents(tmp_path / f"{p}.tar", 20, prefix=p) for p in "ab"]
    sources = [
        WeightedSource(shards=str(shard), weight=w) for shard, w in zip(shards, (3, 1), strict=True)
    ]
    data = opened(sources)
    keys = [key for batch in batches(data, 125) for key in batch.keys]
    assert sum(key[0] == "a" for key in keys) == 750


def test_a_mixture_needs_one_layout(tmp_path: Path, write_latents: Write) -> None:
    one = write_latents(tmp_path / "a.tar", 8)
    other = write_latents(tmp_path / "b.tar", 8, shape=(8, 2, 2))
    with pytest.raises(ValueError, match="need latents of one layout"):
        opened([WeightedSource(shards=str(path)) for path in (one, other)])


# -- what cannot be -------------------------------------------------------------------------------


def test_pictures_are_no_latents_and_the_other_way_round(
    tmp_path: Path, write_shard: Write, write_latents: Write
) -> None:
    with pytest.raises(ValueError, match=r"none of its 4 samples has a latent .*data\.format"):
        opened(write_shard(tmp_path / "p.tar", 4))
    latents = write_latents(tmp_path / "l.tar", 4)
    with pytest.raises(ValueError, match=r"has a picture .*data\.format=latents"):
        open_data(DataConfig(train=TrainSource(shards=str(latents)), size=8), seed=0)


def test_nothing_usable_says_what_was_found(tmp_path: Path, write_latents: Write, npy: Npy) -> None:
    odd = {"moments.npy": npy(np.zeros((7, 2, 2)))}
    with pytest.raises(ValueError, match=r"s000: the moments are \[7, 2, 2\]; they should be"):
        opened(write_latents(tmp_path / "a.tar", 4, extra=lambda n: odd))


def test_what_is_for_pictures_is_refused() -> None:
    with pytest.raises(ValueError, match="as they were cached") as caught:
        opened("x", flip=0.5, crop="random", mode="stream", val=ValSource(shards="y"))
    for part in ("data.flip=0.5", "data.crop=random", "needs data.mode=ordered"):
        assert part in str(caught.value)


def test_tags_have_no_effect_on_cached_contexts(
    tmp_path: Path, write_latents: Write, npy: Npy
) -> None:
    context = {"context.npy": npy(np.zeros((3, 2)))}
    shard = write_latents(tmp_path / "a.tar", 8, extra=lambda n: context)
    with pytest.raises(ValueError, match="would have no effect"):
        opened(shard, tags=Tags(shuffle=True))
    assert opened(write_latents(tmp_path / "b.tar", 8), tags=Tags(shuffle=True)).layout


def test_four_thousand_samples_a_second(tmp_path: Path, write_latents: Write) -> None:
    """16 KB each, CPU time of this process; about 20,000 where it was written."""
    data = opened(write_latents(tmp_path / "a.tar", 300, shape=(8, 32, 32)))
    loader = iter(data.train_loader(micro_batch=64, rank=0, world=1, start=0, pin_memory=False))
    rates = []
    for _ in range(5):
        started = time.process_time()
        for _ in range(5):
            next(loader)
        rates.append(320 / (time.process_time() - started))
    assert max(rates) > 4000
