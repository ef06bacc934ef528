"""Is the loss the network's own error, the same however the images are shared, and paired?"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from ldm import pipeline, rng
from ldm.app.evaluation.comparing import Found, compare_entries, loss_curve, whole_loss
from ldm.app.evaluation.losses import (
    SEED,
    Sample,
    comparable,
    losses,
    quantity_of,
    table_of,
)
from ldm.diffusion.prediction import X0, Eps, V
from ldm.evaluation.statistics import Features
from ldm.evaluation.truth import DrawnShapes
from ldm.images import from_pil
from ldm.pipeline import Pipeline

TIMES = 10
Measured = Callable[..., Features]


@pytest.fixture(scope="module")
def pipe(finished_run: Path) -> Pipeline:
    return pipeline.load(finished_run, device="cpu")


@pytest.fixture(scope="module")
def samples() -> list[Sample]:
    truth = DrawnShapes(count=4)
    pairs = zip(truth.captions(range(4)), truth.pictures(range(4)), strict=True)
    return [Sample(k, str(text), picture) for k, (text, picture) in enumerate(pairs) if picture]


@pytest.fixture(scope="module")
def measured(pipe: Pipeline) -> Measured:
    def run(part: list[Sample], quantity: object = Eps()) -> Features:
        return losses(
            pipe,
            part,
            times=TIMES,
            quantity=quantity,  # type: ignore[arg-type]
            batch_size=8,
            advance=lambda _: None,
        )

    return run


@torch.no_grad()
def test_it_is_the_squared_error_of_the_network(
    pipe: Pipeline, samples: list[Sample], measured: Measured
) -> None:
    """One image, every time, written out."""
    sample, objective = samples[2], pipe.objective
    place = torch.tensor([2 * TIMES + k for k in range(TIMES)])
    share = (torch.arange(TIMES) + rng.uniform(SEED, "evaluation-time", place)) / TIMES
    level = objective.schedule.at(objective.schedule.training_time(share))
    moments = pipe.codec.moments(from_pil([sample.picture]))
    x0 = (moments.chunk(2, dim=1)[0] * pipe.codec.scale).expand(TIMES, -1, -1, -1)
    eps = rng.normal(SEED, "evaluation-noise", place, tuple(x0.shape[1:]))
    context = pipe.text.encode([sample.caption] * TIMES).context
    x = level.alpha[:, None, None, None] * x0 + level.sigma[:, None, None, None] * eps
    out = pipe.unet(x, level.t, context)
    expected = (out - eps).square().flatten(1).mean(1)
    found = measured(samples)
    assert torch.allclose(found.values[2].float(), expected, rtol=1e-4)
    table = table_of(found, Eps())
    assert torch.allclose(table.t[2 * TIMES : 3 * TIMES], share.double(), atol=1e-6)


def test_it_does_not_depend_on_who_measures_which_image(
    samples: list[Sample], measured: Measured
) -> None:
    whole = measured(samples)
    parts = measured(samples[1::2]).merge(measured(samples[0::2]))
    assert torch.equal(parts.index, whole.index)
    assert torch.equal(parts.values, whole.values)


def test_the_error_of_v_is_that_of_eps_over_alpha_squared(
    pipe: Pipeline, samples: list[Sample], measured: Measured
) -> None:
    """dx0 = -(sigma/alpha) deps, so dv = alpha deps - sigma dx0 = deps / alpha."""
    eps, v = measured(samples), measured(samples, V())
    share = table_of(eps, Eps()).t.float()
    alpha = pipe.objective.schedule.at(pipe.objective.schedule.training_time(share)).alpha
    expected = eps.values.flatten() / alpha.double() ** 2
    assert torch.allclose(v.values.flatten(), expected, rtol=1e-3)


def test_what_the_error_is_of_is_their_own_or_v() -> None:
    assert quantity_of([Eps(), Eps()]) == Eps()
    assert quantity_of([Eps(), X0()]) == V()


def test_other_latents_and_schedules_are_not_paired() -> None:
    card = {"vae": {"hash": "a"}, "objective": {"schedule": {"name": "cosine"}}}
    other = {"vae": {"hash": "b"}, "objective": {"schedule": {"name": "linear"}}}
    assert comparable([card, card]) == []
    assert comparable([card, other]) == ["the VAE", "the schedule"]


def found(name: str, features: Features, card: dict[str, object]) -> Found:
    table = table_of(features, Eps())
    return Found(id=name, label=name, card=card, facts={}, table=table)


def test_pairs_are_paired(samples: list[Sample], measured: Measured) -> None:
    """A network that is worse by 1 everywhere is worse by exactly 1, with no spread."""
    features = measured(samples)
    worse = Features(features.index, features.values + 1)
    card = {"vae": {"hash": "a"}, "objective": {"schedule": {}}}
    rows, notes = compare_entries([found("a", features, card), found("b", worse, card)])
    assert notes == []
    assert rows[0]["quantity"] == "loss"
    assert rows[0]["difference"] == pytest.approx(1, abs=1e-9)
    assert rows[0]["text"].startswith("a better than b by 1 ± ")
    assert len(rows) == 11
    (same, *_), _ = compare_entries([found("a", features, card), found("b", features, card)])
    assert same["difference"] == 0
    assert same["text"].startswith("a and b cannot be told apart: 0 ± 0")


def test_unlike_models_are_noted(samples: list[Sample], measured: Measured) -> None:
    features = measured(samples)
    one = {"vae": {"hash": "a"}, "objective": {"schedule": {}}}
    two = {"vae": {"hash": "b"}, "objective": {"schedule": {}}}
    rows, (note,) = compare_entries([found("a", features, one), found("b", features, two)])
    assert rows == []
    assert note == "the losses of a and b are not paired: they differ in the VAE"


def test_bins_average_to_the_whole(samples: list[Sample], measured: Measured) -> None:
    table = table_of(measured(samples), Eps())
    curve = loss_curve(table)
    whole = whole_loss(table, "eps")
    assert sum(curve["mean"]) / 10 == pytest.approx(whole.value, rel=1e-9)
    assert "squared error of eps" in whole.note
    bins = zip(curve["low"], curve["mean"], curve["high"], strict=True)
    assert all(low <= mean <= high for low, mean, high in bins)
