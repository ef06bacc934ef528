"""Is the order exact, wide and a pure function of (seed, sizes, group, lanes)?"""

from __future__ import annotations

import itertools
import pickle
import random

import pytest

from ldm import rng
from ldm.data.order import Order, Sequential

CASES = [  # sizes, group, lanes
    ([11, 7, 19], 0, 1),
    ([1], 0, 1),
    ([5, 0, 3, 0], 0, 1),
    ([0, 4, 0, 0, 9, 2], 2, 4),
    ([11, 7, 19, 4, 5], 2, 8),
    ([11, 7, 19, 4, 5], 2, 64),
    ([30] * 9, 4, 64),
    ([200, 100, 50], 3, 64),
]


def naive_epoch(
    sizes: list[int], seed: int, group: int, lanes: int, epoch: int
) -> list[tuple[int, int, int]]:
    """The order as the design states it, with lists."""
    group = group or len(sizes)
    shards = rng.permutation(seed, "shard order", epoch, len(sizes)).tolist()
    groups = [shards[i : i + group] for i in range(0, len(shards), group)]
    order = []
    for number, members in enumerate(groups):
        laid_out = [(epoch, shard, n) for shard in members for n in range(sizes[shard])]
        base, extra = divmod(len(laid_out), lanes)
        queues, at = [], 0
        for lane in range(lanes):
            length = base + (lane < extra)
            key = (epoch * len(groups) + number) * lanes + lane
            shuffled = rng.permutation(seed, "sample order", key, length).tolist()
            queues.append([laid_out[at + place] for place in shuffled])
            at += length
        order += [queues[p % lanes][p // lanes] for p in range(len(laid_out))]
    return order


@pytest.mark.parametrize(("sizes", "group", "lanes"), CASES)
def test_order_is_the_stated_one(sizes: list[int], group: int, lanes: int) -> None:
    order = Order(sizes, seed=5, group=group, lanes=lanes)
    expected = [p for epoch in range(3) for p in naive_epoch(sizes, 5, group, lanes, epoch)]
    assert [order.at(i) for i in range(3 * sum(sizes))] == expected


@pytest.mark.parametrize(("sizes", "group", "lanes"), CASES)
def test_every_sample_once_an_epoch(sizes: list[int], group: int, lanes: int) -> None:
    order = Order(sizes, seed=0, group=group, lanes=lanes)
    everything = {(shard, n) for shard, size in enumerate(sizes) for n in range(size)}
    for epoch in range(3):
        places = [order.at(epoch * len(order) + i) for i in range(len(order))]
        assert {place[0] for place in places} == {epoch}
        assert {place[1:] for place in places} == everything
        assert len(places) == len(everything)


def test_epochs_and_seeds_shuffle_differently() -> None:
    n = 100
    seen = set()
    for seed in (0, 1, 2**32):
        order = Order([60, 40], seed=seed)
        seen |= {tuple(order.at(e * n + i)[1:] for i in range(n)) for e in range(3)}
    assert len(seen) == 9


def test_local_samples_are_shuffled_as_a_whole() -> None:
    """Neighbours in the order come from any two shards, as in a uniform shuffle."""
    order = Order([50] * 20, seed=0)
    shards = [order.at(i)[1] for i in range(1000)]
    same = sum(a == b for a, b in itertools.pairwise(shards))
    assert 25 <= same <= 75  # mean 49, standard deviation 7


def test_any_point_is_reached_by_a_seek() -> None:
    sizes = [30] * 9
    straight = Order(sizes, seed=1, group=4, lanes=64)
    expected = [straight.at(i) for i in range(600)]
    draw = random.Random(0)
    points = [draw.randrange(600) for _ in range(200)]
    jumping = Order(sizes, seed=1, group=4, lanes=64)
    assert [jumping.at(i) for i in points] == [expected[i] for i in points]


def test_far_ahead_is_as_cheap_as_near() -> None:
    order = Order([1000, 500], seed=1)
    assert order.at(10**15)[0] == 10**15 // 1500
    assert len(order._lanes) <= 2


def test_memory_holds_the_current_groups_only() -> None:
    order = Order([40] * 30, seed=1, group=3, lanes=8)
    for i in range(3600):
        order.at(i)
    assert len(order._lanes) <= 16
    assert len(order._layouts) <= 2


@pytest.mark.parametrize(("sizes", "group", "lanes"), CASES)
def test_stand_ins_walk_through_their_own_lane(sizes: list[int], group: int, lanes: int) -> None:
    order = Order(sizes, seed=3, group=group, lanes=lanes)
    total = len(order)
    lane_of = {}
    start = 0
    while start < total:
        end = order.group_end(start)
        for i in range(start, end):
            lane_of[order.at(i)] = (start, (i - start) % lanes)
        start = end
    for i in range(total):
        lane = [place for place, of in lane_of.items() if of == lane_of[order.at(i)]]
        walked = [order.at(i, attempt) for attempt in range(len(lane))]
        assert sorted(walked) == sorted(lane)
        assert order.at(i, len(lane)) == order.at(i)


@pytest.mark.parametrize("world", [1, 2, 4, 3])
def test_a_rank_reads_only_its_own_lanes_shards(world: int) -> None:
    order = Order([20] * 24, seed=2, group=16, lanes=8)
    for rank in range(world):
        start = 0
        while start < 2 * len(order):
            end = order.group_end(start)
            mine = {order.at(i)[1] for i in range(start, end) if i % world == rank}
            foreseen = order.shards_of_group(start, rank, world)
            assert len(set(foreseen)) == len(foreseen)
            assert mine <= set(foreseen)
            if world in (2, 4):  # lanes are shared out, so a rank needs a part of the group
                assert len(foreseen) <= 16 // world + 4
            start = end


def test_pickling_keeps_the_order() -> None:
    order = Order([11, 7, 19], seed=0)
    before = [order.at(i) for i in range(50)]
    copy = pickle.loads(pickle.dumps(order))
    assert not copy._lanes
    assert [copy.at(i) for i in range(50)] == before


def test_spec_tells_orders_apart() -> None:
    specs = [
        Order(sizes, seed=0, group=group, lanes=lanes).spec()
        for sizes, group, lanes in (
            ([3, 4], 0, 1),
            ([4, 3], 0, 1),
            ([3, 4], 1, 1),
            ([3, 4], 0, 2),
        )
    ]
    assert all(a != b for n, a in enumerate(specs) for b in specs[:n])
    assert Order([3, 4], seed=0, group=2).spec() == specs[0]  # 0 means all of them


@pytest.mark.parametrize("sizes", [[], [0, 0]])
def test_nothing_to_order_is_an_error(sizes: list[int]) -> None:
    with pytest.raises(ValueError, match="hold no samples"):
        Order(sizes, seed=0)
    with pytest.raises(ValueError, match="hold no samples"):
        Sequential(sizes)


def test_sequential_is_the_index_in_order() -> None:
    order = Sequential([2, 0, 3])
    assert [order.at(i)[1:] for i in range(5)] == [(0, 0), (0, 1), (2, 0), (2, 1), (2, 2)]
    assert order.at(5) == (1, 0, 0)
    assert order.at(1, 1) == (0, 2, 0)
