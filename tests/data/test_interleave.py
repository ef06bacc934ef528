"""Do lines take turns exactly as often as they should, wherever one begins?"""

from __future__ import annotations

import pickle
import random
from collections import Counter

import pytest

from ldm.data.interleave import RUN, Interleaved, Turns, quotas
from ldm.data.order import Order


@pytest.mark.parametrize("shares", [[1], [3, 5], [1, 1, 998], [7] * 30])
def test_every_run_holds_every_line_as_often_as_its_quota(shares: list[int]) -> None:
    turns = Turns(shares, seed=1, purpose="test")
    for run in range(4):
        seen = Counter(turns.at(run * len(turns) + k)[0] for k in range(len(turns)))
        assert [seen[line] for line in range(len(shares))] == shares


def test_a_line_counts_its_own_turns_without_a_gap() -> None:
    turns = Turns([3, 5, 2], seed=1, purpose="test")
    own: dict[int, list[int]] = {0: [], 1: [], 2: []}
    for k in range(70):
        line, number = turns.at(k)
        own[line].append(number)
    assert {line: len(found) for line, found in own.items()} == {0: 21, 1: 35, 2: 14}
    assert all(found == list(range(len(found))) for found in own.values())


def test_runs_seeds_and_purposes_mix_differently() -> None:
    def lines(seed: int, purpose: str, run: int) -> tuple[int, ...]:
        turns = Turns([10, 10], seed=seed, purpose=purpose)
        return tuple(turns.at(run * 20 + k)[0] for k in range(20))

    keys = [(0, "a", 0), (0, "a", 1), (1, "a", 0), (0, "b", 0)]
    assert len({lines(*key) for key in keys}) == 4


def interleaved(block: int) -> Interleaved:
    lines = [Order([6, 3], seed=3), Order([10], seed=4)]
    turns = Turns([2, 3], seed=5, purpose="test")
    return Interleaved(lines, turns, first_shard=[0, 2], length=19, block=block)


@pytest.mark.parametrize("block", [1, 4])
def test_a_line_goes_on_by_its_own_epochs(block: int) -> None:
    order = interleaved(block)
    seen: dict[int, list[tuple[int, int, int]]] = {0: [], 1: []}
    for i in range(block * 60):
        epoch, shard, n = order.at(i)
        seen[shard >= 2].append((epoch, shard - (2 if shard >= 2 else 0), n))
    for line, places in seen.items():
        assert places == [order.lines[line].at(own) for own in range(len(places))]


@pytest.mark.parametrize("block", [1, 4])
def test_any_point_is_reached_by_a_seek(block: int) -> None:
    straight = interleaved(block)
    expected = [straight.at(i) for i in range(300)]
    points = [random.Random(0).randrange(300) for _ in range(100)]
    fresh = pickle.loads(pickle.dumps(straight))
    assert not fresh.turns._runs
    assert [fresh.at(i) for i in points] == [expected[i] for i in points]
    assert straight.at(10**12)
    assert len(straight.turns._runs) <= 2


def test_blocks_are_of_one_line() -> None:
    order = interleaved(4)
    for k in range(50):
        assert len({order.at(4 * k + j)[1] >= 2 for j in range(4)}) == 1


def test_a_stand_in_is_of_the_same_line() -> None:
    order = interleaved(1)
    for i in range(60):
        assert {order.at(i, attempt)[1] >= 2 for attempt in range(10)} == {order.at(i)[1] >= 2}


@pytest.mark.parametrize(
    ("weights", "expected"),
    [
        ([1.0], [1000]),
        ([1, 1], [500, 500]),
        ([1, 1, 1], [334, 333, 333]),
        ([0.7, 0.2, 0.1], [700, 200, 100]),
        ([2, 3, 6], [182, 273, 545]),
        ([1e9, 1.0], [999, 1]),
        ([1e9, 1e9, 1.0], [500, 499, 1]),
        ([1e-300, 3e-300], [250, 750]),
    ],
)
def test_quotas_are_rounded_weights_of_sum_1000(weights: list[float], expected: list[int]) -> None:
    got = quotas(weights)
    assert got == expected
    assert sum(got) == RUN


def test_quotas_are_within_one_of_the_exact_share() -> None:
    draw = random.Random(0)
    for _ in range(100):
        weights = [draw.uniform(0.1, 10) for _ in range(draw.randrange(1, 40))]
        for weight, got in zip(weights, quotas(weights), strict=True):
            assert abs(got - 1000 * weight / sum(weights)) < 1


@pytest.mark.parametrize("weights", [[], [0.0, 1.0], [-1.0], [float("inf")], [float("nan")]])
def test_what_is_no_weight_is_an_error(weights: list[float]) -> None:
    with pytest.raises(ValueError, match="all positive and finite"):
        quotas(weights)


@pytest.mark.parametrize("shares", [[], [0, 3]])
def test_every_line_needs_a_turn(shares: list[int]) -> None:
    with pytest.raises(ValueError, match="one turn or more"):
        Turns(shares, seed=0, purpose="test")


def test_lines_quotas_and_offsets_belong_together() -> None:
    with pytest.raises(ValueError, match="1 lines, 2 quotas"):
        Interleaved(
            [Order([4], seed=0)], Turns([1, 1], seed=0, purpose="x"), first_shard=[0], length=4
        )
