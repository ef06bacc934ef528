"""Does every source of a mixture come as often as its weight says, with and without buckets?"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from omegaconf import OmegaConf

from ldm import rng
from ldm.data.buckets import Buckets
from ldm.data.lines import Source, arrange
from ldm.data.order import Order
from ldm.data.settings import DataConfig, TrainSource, ValSource, WeightedSource
from ldm.data.shards import build_index
from ldm.data.source import Data, open_data

Write = Callable[..., Path]
CONF = Path(__file__).parents[2] / "conf"


def weighted(shards: list[str], weights: list[float]) -> list[WeightedSource]:
    pairs = zip(shards, weights, strict=True)
    return [WeightedSource(shards=shard, weight=weight) for shard, weight in pairs]


def opened(train: Any, *, batch_size: int | None = None, seed: int = 0, **more: Any) -> Data:
    config = DataConfig(train=train, size=more.pop("size", 8), num_workers=0, **more)
    return open_data(config, seed=seed, batch_size=batch_size)


def order_keys(data: Data, count: int, start: int = 0) -> list[str]:
    """What the order says, without reading a picture."""
    index = data.train.index
    return [index.key(*data.train.order.at(i)[1:]) for i in range(start, start + count)]


@pytest.mark.parametrize("weights", [[1, 1, 1], [3, 1, 1], [0.7, 0.2999, 0.0001 * 10]])
def test_every_thousand_positions_hold_the_rounded_weights(
    three_shards: list[str], weights: list[float]
) -> None:
    data = opened(weighted(three_shards, weights), val=ValSource(shards=three_shards[0]))
    wanted = [round(1000 * w / sum(weights)) for w in weights]
    for run in range(3):
        seen = Counter(key[0] for key in order_keys(data, 1000, run * 1000))
        assert all(abs(seen[name] - n) <= 1 for name, n in zip("abc", wanted, strict=True))
        assert [seen[name] for name in "abc"] == data.order_spec["turns"]


def test_the_order_is_the_stated_one(three_shards: list[str]) -> None:
    """A keyed permutation of each 1,000 positions, a prefix count in it, each source's order."""
    data = opened(weighted(three_shards, [2, 1, 1]), seed=9, val=ValSource(shards=three_shards[0]))
    counts, sizes = [500, 250, 250], [11, 7, 19]
    orders = [Order([size], seed=rng.fold(9, "source", n)) for n, size in enumerate(sizes)]
    used = [0, 0, 0]
    expected = []
    for run in range(2):
        slots = rng.permutation(9, "mixture", run, 1000).tolist()
        for slot in slots:
            source = 0 if slot < counts[0] else 1 if slot < counts[0] + counts[1] else 2
            _, _, n = orders[source].at(used[source])
            used[source] += 1
            expected.append(f"{'abc'[source]}{n:03d}")
    assert order_keys(data, 2000) == expected


def test_each_source_goes_through_its_own_epochs(three_shards: list[str]) -> None:
    data = opened(weighted(three_shards, [1, 5, 2]), val=ValSource(shards=three_shards[0]))
    seen: dict[str, list[str]] = {"a": [], "b": [], "c": []}
    for key in order_keys(data, 2000):
        seen[key[0]].append(key)
    for name, size in (("a", 11), ("b", 7), ("c", 19)):
        for start in range(0, len(seen[name]) - size, size):
            assert len(set(seen[name][start : start + size])) == size


def test_sources_of_one_size_are_shuffled_differently(tmp_path: Path, write_shard: Write) -> None:
    shards = [str(write_shard(tmp_path / f"{p}.tar", 30, prefix=p)) for p in "ab"]
    data = opened(weighted(shards, [1, 1]), val=ValSource(shards=shards[0]))
    keys = order_keys(data, 60)
    first, second = ([int(k[1:]) for k in keys if k[0] == p] for p in "ab")
    assert first[:20] != second[:20]


