"""Are the numbers those of the papers' formulas, and do too few pictures say how many it takes?"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch

from ldm.data.order import Sequential
from ldm.data.reader import Reader
from ldm.data.shards import build_index, expand
from ldm.evaluation.features import load_extractor
from ldm.evaluation.metrics import (
    JUDGED,
    Pictures,
    measure,
    name_problems,
    size_problems,
)
from ldm.evaluation.statistics import Features

NAMES = ["fd", "kid", "cmmd", "precision", "recall", "density", "coverage"]


def features(count: int, dim: int = 6, *, seed: int = 0, shift: float = 0.0) -> Features:
    values = torch.randn(count, dim, generator=torch.Generator().manual_seed(seed)) + shift
    return Features.of(torch.arange(count), values)


def both(part: Features) -> Pictures:
    return Pictures(features=part, clip=part)


def test_fd_and_cmmd_are_the_formulas() -> None:
    """NumPy from the papers, on given features, to 1e-6 and better."""
    real, drawn = features(60), features(50, seed=1, shift=0.3)
    found = measure(NAMES, both(drawn), both(real), seed=0, level=0.95).metrics
    x, y = (part.values.double().numpy() for part in (real, drawn))
    first, second = np.cov(x, rowvar=False), np.cov(y, rowvar=False)
    root_trace = np.sqrt(np.linalg.eigvals(first @ second).real).sum()
    distance = ((x.mean(0) - y.mean(0)) ** 2).sum() + np.trace(first + second) - 2 * root_trace
    assert found["fd"].value == pytest.approx(distance, abs=1e-6)
    x, y = (part / np.linalg.norm(part, axis=1, keepdims=True) for part in (x, y))

    def kernel(one: np.ndarray, other: np.ndarray) -> float:
        squared = ((one[:, None] - other[None]) ** 2).sum(-1)
        return float(np.exp(-squared / 200).mean())

    cmmd = 1000 * (kernel(x, x) + kernel(y, y) - 2 * kernel(x, y))
    assert found["cmmd"].value == pytest.approx(cmmd, abs=1e-6)


def test_precision_and_density_are_of_equally_many() -> None:
    real, drawn = features(60), features(50, seed=1)
    found = measure(NAMES, both(drawn), both(real), seed=0, level=0.95).metrics
    x, y = (part.values.double().numpy()[:50] for part in (real, drawn))
    within = np.sort(np.linalg.norm(x[:, None] - x[None], axis=-1), axis=1)
    between = np.linalg.norm(x[:, None] - y[None], axis=-1)
    precision = (between <= within[:, 3:4]).any(0).mean()
    inside = between < within[:, 5:6]
    assert found["precision"].value == pytest.approx(precision, abs=1e-12)
    assert found["density"].value == pytest.approx(inside.sum() / (5 * 50), abs=1e-12)
    assert found["coverage"].value == pytest.approx(inside.any(1).mean(), abs=1e-12)
    assert found["precision"].samples == 50


def test_a_set_is_at_no_distance_from_itself() -> None:
    same = both(features(40))
    found = measure(["fd", "cmmd", "precision", "recall"], same, same, seed=0, level=0.95).metrics
    assert found["fd"].value == pytest.approx(0, abs=1e-9)
    assert found["cmmd"].value == pytest.approx(0, abs=1e-9)
    assert found["precision"].value == found["recall"].value == 1.0


def test_kid_has_an_interval_and_takes_half_of_few_pictures() -> None:
    kid = measure(["kid"], both(features(30)), both(features(21)), seed=0, level=0.95).metrics[
        "kid"
    ]
    assert kid.low is not None
    assert kid.high is not None
    assert kid.low < kid.value < kid.high
    assert "subsets of 10" in kid.note


def test_the_judge_is_four_numbers_and_the_order_is_the_askers() -> None:
    right = Features.of(torch.arange(4), torch.tensor([[1, 1, 1, 1], [1, 0, 1, 0]] * 2).double())
    pictures = Pictures(features=features(4), clip=features(4), right=right)
    found = measure(["judge", "cmmd"], pictures, both(features(9)), seed=0, level=0.95).metrics
    assert list(found) == [*JUDGED, "cmmd"]
    assert [found[name].value for name in JUDGED] == [1.0, 0.5, 1.0, 0.5]


def test_too_few_pictures_say_how_many() -> None:
    dims = {"features": 128, "clip": 128, "captions": 128}
    found = size_problems([*NAMES, "loss"], samples=5, references=100, dims=dims)
    assert found["fd"] == (
        "fd needs 129 pictures or more; 5 pictures are drawn: give samples=129 or more, "
        "100 reference pictures are there: give data=… with more"
    )
    assert set(found) == {"fd", "density", "coverage"}


def test_names_are_checked_with_the_nearest() -> None:
    assert name_problems(["fd", "loss", "judge"]) == []
    assert "did you mean 'clip_score'" in name_problems(["clipscore"])[0]
    assert "more than once" in name_problems(["fd", "fd"])[0]
    assert "measures nothing" in name_problems([])[0]


def test_features_that_are_missing_are_no_zero() -> None:
    with pytest.raises(ValueError, match="not extracted"):
        measure(["fd"], Pictures(), both(features(9)), seed=0, level=0.95)


@pytest.mark.real_data
def test_more_noise_is_further_away() -> None:
    """Emoji against the same emoji with noise: every distance grows, precision falls."""
    from PIL import Image

    from ldm.data.examples import Examples
    from ldm.data.transforms import Transform
    from ldm.evaluation.truth import ShardPictures

    shards = expand(str(Path(os.environ["LDM_REAL_DATA"]) / "emoji64"))[:1]
    index = build_index(shards)
    examples = Examples(transform=Transform(size=64), seed=0)
    reader = Reader(index=index, order=Sequential(index.sizes), examples=examples)
    truth = ShardPictures(reader, "emoji")
    numbers = list(range(200))
    clean = [picture for picture in truth.pictures(numbers) if picture is not None]
    extract = load_extractor("tiny")
    generator = np.random.default_rng(0)

    def noisy(sigma: float) -> Pictures:
        rows = []
        for picture in clean:
            values = np.asarray(picture) + generator.normal(0, sigma, (64, 64, 3))
            rows.append(Image.fromarray(values.clip(0, 255).round().astype(np.uint8)))
        return both(Features.of(torch.arange(len(rows)), extract(rows)))

    reference = both(Features.of(torch.arange(len(clean)), extract(clean)))
    levels = [noisy(sigma) for sigma in (0.0, 30.0, 60.0, 120.0)]
    found = [measure(NAMES, level, reference, seed=0, level=0.95).metrics for level in levels]
    for name in ("fd", "kid", "cmmd"):
        values = [metrics[name].value for metrics in found]
        assert values == sorted(values), name
    assert found[0]["fd"].value == pytest.approx(0, abs=1e-6)
    assert found[-1]["precision"].value < found[0]["precision"].value
