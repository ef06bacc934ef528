"""Do the schedules have the numbers of the published models?"""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from ldm.diffusion.schedules import (
    EDM,
    SCHEDULES,
    Cosine,
    Flow,
    Linear,
    ScaledLinear,
    Schedule,
    schedule_from_spec,
)

DISCRETE = (
    ScaledLinear(),
    Linear(),
    Cosine(),
    ScaledLinear(zero_terminal_snr=True),
    Linear(zero_terminal_snr=True),
    Cosine(zero_terminal_snr=True),
)
ALL = (*DISCRETE, Flow(), EDM())


def double(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def ratio(schedule: Schedule, t: Tensor) -> Tensor:
    level = schedule.at(t)
    return level.sigma / level.alpha


def test_scaled_linear_is_stable_diffusions() -> None:
    cumprod = ScaledLinear().alphas_cumprod()
    expected = double(0.99915, 0.998296, 0.2776697, 0.0046601)
    assert_close(cumprod[[0, 1, 499, 999]], expected, rtol=0, atol=5e-7)
    ends = ratio(ScaledLinear(), double(0, 999))
    assert_close(ends, double(0.0291672, 14.6146412), rtol=0, atol=5e-8)
    snr = cumprod / (1 - cumprod)
    # 1175.44 was computed in float32, whose 1 - abar is 3e-5 off there; exactly it is 1175.47
    expected = double(1175.44, 8.45387, 0.38185, 0.0046819)
    assert_close(snr[[0, 100, 500, 999]], expected, rtol=3e-5, atol=0)
    assert math.isclose(float(snr[0]), 0.99915 / 0.00085, rel_tol=1e-12)
    assert int((snr >= 5).sum()) == 147  # SNR < 5 from t = 147
    assert int((snr >= 1).sum()) == 354
    assert math.isclose(float(cumprod[-1].sqrt()), 0.068265, abs_tol=5e-7)


def test_zero_terminal_snr_numbers() -> None:
    cumprod = ScaledLinear(zero_terminal_snr=True).alphas_cumprod()
    assert cumprod[999] == 0
    assert_close(cumprod[[500, 998]], double(0.24102, 1.968e-7), rtol=1e-4, atol=0)  # 4 digits


@pytest.mark.parametrize("schedule", [s for s in DISCRETE if s.zero_terminal_snr], ids=str)
def test_zero_terminal_snr_keeps_the_first_step(schedule: Schedule) -> None:
    plain = type(schedule)()  # every other field has its default
    t = double(0, 999)
    assert_close(schedule.at(t).alpha[0], plain.at(t).alpha[0], rtol=0, atol=1e-15)
    assert schedule.at(t).alpha[1] == 0
    assert schedule.at(t).sigma[1] == 1


def test_linear_and_cosine_follow_their_papers() -> None:
    betas = Linear().betas()
    assert_close(betas[[0, 999]], double(1e-4, 0.02), rtol=0, atol=1e-15)
    assert_close(betas.diff(), betas.diff()[:1].expand(999), rtol=0, atol=1e-15)
    # Nichol & Dhariwal eq. 17 away from the clipped end: abar = f(t) / f(0)
    f = lambda share: math.cos((share + 0.008) / 1.008 * math.pi / 2) ** 2  # noqa: E731
    got = Cosine().alphas_cumprod()[499]
    assert math.isclose(float(got), f(0.5) / f(0.0), rel_tol=1e-12)
    assert float(Cosine().betas().max()) == 0.999


def test_float32_tables_are_rounded_from_float64() -> None:
    t = torch.arange(1000)
    got = ScaledLinear().at(t.float())
    want = ScaledLinear().at(t.double())
    assert got.alpha.dtype == torch.float32
    assert torch.equal(got.alpha, want.alpha.float())
    assert torch.equal(got.sigma, want.sigma.float())


@pytest.mark.parametrize("schedule", DISCRETE, ids=str)
def test_at_a_step_the_table_is_exact(schedule: ScaledLinear) -> None:
    t = torch.arange(1000, dtype=torch.float64)
    cumprod = schedule.alphas_cumprod()
    assert torch.equal(schedule.at(t).alpha, cumprod.sqrt())
    assert torch.equal(schedule.at(t).sigma, (1 - cumprod).sqrt())
    assert torch.equal(schedule.at(t.long()).alpha, cumprod.sqrt().float())  # integer t too


@pytest.mark.parametrize("schedule", ALL, ids=str)
def test_noise_grows_with_t_and_stays_finite(schedule: Schedule) -> None:
    low, high = schedule.time_range
    t = torch.linspace(low, high, 4001, dtype=torch.float64)
    level = schedule.at(t)
    assert bool(torch.isfinite(level.alpha).all() & torch.isfinite(level.sigma).all())
    assert bool((level.sigma / level.alpha).diff().gt(0).all())  # strictly: levels are told apart


@pytest.mark.parametrize("schedule", DISCRETE, ids=str)
def test_variance_is_preserved_between_steps_too(schedule: Schedule) -> None:
    level = schedule.at(torch.linspace(0, 999, 5000, dtype=torch.float64))
    assert_close(level.alpha**2 + level.sigma**2, torch.ones(5000).double(), rtol=0, atol=1e-14)


def test_between_steps_log_ratio_is_linear() -> None:
    schedule = ScaledLinear()
    ends = ratio(schedule, double(300, 301)).log()
    middle = ratio(schedule, double(300.25)).log()
    assert_close(middle, (0.75 * ends[0] + 0.25 * ends[1])[None], rtol=0, atol=1e-13)


@pytest.mark.parametrize("schedule", ALL, ids=str)
def test_time_at_sigma_ratio_inverts_at(schedule: Schedule) -> None:
    low, high = schedule.time_range
    t = torch.linspace(low, high, 3001, dtype=torch.float64)
    got = schedule.time_at_sigma_ratio(ratio(schedule, t))
    # the ratio itself carries its rounding: at alpha -> 0, 1 - abar has few digits of t left
    assert_close(got, t, rtol=0, atol=1e-9 * (high - low))


@pytest.mark.parametrize("schedule", ALL, ids=str)
def test_times_outside_the_range_are_clamped(schedule: Schedule) -> None:
    low, high = schedule.time_range
    level = schedule.at(double(low - 5, low, high, high + 5))
    assert torch.equal(level.alpha[0], level.alpha[1])
    assert torch.equal(level.sigma[0], level.sigma[1])
    assert torch.equal(level.alpha[2], level.alpha[3])
    assert torch.equal(level.sigma[2], level.sigma[3])
    inverse = schedule.time_at_sigma_ratio(double(0, math.inf))
    assert_close(inverse, double(low, high), rtol=0, atol=1e-12)


def test_flow_and_edm_are_their_definitions() -> None:
    t = double(0.0, 0.25, 1.0)
    level = Flow().at(t)
    assert torch.equal(level.alpha, 1 - t)
    assert torch.equal(level.sigma, t)
    assert torch.equal(Flow().net_time(t), 1000 * t)
    sigma = double(0.002, 1.0, 80.0)
    level = EDM().at(sigma)
    assert torch.equal(level.alpha, torch.ones(3).double())
    assert torch.equal(level.sigma, sigma)
    assert_close(EDM().net_time(sigma), sigma.log() / 4, rtol=0, atol=0)
    assert torch.equal(ScaledLinear().net_time(t), t)


@pytest.mark.parametrize("schedule", ALL, ids=str)
def test_indices_run_over_the_range(schedule: Schedule) -> None:
    times = schedule.time_at_index(torch.arange(schedule.num_train_steps, dtype=torch.float64))
    low, high = schedule.time_range
    assert bool(times.diff().gt(0).all())
    assert times[0] >= low
    assert math.isclose(float(times[-1]), high, rel_tol=1e-12)


def test_tables_made_under_inference_mode_can_be_trained_with() -> None:
    schedule = ScaledLinear(num_train_steps=17)  # no other test has filled its cache
    with torch.inference_mode():
        schedule.at(torch.tensor([3.0]))
    x0 = torch.randn(1, requires_grad=True)
    (schedule.at(torch.tensor([3.0])).alpha * x0).sum().backward()
    assert x0.grad is not None
    assert torch.equal(x0.grad, schedule.at(torch.tensor([3.0])).alpha)


@pytest.mark.parametrize("schedule", ALL, ids=str)
def test_spec_round_trip(schedule: Schedule) -> None:
    assert schedule_from_spec(schedule.spec()) == schedule
    assert all(isinstance(value, bool | int | float | str) for value in schedule.spec().values())


def test_unknown_spec_lists_what_is_known() -> None:
    with pytest.raises(ValueError, match=r"'scaled_linaer' is unknown; known: scaled_linear"):
        schedule_from_spec({"name": "scaled_linaer"})
    with pytest.raises(ValueError, match=r"no field beta_stop; its fields: .*beta_end"):
        schedule_from_spec({"name": "linear", "beta_stop": 1.0})
    assert set(SCHEDULES) == {"scaled_linear", "linear", "cosine", "flow", "edm"}


@pytest.mark.parametrize(
    "make",
    [
        lambda: ScaledLinear(beta_end=1.5),
        lambda: Linear(beta_start=0.1, beta_end=0.01),
        lambda: Cosine(max_beta=1.0),
        lambda: ScaledLinear(num_train_steps=1),
        lambda: Flow(num_train_steps=0),
        lambda: EDM(sigma_min=0.0),
        lambda: EDM(sigma_min=3.0, sigma_max=2.0),
    ],
)
def test_impossible_schedules_are_refused(make: object) -> None:
    with pytest.raises(ValueError, match="use "):
        make()  # type: ignore[operator]