def test_an_epoch_is_the_sum_of_the_sources(three_shards: list[str]) -> None:
    data = opened(weighted(three_shards, [1, 5, 2]), val=ValSource(shards=three_shards[0]))
    assert data.train_size == 37
    assert data.val_size == 11


def test_the_end_of_every_source_is_kept_out(three_shards: list[str]) -> None:
    data = opened(weighted(three_shards, [1, 1, 1]))
    assert (data.train_size, data.val_size) == (34, 3)
    (batch,) = data.val_loader(batch_size=8, limit=0, rank=0, world=1)
    assert batch.keys == ("a010", "b006", "c018")
    assert not set(batch.keys) & set(order_keys(data, 1000))


def test_the_card_tells_mixtures_apart(three_shards: list[str]) -> None:
    val = ValSource(shards=three_shards[0])
    specs = [
        opened(weighted(three_shards[: len(w)], w), val=val).spec()
        for w in ([1.0, 1.0], [2.0, 1.0], [1.0, 1.0, 1.0])
    ]
    assert all(a != b for a, b in itertools.combinations(specs, 2))
    assert specs[1]["train"] == three_shards[:2]
    assert specs[1]["mixture"] == [
        {"weight": 2.0, "samples": 11, "shards": 1},
        {"weight": 1.0, "samples": 7, "shards": 1},
    ]
    assert specs[1]["turns"] == [667, 333]


def test_one_source_in_a_list_is_that_source(three_shards: list[str]) -> None:
    val = ValSource(shards=three_shards[0])
    alone = opened(TrainSource(shards=three_shards), val=val)
    listed = opened([{"shards": three_shards, "weight": 3}], val=val)
    assert listed.spec() == alone.spec()
    assert order_keys(listed, 100) == order_keys(alone, 100)


def test_the_cache_is_shared_by_the_sources(tmp_path: Path, three_shards: list[str]) -> None:
    pipes = [f"pipe:cat {shard}" for shard in three_shards]
    size = max(Path(shard).stat().st_size for shard in three_shards)
    common = {"val": ValSource(shards=three_shards[0]), "cache_dir": str(tmp_path / "c")}
    data = opened(weighted(pipes, [1, 1, 1]), cache_gb=6.1 * size / 1e9, **common)
    assert [line["group"] for line in data.order_spec["lines"]] == [1, 1, 1]
    with pytest.raises(ValueError, match=r"two shards of .* of every source"):
        opened(weighted(pipes, [1, 1, 1]), cache_gb=2.1 * size / 1e9, **common)


# -- with buckets ---------------------------------------------------------------------------------


@pytest.fixture
def two_looks(tmp_path: Path, write_shard: Write, png: Callable[..., bytes]) -> list[str]:
    """Source a: 120 pictures, 1 of 3 wide; source b: 60 pictures, 2 of 3 wide."""

    def looks(wide: tuple[int, ...]) -> Callable[[int], dict[str, bytes]]:
        return lambda n: {"png": png(n, width=48 if n % 3 in wide else 12), "json": b"{}"}

    return [
        str(write_shard(tmp_path / "a.tar", 120, prefix="a", extra=looks((0,)))),
        str(write_shard(tmp_path / "b.tar", 60, prefix="b", extra=looks((0, 1)))),
    ]


@pytest.mark.parametrize("weights", [[2, 1], [1, 1], [1, 3]])
def test_buckets_keep_the_weights(two_looks: list[str], weights: list[float]) -> None:
    """Over many epochs each source, and each bucket of it, has the share that it should."""
    data = opened(
        weighted(two_looks, weights),
        batch_size=4,
        size=16,
        buckets=Buckets(max_aspect=6.0, step=8),
        val=ValSource(shards=two_looks[0]),
    )
    count = 200 * data.train_size
    seen = Counter((key[0], int(key[1:]) % 3) for key in order_keys(data, count))
    for name, weight in zip("ab", weights, strict=True):
        for rest in range(3):
            share = weight / sum(weights) / 3
            # batches and quotas are whole numbers: 45 batches an epoch, 1,000 positions a run
            assert seen[name, rest] / count == pytest.approx(share, abs=0.02)
    for start in range(0, 400, 4):
        batch = order_keys(data, 4, start)
        wide = {int(k[1:]) % 3 in ((0,) if k[0] == "a" else (0, 1)) for k in batch}
        assert len(wide) == 1


