"""Does the loss train the same model under every choice of the objective?"""

from __future__ import annotations

from itertools import product

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from ldm.diffusion.objective import Objective, objective_from_spec
from ldm.diffusion.prediction import X0, Edm, Eps, FlowVelocity, Prediction, V
from ldm.diffusion.schedules import EDM, Cosine, Flow, Linear, ScaledLinear, Schedule
from ldm.diffusion.times import LogitNormal, LogNormalSigma, Stratified, Uniform
from ldm.diffusion.weighting import P2, Debiased, MinSNR, OnX0, SoftMinSNR
from ldm.diffusion.weighting import Uniform as UniformWeighting
from ldm.types import Level

SCHEDULES: tuple[Schedule, ...] = (
    ScaledLinear(),
    ScaledLinear(zero_terminal_snr=True),
    Linear(),
    Cosine(),
    Cosine(zero_terminal_snr=True),
    Flow(),
    EDM(),
)
PREDICTIONS: tuple[Prediction, ...] = (Eps(), X0(), V(), FlowVelocity(), Edm(sigma_data=0.7))
WEIGHTINGS = (UniformWeighting(), MinSNR(), SoftMinSNR(), P2(), Debiased())
ON_X0: tuple[OnX0, ...] = (MinSNR(), SoftMinSNR(), P2(), P2(gamma=0.5), Debiased())


def reaches_no_signal(schedule: Schedule) -> bool:
    return bool(schedule.at(torch.tensor(schedule.time_range[1])).alpha == 0)


def fits(schedule: Schedule, prediction: Prediction) -> bool:
    if isinstance(schedule, EDM) or isinstance(prediction, Edm):
        return isinstance(schedule, EDM) and isinstance(prediction, Edm)
    return not (isinstance(prediction, Eps) and reaches_no_signal(schedule))


PAIRS = [(s, p) for s, p in product(SCHEDULES, PREDICTIONS) if fits(s, p)]
MISFITS = [(s, p) for s, p in product(SCHEDULES, PREDICTIONS) if not fits(s, p)]
B = 11


