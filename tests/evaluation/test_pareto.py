"""Is the front what no other entry beats?"""

from __future__ import annotations

import math

import pytest

from ldm.evaluation.pareto import axes_of, better_of, front


def test_the_front_of_lower_and_higher() -> None:
    points = {"a": (1.0, 5.0), "b": (2.0, 9.0), "c": (2.5, 8.0), "d": (3.0, 9.5), "e": (9.0, 9.0)}
    assert front(points, ("lower", "higher")) == ["a", "b", "d"]
    assert front(points, ("lower", "lower")) == ["a"]


def test_equal_points_stay_and_nan_goes() -> None:
    points = {"a": (1.0, 1.0), "b": (1.0, 1.0), "c": (math.nan, 0.0)}
    assert front(points, ("lower", "lower")) == ["a", "b"]


@pytest.mark.parametrize(
    ("measured", "varies", "expected"),
    [
        (["kid", "cmmd", "clip_score"], True, ("kid", "clip_score")),
        (["kid", "cmmd", "clip_score"], False, ("kid", "seconds")),
        (["clip_score"], True, ("clip_score", "seconds")),
        (["loss"], True, None),
    ],
)
def test_what_a_sweep_is_about(
    measured: list[str], varies: bool, expected: tuple[str, str] | None
) -> None:
    assert axes_of(measured, guidance_varies=varies) == expected


def test_directions_are_those_of_the_metrics() -> None:
    assert better_of(("fd", "clip_score")) == ("lower", "higher")
    assert better_of(("judge", "seconds")) == ("higher", "lower")
