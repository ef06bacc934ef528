"""Is a random number a function of (seed, purpose, index, place) and of nothing else?"""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from ldm import rng

Draw = Callable[[int, str, Tensor, tuple[int, ...]], Tensor]
SHAPES = [(), (1,), (3, 5, 7), (77,), (4, 8, 8), (4, 64, 64)]


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [  # Random123's known-answer file, philox4x32 with 10 rounds
        ("00000000 00000000 00000000 00000000", "0 0", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        (
            "ffffffff ffffffff ffffffff ffffffff",
            "ffffffff ffffffff",
            "408f276d 41c83b0e a20bc7c6 6d5451fd",
        ),
        (
            "243f6a88 85a308d3 13198a2e 03707344",
            "a4093822 299f31d0",
            "d16cfe09 94fdcceb 5001e420 24126ea1",
        ),
    ],
)
def test_philox_known_answers(counter: str, key: str, expected: str) -> None:
    words = tuple(torch.tensor(int(word, 16)) for word in counter.split())
    k0, k1 = (int(word, 16) for word in key.split())
    assert [f"{word:08x}" for word in rng.philox4x32(words, (k0, k1)).tolist()] == expected.split()


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("draw", [rng.uniform, rng.normal])
def test_a_row_does_not_depend_on_its_batch(draw: Draw, shape: tuple[int, ...]) -> None:
    index = torch.arange(1000, 1064)
    whole = draw(7, "eps", index, shape)
    for rows in ([5], [63, 0, 7], list(range(10, 40)), list(range(63, -1, -1))):
        assert torch.equal(draw(7, "eps", index[rows], shape), whole[rows])


@pytest.mark.parametrize("shape", SHAPES)
def test_threads_change_nothing(shape: tuple[int, ...]) -> None:
    index = torch.arange(64)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = rng.normal(0, "eps", index, shape)
        torch.set_num_threads(3)
        three = rng.normal(0, "eps", index, shape)
    finally:
        torch.set_num_threads(before)
    assert torch.equal(one, three)


def test_global_generator_is_neither_read_nor_moved() -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = rng.normal(0, "eps", torch.arange(4), (8,))
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    assert torch.equal(rng.normal(0, "eps", torch.arange(4), (8,)), first)


def test_normal_moments() -> None:
    z = rng.normal(3, "moments", torch.arange(64), (4, 64, 64)).double()
    n = z.numel()
    # five standard errors of the mean of z^k: variances 1, 2, 15, 96
    assert abs(z.mean()) < 5 / math.sqrt(n)
    assert abs(z.pow(2).mean() - 1) < 5 * math.sqrt(2 / n)
    assert abs(z.pow(3).mean()) < 5 * math.sqrt(15 / n)
    assert abs(z.pow(4).mean() - 3) < 5 * math.sqrt(96 / n)
    rows = torch.corrcoef(z.reshape(64, -1)) - torch.eye(64, dtype=torch.float64)
    assert rows.abs().max() < 6 / math.sqrt(4 * 64 * 64)


def test_uniform_covers_the_half_open_interval() -> None:
    u = rng.uniform(3, "u", torch.arange(256), (4096,))
    assert u.min() >= 0
    assert u.max() < 1
    counts = torch.histc(u, bins=16, min=0, max=1)
    expected = u.numel() / 16
    assert (((counts - expected) ** 2) / expected).sum() < 45  # chi^2 with 15 dof: p < 1e-4


def test_integers_are_even_and_in_range() -> None:
    values = rng.integers(1, "i", torch.arange(512), 7, (100,))
    counts = torch.bincount(values.flatten(), minlength=7).double()
    expected = values.numel() / 7
    assert counts.shape == (7,)
    assert (((counts - expected) ** 2) / expected).sum() < 30  # chi^2 with 6 dof: p < 1e-4


@pytest.mark.parametrize("high", [0, -1, 1 << 60])
def test_integers_refuse_a_bad_range(high: int) -> None:
    with pytest.raises(ValueError, match="high="):
        rng.integers(0, "i", torch.arange(2), high)


def test_seeds_purposes_and_indices_all_matter() -> None:
    seeds = (0, 1, 5, 5 + 2**32, 5 + 2**64, 5 + 2**70, -5)
    draws = {
        tuple(rng.uniform(seed, purpose, torch.tensor([i]), (4,))[0].tolist())
        for seed in seeds
        for purpose in ("eps", "times")
        for i in (0, 1, 2**31, 2**32, 2**33 + 1, 2**62)
    }
    assert len(draws) == len(seeds) * 2 * 6


def test_a_longer_draw_begins_with_the_shorter() -> None:
    index = torch.arange(3)
    long = rng.uniform(0, "u", index, (11,))
    assert torch.equal(rng.uniform(0, "u", index, (5,)), long[:, :5])


@pytest.mark.parametrize("n", [0, 1, 2, 5, 1000])
def test_permutation_is_one(n: int) -> None:
    shuffled = rng.permutation(0, "p", 3, n)
    assert shuffled.dtype == torch.int64
    assert sorted(shuffled.tolist()) == list(range(n))


def test_permutations_differ_and_are_even() -> None:
    first = torch.tensor([rng.permutation(0, "p", i, 5)[0].item() for i in range(2000)])
    counts = torch.bincount(first, minlength=5).double()
    assert (((counts - 400) ** 2) / 400).sum() < 25  # chi^2 with 4 dof: p < 1e-4


def test_a_permutation_drawn_in_chunks_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = rng.permutation(9, "p", 4, 1001)
    monkeypatch.setattr(rng, "_CHUNK", 7)
    assert torch.equal(rng.permutation(9, "p", 4, 1001), whole)


def test_index_must_be_a_vector_of_integers() -> None:
    with pytest.raises(ValueError, match="one-dimensional int64"):
        rng.uniform(0, "u", torch.zeros(2))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_device_gives_the_same_words() -> None:
    index = torch.arange(16)
    here = rng.uniform(1, "u", index, (33,))
    assert torch.equal(rng.uniform(1, "u", index.cuda(), (33,)).cpu(), here)
    z = rng.normal(1, "z", index, (33,))
    # log and cos of the device differ in the last bits of numbers below 7
    torch.testing.assert_close(rng.normal(1, "z", index.cuda(), (33,)).cpu(), z, rtol=0, atol=4e-6)
