"""Are the grids those of the published samplers, for any schedule and number of steps?"""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch.testing import assert_close

from ldm.diffusion.schedules import EDM, Cosine, Flow, ScaledLinear, Schedule
from ldm.sampling.levels import (
    AYS_SD15,
    GRIDS,
    Levels,
    ays,
    explicit,
    exponential,
    flow_shift,
    karras,
    leading,
    linspace,
    trailing,
)

SD = ScaledLinear()
SCHEDULES = [SD, ScaledLinear(zero_terminal_snr=True), Cosine(), Flow(), EDM()]


def ratios(levels: Levels) -> torch.Tensor:
    return levels.sigma.double() / levels.alpha.double()


def test_leading_50() -> None:
    levels = leading(SD, steps=50)
    assert levels.t[:-1].tolist() == list(range(981, 0, -20))
    assert math.isclose(float(levels.alpha[-1]) ** 2, 0.99915, abs_tol=1e-6)  # not 1
    assert levels.t[-1] == 0


def test_leading_30_has_30_steps_from_958() -> None:
    """CompVis would give 31 steps from 991."""
    assert leading(SD, steps=30).t[:-1].tolist() == list(range(958, 0, -33))


def test_leading_in_all_steps_asks_for_no_step_beyond() -> None:
    """CompVis would ask for step 1000 of 0 to 999."""
    assert leading(SD, steps=1000).t[:-1].tolist() == list(range(999, -1, -1))


def test_trailing_50() -> None:
    levels = trailing(ScaledLinear(zero_terminal_snr=True), steps=50)
    assert levels.t[:-1].tolist() == list(range(999, 0, -20))
    assert levels.alpha[0] == 0
    assert levels.sigma[0] == 1


def test_linspace_50() -> None:
    levels = linspace(SD, steps=50)
    assert_close(levels.t[:3], torch.tensor([999, 978.612, 958.224]), rtol=0, atol=5e-4)
    got = ratios(levels)
    head = torch.tensor([14.6146, 12.9368, 11.4916, 10.2429], dtype=torch.float64)
    tail = torch.tensor([0.139338, 0.0291675, 0], dtype=torch.float64)
    # diffusers interpolates sigma between steps, we (as k-diffusion) its log: 8e-5 apart here
    assert_close(got[:4], head, rtol=0, atol=1e-4)
    assert_close(got[-3:], tail, rtol=0, atol=2e-5)


def test_karras_10() -> None:
    levels = karras(SD, steps=10)
    ratio = [14.6146, 9.1029, 5.4784, 3.1686, 1.7494, 0.9141, 0.4469, 0.2014, 0.0819, 0.0292, 0]
    times = [999, 916.28, 815.04, 687.15, 523.2, 327.15, 145.94, 40.86, 6.73, 0, 0]
    assert_close(ratios(levels), torch.tensor(ratio).double(), rtol=0, atol=1e-4)
    assert_close(levels.t, torch.tensor(times), rtol=0, atol=1e-2)


def test_karras_of_edm_is_equation_5() -> None:
    i = torch.arange(18, dtype=torch.float64)
    root = 80 ** (1 / 7) + i / 17 * (0.002 ** (1 / 7) - 80 ** (1 / 7))
    assert_close(karras(EDM(), steps=18).sigma[:-1], (root**7).float(), rtol=1e-6, atol=0)


def test_exponential_is_equal_in_log() -> None:
    logs = ratios(exponential(SD, steps=10))[:-1].log()
    assert_close(logs.diff(), logs.diff()[:1].expand(9), rtol=1e-5, atol=0)
    assert math.isclose(math.exp(float(logs[0])), 14.6146412, rel_tol=1e-6)


def test_ays_is_the_published_list() -> None:
    """Stable Diffusion 1.5, 10 steps; its authors give the same list in whole times."""
    levels = ays(SD, steps=10)
    assert_close(ratios(levels)[:-1], torch.tensor(AYS_SD15[:-1]).double(), rtol=0, atol=4e-4)
    times = torch.tensor([999, 850, 736, 645, 545, 455, 343, 233, 124, 24])
    assert_close(levels.t[:-1].round(), times.float(), rtol=0, atol=1)
    assert levels.sigma[-1] == 0


def test_ays_is_log_linear_between_its_entries() -> None:
    logs = torch.tensor(AYS_SD15, dtype=torch.float64).log()
    twice = ratios(ays(EDM(), steps=20))[:-1].log()
    assert_close(twice[::2], logs[:-1], rtol=0, atol=1e-6)
    assert_close(twice[1::2], (logs[1:] + logs[:-1]) / 2, rtol=0, atol=1e-6)
    half = ratios(ays(EDM(), steps=5))[:-1].log()
    assert_close(half, logs[:-1:2], rtol=0, atol=1e-6)


def test_ays_of_another_list() -> None:
    """The list of Stable Video Diffusion, beyond what this schedule reaches: clamped."""
    svd = (700.0, 54.5, 15.886, 7.977, 4.248, 1.789, 0.981, 0.403, 0.173, 0.034, 0.002)
    levels = ays(EDM(sigma_max=700.0), steps=10, ratios=svd)
    assert_close(levels.sigma[:-1], torch.tensor(svd[:-1]), rtol=1e-6, atol=0)
    for wrong in ((), (1.0,), (1.0, 2.0), (1.0, 1.0), (1.0, 0.0)):
        with pytest.raises(ValueError, match=r"ratios=.*falling values above 0"):
            ays(SD, steps=10, ratios=wrong)


