"""Does the plan count right, and does it say what does not fit?"""

from __future__ import annotations

from dataclasses import replace

import pytest

from ldm.training.plan import RunSettings, crossed, describe, make_plan, to_samples

SETTINGS = RunSettings(max_samples=1000, batch_size=64, log_every=100, val_every="0.5ep")


def test_amounts_are_samples_or_epochs() -> None:
    amounts = {20_000: 20_000, 1e6: 1_000_000, "1e6": 1_000_000, "2ep": 480, "0.5 epochs": 120}
    for amount, samples in amounts.items():
        assert to_samples(amount, train_size=240, key="k") == samples
    assert to_samples("1epoch", train_size=240, key="k") == 240
    assert to_samples("0.001ep", train_size=240, key="k") == 1  # at least one
    assert to_samples(None, train_size=240, key="k") is None


@pytest.mark.parametrize("amount", [0, -5, 1.5, "abc", "ep", "-2ep", "nan", "inf", ""])
def test_other_amounts_are_errors_with_the_key(amount: object) -> None:
    with pytest.raises(ValueError, match=r"training\.x=.*20000.*2ep"):
        to_samples(amount, train_size=240, key="training.x")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("batch", "micro", "world", "expected"),
    [
        (64, None, 1, (64, 1)),
        (64, 16, 1, (16, 4)),
        (64, 8, 4, (8, 2)),
        (64, None, 8, (8, 1)),
        (6, 1, 2, (1, 3)),
    ],
)
def test_batch_is_devices_times_micro_batch_times_accumulation(
    batch: int, micro: int | None, world: int, expected: tuple[int, int]
) -> None:
    settings = replace(SETTINGS, batch_size=batch, micro_batch=micro)
    plan = make_plan(settings, train_size=240, val_size=11, world_size=world)
    assert (plan.micro_batch, plan.accumulate) == expected
    assert plan.world_size * plan.micro_batch * plan.accumulate == plan.batch_size == batch
    assert plan.micro_global * plan.accumulate == batch
    assert plan.steps == -(-1000 // batch)
    assert (plan.log_every, plan.val_every) == (100, 120)
    assert plan.epochs == pytest.approx(1000 / 240)


def test_never_is_zero() -> None:
    settings = replace(SETTINGS, log_every=None, val_every=None, sample_every=None, save_every=None)
    plan = make_plan(settings, train_size=240, val_size=11, world_size=1)
    assert plan.log_every == plan.val_every == plan.sample_every == plan.save_every == 0


@pytest.mark.parametrize(
    ("batch", "micro", "world", "advice"),
    [
        (5, None, 2, "a batch_size that 2 divides, 4 for example"),
        (64, 24, 1, "micro_batch may be one of [1, 2, 4, 8, 16, 32, 64]"),
        (64, 32, 4, "micro_batch may be one of [1, 2, 4, 8, 16]"),
        (2, None, 4, "a batch_size that 4 divides, 4 for example"),
    ],
)
def test_a_batch_that_does_not_divide_is_an_error_with_advice(
    batch: int, micro: int | None, world: int, advice: str
) -> None:
    settings = replace(SETTINGS, batch_size=batch, micro_batch=micro)
    with pytest.raises(ValueError, match="is not devices x micro_batch x accumulation") as caught:
        make_plan(settings, train_size=240, val_size=0, world_size=world)
    assert advice in str(caught.value)
    assert f"batch_size={batch}" in str(caught.value)


def test_every_problem_is_reported_at_once() -> None:
    bad = RunSettings(
        max_samples="soon",
        batch_size=0,
        micro_batch=-1,
        log_every=0,
        keep_checkpoints=0,
        caption_dropout=1.5,
        gradient_clip=0,
        cache_captions=-1,
        cache_latents=-2,
    )
    text = "\n".join(bad.problems())
    assert len(bad.problems()) == 9
    for name in ("max_samples='soon'", "batch_size=0", "micro_batch=-1", "log_every=0"):
        assert f"training.{name}" in text
    for name in ("keep_checkpoints=0", "caption_dropout=1.5", "gradient_clip=0"):
        assert f"training.{name}" in text
    for name in ("cache_captions=-1", "cache_latents=-2"):
        assert f"training.{name}" in text
    assert SETTINGS.problems() == []


def test_a_run_needs_a_length() -> None:
    """null means never elsewhere; a run of no samples would be finished before it begins."""
    (problem,) = replace(SETTINGS, max_samples=None).problems()
    assert "training.max_samples" in problem


def test_data_without_a_sample_is_an_error() -> None:
    with pytest.raises(ValueError, match="no usable sample"):
        make_plan(SETTINGS, train_size=0, val_size=0, world_size=1)


@pytest.mark.parametrize("every", [1, 7, 64, 100, 1000])
@pytest.mark.parametrize("batch", [1, 8, 64])
def test_a_multiple_is_crossed_once_whatever_the_batch(every: int, batch: int) -> None:
    steps = 1600 // batch
    hits = [crossed(every, k * batch, (k + 1) * batch) for k in range(steps)]
    places = {-(-multiple // batch) for multiple in range(every, 1601, every)}
    assert {k + 1 for k, hit in enumerate(hits) if hit} == places


def test_zero_is_never() -> None:
    assert not crossed(0, 0, 1000)


def test_the_description_says_the_numbers() -> None:
    plan = make_plan(SETTINGS, train_size=240, val_size=11, world_size=1)
    text = describe(plan, parameters=1_000_000, lr="1e-4", head={"run folder": "r", "going on": ""})
    for part in ("1,000,000", "1,000 samples = 16 steps = 4.17 epochs", "240 samples to train on"):
        assert part in text
    for part in ("11 to validate on", "64 = 1 device(s) x micro_batch 64 x accumulation 1"):
        assert part in text
    assert "100 samples = 0.42 epochs" in text
    assert "15 MiB" in text  # weights, two moments and EMA: 16 bytes a parameter
    assert "going on" not in text