def normals(seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(B, 4, 3, 3, generator=generator, dtype=torch.float64).to(dtype)


def trained_levels(objective: Objective, dtype: torch.dtype = torch.float64) -> Level:
    """Levels as training draws them, the two extremes included."""
    u = torch.linspace(0, 1 - 2.0**-24, B, dtype=dtype)
    return objective.level(u, torch.zeros(B, dtype=torch.int64), 1)


@pytest.mark.parametrize(("schedule", "prediction"), PAIRS, ids=str)
def test_target_and_recover_are_inverse(schedule: Schedule, prediction: Prediction) -> None:
    objective = Objective(schedule=schedule, prediction=prediction)
    # away from the ends, where one of x0 and eps is hidden in x by construction
    u = torch.linspace(0.05, 0.95, B, dtype=torch.float64)
    level = objective.level(u, torch.zeros(B, dtype=torch.int64), 1)
    x0, eps = normals(0), normals(1)
    x = objective.add_noise(x0, eps, level)
    got = objective.recover(x, objective.target(x0, eps, level), level)
    # float64: rounding, divided by the smallest alpha or sigma of these levels (0.003 on edm)
    assert_close(got.x0, x0, rtol=0, atol=1e-12)
    assert_close(got.eps, eps, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("schedule", "prediction"), PAIRS, ids=str)
@pytest.mark.parametrize("weighting", WEIGHTINGS, ids=str)
@pytest.mark.parametrize(
    "times", [Uniform(), Stratified(), LogitNormal(), LogNormalSigma()], ids=lambda t: t.name
)
def test_loss_is_finite_float32_and_zero_at_the_target(
    schedule: Schedule, prediction: Prediction, weighting: MinSNR, times: Uniform
) -> None:
    objective = Objective(
        schedule=schedule, prediction=prediction, weighting=weighting, times=times
    )
    level = trained_levels(objective, torch.float32)
    x0, eps = normals(0, torch.float32), normals(1, torch.float32)
    loss = objective.loss(normals(2, torch.bfloat16), x0, eps, level)
    assert loss.shape == (B,)
    assert loss.dtype == torch.float32
    assert bool(loss.isfinite().all() & (loss >= 0).all())
    at_target = objective.loss(objective.target(x0, eps, level), x0, eps, level)
    assert torch.equal(at_target, torch.zeros(B))


def test_plain_loss_is_the_mean_squared_error_on_eps() -> None:
    objective = Objective(schedule=ScaledLinear(), prediction=Eps())
    level = trained_levels(objective)
    out, x0, eps = normals(0), normals(1), normals(2)
    want = ((out - eps) ** 2).mean((1, 2, 3))
    assert_close(objective.loss(out, x0, eps, level), want, rtol=1e-14, atol=0)


@pytest.mark.parametrize("weighting", ON_X0, ids=str)
@pytest.mark.parametrize("schedule", [ScaledLinear(), Cosine(), Flow()], ids=str)
def test_losses_and_gradients_agree_between_parameterisations(
    weighting: OnX0, schedule: Schedule
) -> None:
    """One belief about x0, said in eps, x0, v and flow: one loss, one gradient."""
    level = schedule.at(schedule.training_time(torch.linspace(0.05, 0.95, B, dtype=torch.float64)))
    x0, eps, belief = normals(0), normals(1), normals(2)
    rows = level.expand(x0)
    x = rows.alpha * x0 + rows.sigma * eps
    want = (weighting(level)[:, None, None, None] * (belief - x0) ** 2).mean((1, 2, 3))
    reference = 2 * weighting(level)[:, None, None, None] * (belief - x0) / x0[0].numel()
    for prediction in PREDICTIONS[:4]:
        if not fits(schedule, prediction):
            continue
        objective = Objective(schedule=schedule, prediction=prediction, weighting=weighting)
        leaf = belief.clone().requires_grad_()
        out = objective.target(leaf, (x - rows.alpha * leaf) / rows.sigma, level)
        loss = objective.loss(out, x0, eps, level)
        loss.sum().backward()
        assert_close(loss, want, rtol=1e-10, atol=0)  # float64: rounding of x0 - eps conversions
        assert_close(leaf.grad, reference, rtol=1e-9, atol=1e-14)


@pytest.mark.parametrize(("schedule", "prediction"), MISFITS, ids=str)
def test_combinations_that_cannot_work_are_refused(
    schedule: Schedule, prediction: Prediction
) -> None:
    with pytest.raises(ValueError, match=r"use v|needs the edm prediction"):
        Objective(schedule=schedule, prediction=prediction)


def test_all_problems_are_told_at_once() -> None:
    with pytest.raises(ValueError) as error:
        Objective(
            schedule=ScaledLinear(zero_terminal_snr=True),
            prediction=Eps(),
            offset_noise=-0.1,
            input_perturbation=float("nan"),
        )
    for words in ("use v", "offset_noise=-0.1", "input_perturbation=nan"):
        assert words in str(error.value)


def test_offset_noise_shifts_the_target_and_perturbation_does_not() -> None:
    objective = Objective(
        schedule=ScaledLinear(), prediction=Eps(), offset_noise=0.1, input_perturbation=0.2
    )
    x0, eps, extra, offset = normals(0), normals(1), normals(2), normals(3)[..., :1, :1]
    shaped = objective.shaped_noise(eps, offset)
    assert_close(shaped, eps + 0.1 * offset, rtol=0, atol=0)
    level = trained_levels(objective)
    x = objective.add_noise(x0, objective.perturbed(shaped, extra), level)
    rows = level.expand(x0)
    want = rows.alpha * x0 + rows.sigma * (eps + 0.1 * offset + 0.2 * extra)
    assert_close(x, want, rtol=0, atol=1e-14)
    assert torch.equal(objective.loss(shaped, x0, shaped, level), torch.zeros(B).double())


def test_noise_helpers_that_are_off_change_nothing() -> None:
    objective = Objective(schedule=ScaledLinear(), prediction=Eps())
    eps = normals(0)
    assert objective.shaped_noise(eps, normals(1)) is eps
    assert objective.perturbed(eps, normals(1)) is eps


def test_arguments_are_not_changed() -> None:
    objective = Objective(schedule=ScaledLinear(), prediction=V(), weighting=MinSNR())
    level = trained_levels(objective)
    tensors = [normals(0), normals(1), normals(2), level.t, level.alpha, level.sigma]
    before = [tensor.clone() for tensor in tensors]
    objective.loss(tensors[0], tensors[1], tensors[2], level)
    objective.recover(objective.add_noise(tensors[1], tensors[2], level), tensors[0], level)
    assert all(torch.equal(a, b) for a, b in zip(tensors, before, strict=True))


@pytest.mark.parametrize(("schedule", "prediction"), PAIRS, ids=str)
def test_spec_round_trip(schedule: Schedule, prediction: Prediction) -> None:
    objective = Objective(
        schedule=schedule,
        prediction=prediction,
        weighting=Debiased(clip=50.0),
        times=Stratified(),
        offset_noise=0.1,
    )
    assert objective_from_spec(objective.spec()) == objective


def test_incomplete_spec_says_what_is_missing() -> None:
    with pytest.raises(ValueError, match=r"missing \['prediction'\] and unknown \['predicton'\]"):
        objective_from_spec({"schedule": {"name": "flow"}, "predicton": {"name": "v"}})