def test_flow_shift_is_equation_23() -> None:
    t = 1 - torch.arange(29, dtype=torch.float64) / 28
    want = 3 * t / (1 + 2 * t)
    assert_close(flow_shift(Flow(), steps=28).t, want.float(), rtol=0, atol=1e-6)
    assert_close(flow_shift(Flow(), steps=28, shift=1.0).t, t.float(), rtol=0, atol=1e-6)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("steps", [1, 2, 3, 30, 50, 333, 999, 1000, 1001, 2000])
def test_any_steps_fall_from_noise_to_image(schedule: Schedule, grid: str, steps: int) -> None:
    levels = GRIDS[grid](schedule, steps=steps)
    assert levels.steps == steps
    assert len(levels) == steps + 1
    assert levels.t.dtype == levels.alpha.dtype == levels.sigma.dtype == torch.float32
    for values in (levels.t, levels.alpha, levels.sigma):
        assert bool(values.isfinite().all())
    falls = ratios(levels).diff() <= 0  # equal only where steps = T asks for the first step twice
    assert bool(falls[~falls.isnan()].all())
    assert bool((levels.sigma[:-1] > 0).all())  # where the network is asked, there is noise
    low, high = schedule.time_range
    assert bool((levels.t >= low - 1e-6).all())
    assert bool((levels.t <= high + 1e-6).all())


@pytest.mark.parametrize("grid", GRIDS)
def test_levels_lie_on_the_schedule(grid: str) -> None:
    levels = GRIDS[grid](SD, steps=30)
    again = SD.at(levels.t[:-1].double())
    assert_close(levels.alpha[:-1], again.alpha.float(), rtol=0, atol=1e-6)
    assert_close(levels.sigma[:-1], again.sigma.float(), rtol=0, atol=1e-6)


@pytest.mark.parametrize("grid", GRIDS)
def test_final_to_zero(grid: str) -> None:
    function = GRIDS[grid]
    for zero in (False, True):
        levels = partial(function, final_to_zero=zero)(SD, steps=20)
        last = levels.at(20)
        want = (1.0, 0.0) if zero else (0.99915**0.5, 0.00085**0.5)
        assert math.isclose(float(last.alpha), want[0], abs_tol=1e-7)
        assert math.isclose(float(last.sigma), want[1], abs_tol=1e-7)


@pytest.mark.parametrize(
    ("strength", "first", "steps"),
    [(1.0, 981, 50), (0.75, 721, 37), (0.5, 481, 25), (0.02, 1, 1), (0.58, 561, 29)],
)
def test_truncate_as_diffusers_img2img(strength: float, first: int, steps: int) -> None:
    """timesteps[max(S - int(S strength), 0):]"""
    levels = leading(SD, steps=50).truncate(strength)
    assert levels.steps == steps
    assert levels.at(0).t == first
    assert levels.at(levels.steps).t == 0


def test_truncate_to_nothing_keeps_the_last_level() -> None:
    assert leading(SD, steps=50).truncate(0.0).steps == 0
    for strength in (-0.1, 1.1):
        with pytest.raises(ValueError, match="allowed: 0"):
            leading(SD, steps=50).truncate(strength)
    assert leading(SD, steps=100).truncate(0.29).steps == 29  # 0.29 * 100 < 29 in binary


@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
def test_between_two_levels(schedule: Schedule) -> None:
    """Half way in log(sigma/alpha), on the schedule, where the network knows the time."""
    levels = linspace(schedule, steps=6)
    for i in range(1, 5):
        one, other = levels.at(i), levels.at(i + 1)
        middle = levels.between(one, other)
        ratio = [float(level.sigma / level.alpha) for level in (one, middle, other)]
        assert math.isclose(ratio[1], math.sqrt(ratio[0] * ratio[2]), rel_tol=1e-5)
        again = schedule.at(middle.t.double())
        assert_close(again.alpha.float(), middle.alpha, rtol=1e-5, atol=1e-7)
        assert middle.t.dtype == middle.alpha.dtype == torch.float32
        assert other.t < middle.t < one.t


def test_at_ratio_stays_in_the_schedule() -> None:
    levels = linspace(SD, steps=6)
    assert levels.at_ratio(1e9).t == 999
    assert levels.at_ratio(0.0).t == 0
    assert levels.truncate(0.5).at_ratio(1.0).t == levels.reversed().at_ratio(1.0).t
    with pytest.raises(ValueError, match="between the levels; give Levels"):
        replace(levels, schedule=None).at_ratio(1.0)


def test_reversed_ascends() -> None:
    levels = trailing(SD, steps=5)
    up = levels.reversed()
    assert up.t.tolist() == levels.t.tolist()[::-1]
    assert up.at(0).alpha == levels.at(5).alpha
    assert torch.equal(up.reversed().sigma, levels.sigma)


def test_explicit_times() -> None:
    levels = explicit(SD, times=[999, 500.5, 20])
    assert levels.t.tolist() == [999, 500.5, 20, 0]
    for wrong in ([], [1, 2], [5, 5], [1000.0, 5], [20, -1]):
        with pytest.raises(ValueError, match="use falling times"):
            explicit(SD, times=wrong)


def test_errors_say_what_to_use() -> None:
    for grid in GRIDS.values():
        for wrong in (0, -3, 2001):
            with pytest.raises(ValueError, match=rf"steps={wrong}; use 1 to 2000"):
                grid(SD, steps=wrong)
    with pytest.raises(ValueError, match="shift=0"):
        flow_shift(SD, steps=5, shift=0.0)
    with pytest.raises(ValueError, match="below the least noise"):
        karras(SD, steps=5, sigma_max=0.01)
