"""Are the picture sizes the intended ones, and does every sample go to the nearest?"""

from __future__ import annotations

import math

import numpy as np
import pytest

from ldm.data.buckets import Buckets, join_small, nearest_bucket


def test_sizes_of_512_px() -> None:
    sizes = Buckets(max_aspect=2.0).sizes(512)
    assert sizes == [(640, 384), (576, 448), (512, 512), (448, 576), (384, 640)]


@pytest.mark.parametrize("size", [256, 512, 768, 1024])
@pytest.mark.parametrize("step", [8, 32, 64])
@pytest.mark.parametrize("max_aspect", [1.5, 2.0, 4.0])
def test_sizes_keep_to_area_step_and_aspect(size: int, step: int, max_aspect: float) -> None:
    sizes = Buckets(max_aspect=max_aspect, step=step).sizes(size)
    aspects = [width / height for height, width in sizes]
    assert aspects == sorted(set(aspects))  # all different, portrait first
    assert (size, size) in sizes
    assert {(w, h) for h, w in sizes} == set(sizes)
    for height, width in sizes:
        assert height % step == width % step == 0
        assert height * width <= size * size
        assert (max(height, width) + step) * min(height, width) > size * size  # none is longer
        assert max(height, width) / min(height, width) <= max_aspect


def test_one_means_squares_only() -> None:
    assert not Buckets().used
    assert Buckets(max_aspect=1.0).sizes(512) == [(512, 512)]
    assert Buckets(max_aspect=1.01).used


@pytest.mark.parametrize(
    ("buckets", "said"),
    [
        (Buckets(max_aspect=0.5), r"max_aspect=0\.5"),
        (Buckets(max_aspect=math.nan), "max_aspect=nan"),
        (Buckets(max_aspect=math.inf), "max_aspect=inf"),
        (Buckets(step=0), "step=0"),
        (
            Buckets(max_aspect=2.0, step=48),
            r"data\.size=512 is not a multiple of .*use data.size=528",
        ),
    ],
)
def test_wrong_settings_say_what_to_do(buckets: Buckets, said: str) -> None:
    (problem,) = buckets.problems(512)
    with pytest.raises(ValueError, match=said):
        raise ValueError(problem)


def test_a_step_is_not_asked_of_squares() -> None:
    assert Buckets(step=48).problems(512) == []


def test_every_picture_goes_where_the_least_is_cut_off() -> None:
    """Nearest in log aspect is the largest part of the picture that stays after the cut."""
    sizes = Buckets(max_aspect=3.0).sizes(512)
    draw = np.random.default_rng(0)
    pictures = draw.integers(100, 2000, (300, 2)).astype(float)
    aspects = np.array([width / height for height, width in sizes])
    ratio = (pictures[:, 0] / pictures[:, 1])[:, None] / aspects
    stays = np.minimum(ratio, 1 / ratio)
    best = stays.max(axis=1)
    chosen = stays[np.arange(300), nearest_bucket(pictures, sizes)]
    np.testing.assert_allclose(chosen, best, rtol=1e-12)  # ties may fall either way


def test_unknown_sizes_go_where_squares_go() -> None:
    sizes = Buckets(max_aspect=2.0).sizes(512)
    pictures = np.array([[math.nan, math.nan], [7.0, 7.0]])
    assert nearest_bucket(pictures, sizes).tolist() == [2, 2]


SIZES = Buckets(max_aspect=2.0).sizes(512)


@pytest.mark.parametrize(
    ("expected", "least", "joined"),
    [
        ([8, 8, 8, 8, 8], 8, [0, 1, 2, 3, 4]),
        ([0, 8, 0, 8, 0], 8, [-1, 1, -1, 3, -1]),
        ([8, 8, 7, 9, 8], 8, [0, 1, 3, 3, 4]),  # of two as near, the fuller
        ([3, 4, 20, 8, 8], 8, [2, 2, 2, 3, 4]),  # 3 joins 4, and 7 are still too few
        ([4, 9, 20, 8, 8], 8, [1, 1, 2, 3, 4]),
        ([1, 0, 0, 0, 9], 8, [4, -1, -1, -1, 4]),
        ([1, 1, 1, 1, 1], 8, None),
    ],
)
def test_small_buckets_join_their_nearest_neighbour(
    expected: list[float], least: int, joined: list[int] | None
) -> None:
    got = join_small(expected, SIZES, least)
    if joined is None:
        assert len(set(got)) == 1
    else:
        assert got == joined


def test_joining_keeps_every_sample() -> None:
    draw = np.random.default_rng(1)
    sizes = Buckets(max_aspect=4.0, step=32).sizes(512)
    for _ in range(50):
        expected = draw.integers(0, 30, len(sizes)).tolist()
        into = join_small(expected, sizes, 16)
        sums = np.bincount([n for n in into if n >= 0], minlength=len(sizes)) * 0.0
        for count, target in zip(expected, into, strict=True):
            assert (target == -1) == (count == 0)
            if target >= 0:
                sums[target] += count
        assert sums.sum() == sum(expected)
        assert all(value == 0 or value >= 16 for value in sums)
        assert all(into[target] == target for target in into if target >= 0)