def test_a_bucket_that_one_source_has_is_its_own(
    tmp_path: Path, write_shard: Write, png: Callable[..., bytes]
) -> None:
    square = write_shard(tmp_path / "a.tar", 20, prefix="a")
    wide = write_shard(
        tmp_path / "b.tar", 20, prefix="b", extra=lambda n: {"png": png(n, width=48), "json": b""}
    )
    data = opened(
        weighted([str(square), str(wide)], [3, 1]),
        batch_size=4,
        size=16,
        buckets=Buckets(max_aspect=6.0, step=8),
        val=ValSource(shards=str(square)),
    )
    assert data.order_spec["turns"] == [7, 2]  # of 40 samples 30 and 10, in batches of 4
    assert {len({k[0] for k in order_keys(data, 4, s)}) for s in range(0, 72, 4)} == {1}


# -- what cannot be -------------------------------------------------------------------------------


def test_a_shard_belongs_to_one_source(three_shards: list[str]) -> None:
    with pytest.raises(ValueError, match=r"a\.tar in more than one source"):
        opened(weighted([three_shards[0], three_shards[0]], [1, 2]))


@pytest.mark.parametrize(
    ("train", "more", "said"),
    [
        ([], {}, "names no source"),
        ([{"shard": "x"}], {}, r"a source is \{shards: …, weight: …\}"),
        ([{"shards": "x", "wieght": 2}], {}, "wieght"),
        ([{"shards": "x", "weight": "2"}], {}, "weight='2'; use a number"),
        ([{"shards": "x", "weight": True}], {}, "weight=True; use a number"),
        (["x", "y"], {}, "data.train has 'x'"),
        ([{"shards": "x", "weight": 0}, {"shards": "y"}], {}, r"weights \[0.0\]"),
        (
            [{"shards": "x", "weight": 1e9}, {"shards": "y"}],
            {},
            "less than half a position in 1000",
        ),
        ([{"shards": "x"}, {"shards": "y"}], {"overfit_samples": 4}, "overfit_samples needs one"),
        (
            [{"shards": "x"}, {"shards": "y"}],
            {"mode": "stream", "val": ValSource(shards="z")},
            "needs data.mode=ordered",
        ),
    ],
)
def test_what_is_no_mixture_is_an_error(train: Any, more: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        DataConfig(train=train, **more)


def test_a_mixture_from_the_command_line(three_shards: list[str]) -> None:
    sources = ",".join(f"{{shards:'{s}',weight:{n + 1}}}" for n, s in enumerate(three_shards))
    with initialize_config_dir(str(CONF), version_base="1.3"):
        composed = compose("train", overrides=["data=mixture", f"++data.train=[{sources}]"])
    node = OmegaConf.to_container(composed.data, resolve=True)
    config = instantiate({**node, "size": 8, "num_workers": 0}, _convert_="all")
    data = open_data(config, seed=0)
    assert data.order_spec["turns"] == [167, 333, 500]
    loader = data.train_loader(micro_batch=8, rank=0, world=1, start=0, pin_memory=False)
    assert len(next(iter(loader)).keys) == 8


def test_arranging_one_source_is_its_own_order(three_shards: list[str]) -> None:
    index = build_index(three_shards)
    lines = arrange([Source(index=index, group=2, lanes=4)], seed=3)
    assert lines.index is index
    order = Order(index.sizes, seed=3, group=2, lanes=4)
    assert [lines.order.at(i) for i in range(100)] == [order.at(i) for i in range(100)]
    assert lines.spec() == order.spec()
