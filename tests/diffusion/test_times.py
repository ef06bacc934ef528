"""Are the trained times distributed as they should be, whoever draws them?"""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from ldm.diffusion.schedules import EDM, Cosine, Flow, ScaledLinear, Schedule
from ldm.diffusion.times import (
    TIMES,
    LogitNormal,
    LogNormalSigma,
    Stratified,
    Times,
    Uniform,
    times_from_spec,
)

SCHEDULES = (ScaledLinear(), Cosine(zero_terminal_snr=True), Flow(), EDM())
LARGEST = 1 - 2.0**-24  # the largest float32 below 1: what a uniform may be


def uniforms(count: int, seed: int = 0) -> Tensor:
    return torch.rand(count, generator=torch.Generator().manual_seed(seed))


def equal_u(count: int) -> Tensor:
    """The middles of `count` equal cells: a sample without sampling error."""
    return (torch.arange(count, dtype=torch.float64) + 0.5) / count


def share(schedule: Schedule, t: Tensor) -> Tensor:
    """What share of the uniform density lies below t."""
    if isinstance(schedule, EDM):
        return (t / schedule.sigma_min).log() / math.log(schedule.sigma_max / schedule.sigma_min)
    return t if isinstance(schedule, Flow) else t / schedule.num_train_steps


@pytest.mark.parametrize("schedule", SCHEDULES[:2], ids=str)
def test_uniform_gives_every_step_equally_often(schedule: Schedule) -> None:
    t = Uniform().sample(equal_u(8000), torch.zeros(8000, dtype=torch.int64), 1, schedule)
    assert torch.equal(t, t.floor())
    assert torch.equal(torch.bincount(t.long(), minlength=1000), torch.full((1000,), 8))


def test_uniform_on_flow_and_edm() -> None:
    u = equal_u(100)
    place = torch.zeros(100, dtype=torch.int64)
    assert torch.equal(Uniform().sample(u, place, 1, Flow()), u)
    log_sigma = Uniform().sample(u, place, 1, EDM()).log()
    assert_close(log_sigma.diff(), log_sigma.diff()[:1].expand(99), rtol=0, atol=1e-12)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
@pytest.mark.parametrize("batch_size", [1, 3, 64, 1000, 4096])
def test_stratified_has_one_sample_in_each_stratum(schedule: Schedule, batch_size: int) -> None:
    """A rank draws its rows alone; together they fill each stratum exactly once."""
    place = torch.randperm(batch_size, generator=torch.Generator().manual_seed(1))
    u = uniforms(batch_size)
    ranks = [slice(r, None, 3) for r in range(3)]
    parts = [Stratified().sample(u[r], place[r], batch_size, schedule) for r in ranks]
    t = torch.empty(batch_size)
    for rank, part in zip(ranks, parts, strict=True):
        t[rank] = part
    whole = Stratified().sample(u, place, batch_size, schedule)
    assert torch.equal(t, whole)
    # floor to a step and float32 put t back by at most one step, so compare with that slack
    slack = (1 / 1000 if isinstance(schedule, ScaledLinear | Cosine) else 0) + 1e-6
    below = share(schedule, whole.double())
    assert bool((below >= place / batch_size - slack).all())
    assert bool((below < (place + 1) / batch_size + 1e-6).all())


@pytest.mark.parametrize("batch_size", [2, 7, 1000, 4096])
def test_the_largest_uniform_stays_in_its_stratum(batch_size: int) -> None:
    """place + u rounds to place + 1 in float32 from place 1 on."""
    place = torch.arange(batch_size)
    t = Stratified().sample(torch.full((batch_size,), LARGEST), place, batch_size, Flow())
    assert bool((t < (place + 1) / batch_size).all())


def test_stratified_fills_a_thousand_steps_once() -> None:
    place = torch.randperm(1000, generator=torch.Generator().manual_seed(2))
    t = Stratified().sample(torch.full((1000,), 0.5), place, 1000, ScaledLinear())
    assert torch.equal(t.sort().values, torch.arange(1000.0))


@pytest.mark.parametrize(
    "times", [Uniform(), Stratified(), LogitNormal(), LogNormalSigma()], ids=str
)
@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
@pytest.mark.parametrize("batch_size", [1, 7, 4096])
def test_extreme_uniforms_stay_inside(times: Times, schedule: Schedule, batch_size: int) -> None:
    """u = 0 and the largest u below 1, in the first and the last stratum, float32."""
    low, high = schedule.time_range
    u = torch.tensor([0.0, LARGEST, 0.0, LARGEST])
    place = torch.tensor([0, 0, batch_size - 1, batch_size - 1])
    t = times.sample(u, place, batch_size, schedule)
    assert t.dtype == torch.float32
    assert bool(t.isfinite().all())
    rounding = 1e-6 * high  # float32 exp and log of the edm range
    assert bool((t >= low - rounding).all() & (t <= high + rounding).all())
    assert bool((schedule.at(t).sigma > 0).all())


def test_logit_normal_quantiles() -> None:
    """Esser et al. 2024: the median is sigmoid(mean), one deviation up is sigmoid(mean + std)."""
    u = torch.tensor([0.5, 0.8413447460685429], dtype=torch.float64)
    t = LogitNormal(mean=0.4, std=0.8).sample(u, torch.zeros(2, dtype=torch.int64), 2, Flow())
    want = torch.tensor([0.4, 1.2], dtype=torch.float64).sigmoid()
    assert_close(t, want, rtol=0, atol=1e-9)


def test_log_normal_quantiles() -> None:
    u = torch.tensor([0.5, 0.8413447460685429, 0.15865525393145707], dtype=torch.float64)
    place = torch.zeros(3, dtype=torch.int64)
    t = LogNormalSigma(mean=-1.2, std=1.2).sample(u, place, 3, EDM())
    assert_close(t.log(), torch.tensor([-1.2, 0.0, -2.4]).double(), rtol=0, atol=1e-7)
    level = Flow().at(LogNormalSigma().sample(u, place, 3, Flow()))  # sigma/alpha, any schedule
    assert_close((level.sigma / level.alpha).log(), t.log(), rtol=0, atol=1e-7)


def test_only_stratified_looks_at_the_place() -> None:
    u = uniforms(16)
    for times in (Uniform(), LogitNormal(), LogNormalSigma()):
        here = times.sample(u, torch.arange(16), 16, Flow())
        assert torch.equal(here, times.sample(u, torch.zeros(16, dtype=torch.int64), 4, Flow()))


@pytest.mark.parametrize(
    "times", [Uniform(), Stratified(), LogitNormal(), LogNormalSigma()], ids=str
)
def test_spec_round_trip(times: Uniform) -> None:
    assert times_from_spec(times.spec()) == times
    assert times.name in TIMES


def test_no_spread_is_refused() -> None:
    with pytest.raises(ValueError, match="std=0"):
        LogitNormal(std=0.0)
    with pytest.raises(ValueError, match="std=-1"):
        LogNormalSigma(std=-1.0)
