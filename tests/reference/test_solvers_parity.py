"""Does every solver give what diffusers' scheduler of that name gives, step by step?

Same network, start and noise; the settings that make them equal are the table of docs/sampling.md.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from ldm.diffusion.objective import Objective
from ldm.diffusion.prediction import Eps, V
from ldm.diffusion.schedules import ScaledLinear
from ldm.sampling.denoiser import Denoiser
from ldm.sampling.levels import Grid, Levels, explicit, karras, leading, linspace, trailing
from ldm.sampling.solvers import (
    ddim,
    dpm2,
    dpm2_ancestral,
    dpmpp_2m,
    dpmpp_2m_sde,
    dpmpp_sde,
    euler,
    euler_ancestral,
    heun,
    lms,
    plms,
    unipc,
)
from ldm.types import Conditioning, Denoised, Level

pytestmark = pytest.mark.reference
SD: dict[str, Any] = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
}
PREDICTIONS = {"epsilon": Eps(), "v_prediction": V()}
SHAPE = (2, 4, 6, 6)
# float32: both round, over up to 50 steps of values near 1. float64: their tables of alpha^2 are
# float32 products of up to 1000 factors, and some of their steps compute in float32 at any dtype
CLOSE = {torch.float32: 1e-4, torch.float64: 3e-5}
GRIDS: dict[str, Grid] = {
    "leading": leading,
    "trailing": trailing,
    "linspace": linspace,
    "karras": karras,
}


@dataclass(frozen=True, kw_only=True)
class Case:
    """A solver, their scheduler, and where the two define the same thing.

    spacings: the first is the usual one. sigma_space: they work on x/alpha, from init_noise_sigma
    times z. own_times: theirs are not among our grids and are taken as they are. apart: spacings
    where they round times or interpolate sigma, not its log, between steps, and how far that is.
    """

    solver: Callable[..., Tensor]
    scheduler: str
    spacings: tuple[str, ...] = ("linspace", "karras", "leading", "trailing")
    sigma_space: bool = True
    own_times: bool = False
    final_to_zero: bool = True
    draws: bool = False
    settings: Mapping[str, Any] = field(default_factory=dict)
    apart: Mapping[str, float] = field(default_factory=dict)


VP = {"sigma_space": False, "own_times": True, "spacings": ("linspace", "leading", "trailing")}
TO_ONE = {"sigma_space": False, "final_to_zero": False, "spacings": ("leading", "trailing")}
CASES = {
    "ddim": Case(
        solver=ddim,
        scheduler="DDIMScheduler",
        settings={"clip_sample": False, "set_alpha_to_one": False},
        **TO_ONE,
    ),
    "plms": Case(
        solver=plms,
        scheduler="PNDMScheduler",
        settings={"skip_prk_steps": True, "set_alpha_to_one": False},
        **TO_ONE,
    ),
    "euler": Case(solver=euler, scheduler="EulerDiscreteScheduler"),
    "euler_ancestral": Case(
        solver=euler_ancestral,
        scheduler="EulerAncestralDiscreteScheduler",
        spacings=("linspace", "leading", "trailing"),
        draws=True,
        apart={"linspace": 3e-4},
    ),
    "lms": Case(solver=lms, scheduler="LMSDiscreteScheduler"),
    "heun": Case(solver=heun, scheduler="HeunDiscreteScheduler"),
    "dpm2": Case(solver=dpm2, scheduler="KDPM2DiscreteScheduler", apart={"karras": 2e-4}),
    "dpm2_ancestral": Case(
        solver=dpm2_ancestral,
        scheduler="KDPM2AncestralDiscreteScheduler",
        draws=True,
        apart={"linspace": 3e-4, "karras": 7e-4},
    ),
    "dpmpp_2m": Case(solver=dpmpp_2m, scheduler="DPMSolverMultistepScheduler", **VP),
    "dpmpp_2m_sde": Case(
        solver=dpmpp_2m_sde,
        scheduler="DPMSolverMultistepScheduler",
        draws=True,
        settings={"algorithm_type": "sde-dpmsolver++"},
        **VP,
    ),
    "unipc": Case(solver=unipc, scheduler="UniPCMultistepScheduler", **VP),
    "unipc-3": Case(
        solver=partial(unipc, order=3),
        scheduler="UniPCMultistepScheduler",
        settings={"solver_order": 3},
        **VP,
    ),
}


def normals(seed: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def network(
    x: Tensor, t: Tensor, context: Tensor | None = None, mask: Tensor | None = None
) -> Tensor:
    """A smooth function of x and t near the size of a trained network's answer."""
    return (0.8 * x + 0.3 * x.roll(1, -1) - t.to(x)[:, None, None, None] / 2000).tanh()


def denoiser(prediction: str) -> Callable[[Tensor, Level], Denoised]:
    objective = Objective(schedule=ScaledLinear(), prediction=PREDICTIONS[prediction])
    wrapped = Denoiser(network, objective)
    return lambda x, level: wrapped(x, level, Conditioning())


def scheduler_of(case: Case, spacing: str, prediction: str, steps: int) -> Any:
    import diffusers

    settings = {**SD, "prediction_type": prediction, **case.settings}
    if spacing == "karras":
        settings["use_karras_sigmas"] = True
    else:
        settings["timestep_spacing"] = spacing
    if spacing == "leading":
        settings["steps_offset"] = 1
    scheduler = getattr(diffusers, case.scheduler)(**settings)
    scheduler.set_timesteps(steps)
    return scheduler


def theirs(scheduler: Any, x: Tensor, **step: Any) -> Tensor:
    """diffusers' denoising loop."""
    for t in scheduler.timesteps:
        fed = scheduler.scale_model_input(x, t)
        x = scheduler.step(network(fed, t.expand(len(x))), t, x, **step).prev_sample
    return x


def levels_of(case: Case, scheduler: Any, spacing: str, steps: int) -> Levels:
    if case.own_times:
        return explicit(ScaledLinear(), times=scheduler.timesteps.tolist())
    final_to_zero = case.final_to_zero or spacing not in ("leading", "trailing")
    return GRIDS[spacing](ScaledLinear(), steps=steps, final_to_zero=final_to_zero)


def compare(
    name: str, spacing: str, prediction: str, steps: int, dtype: torch.dtype = torch.float32
) -> None:
    case = CASES[name]
    scheduler = scheduler_of(case, spacing, prediction, steps)
    levels = levels_of(case, scheduler, spacing, steps)
    x = normals(0, dtype) * (scheduler.init_noise_sigma if case.sigma_space else 1)
    theirs_draws, ours_draws = {}, {}
    if case.draws:  # both draw once a step, in order; DPMSolverMultistep in float32 always
        generator = torch.Generator().manual_seed(5)
        drawn = dtype if case.sigma_space else torch.float32
        theirs_draws["generator"] = torch.Generator().manual_seed(5)
        ours_draws["noise"] = lambda i: torch.randn(SHAPE, generator=generator, dtype=drawn)
    want = theirs(scheduler, x, **theirs_draws)
    first = levels.alpha[0] if case.sigma_space else 1
    got = case.solver(denoiser(prediction), x * first, levels, **ours_draws)
    atol = max(CLOSE[dtype], case.apart.get(spacing, 0.0))
    assert_close(got.double(), want.double(), rtol=0, atol=atol)


BOTH = [(name, p) for name in CASES for p in PREDICTIONS if (name, p) != ("plms", "v_prediction")]


@pytest.mark.parametrize(("name", "prediction"), BOTH)
def test_the_usual_spacing(name: str, prediction: str) -> None:
    if name == "lms":
        pytest.importorskip("scipy", reason="diffusers' LMS integrates with scipy")
    compare(name, CASES[name].spacings[0], prediction, steps=20)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "prediction"), BOTH)
@pytest.mark.parametrize("dtype", CLOSE, ids=str)
@pytest.mark.parametrize("steps", [10, 20, 50])
def test_every_spacing(name: str, prediction: str, dtype: torch.dtype, steps: int) -> None:
    if name == "lms":
        pytest.importorskip("scipy", reason="diffusers' LMS integrates with scipy")
    for spacing in CASES[name].spacings:
        compare(name, spacing, prediction, steps, dtype)


@pytest.mark.parametrize("name", ["euler", "lms", "heun"])
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_karras(name: str, prediction: str) -> None:
    if name == "lms":
        pytest.importorskip("scipy", reason="diffusers' LMS integrates with scipy")
    compare(name, "karras", prediction, steps=10)


def test_plms_asks_where_pndm_asks() -> None:
    scheduler = scheduler_of(CASES["plms"], "leading", "epsilon", 50)
    assert scheduler.timesteps.tolist()[:4] == [981, 961, 961, 941]
    asked: list[float] = []
    denoise = denoiser("epsilon")

    def watched(x: Tensor, level: Level) -> Denoised:
        asked.append(float(level.t))
        return denoise(x, level)

    plms(watched, normals(0), leading(ScaledLinear(), steps=50))
    assert asked == scheduler.timesteps.tolist()  # 51 evaluations, the second time twice


@pytest.mark.parametrize("steps", [10, 20, 50])
def test_plms_with_v_is_pndm_told_eps(steps: int) -> None:
    """Their PNDM mixes the v of different levels, which is first order; ours mixes eps always.

    Told the eps that a v network means, it is the same again.
    """
    scheduler = scheduler_of(CASES["plms"], "leading", "epsilon", steps)
    denoise, schedule = denoiser("v_prediction"), ScaledLinear()
    want = normals(0)
    for t in scheduler.timesteps:
        eps = denoise(want, schedule.at(t.double())).eps
        want = scheduler.step(eps, t, want).prev_sample
    got = plms(denoise, normals(0), leading(schedule, steps=steps))
    assert_close(got, want, rtol=0, atol=CLOSE[torch.float32])


@pytest.mark.parametrize("steps", [25, 10])
def test_dpmpp_2m_to_sigma_min(steps: int) -> None:
    """Where the last step of many is second order and that of few is not."""
    case = Case(
        solver=dpmpp_2m,
        scheduler="DPMSolverMultistepScheduler",
        settings={"final_sigmas_type": "sigma_min"},
        **VP,
    )
    scheduler = scheduler_of(case, "linspace", "epsilon", steps)
    times = scheduler.timesteps.tolist()
    levels = explicit(ScaledLinear(), times=times, final_to_zero=False)
    got = dpmpp_2m(denoiser("epsilon"), normals(0), levels)
    assert_close(got, theirs(scheduler, normals(0)), rtol=0, atol=CLOSE[torch.float32])


@pytest.fixture
def sde_scheduler(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Their DPM++ SDE; torchsde, which makes its noise, is not needed where noise is given."""
    import diffusers  # noqa: F401

    monkeypatch.setitem(sys.modules, "torchsde", ModuleType("torchsde"))
    from diffusers.schedulers.scheduling_dpmsolver_sde import DPMSolverSDEScheduler

    return DPMSolverSDEScheduler


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize(("spacing", "steps"), [("karras", 10), ("karras", 20), ("leading", 50)])
def test_dpmpp_sde(sde_scheduler: Any, prediction: str, spacing: str, steps: int) -> None:
    given = {"use_karras_sigmas": True, "timestep_spacing": "linspace"}
    if spacing == "leading":
        given = {"timestep_spacing": "leading", "steps_offset": 1}
    scheduler = sde_scheduler(**SD, prediction_type=prediction, **given)
    scheduler.set_timesteps(steps)
    calls: list[Tensor] = []  # lengths in sigma; each half is followed by its whole

    def path(now: Tensor, to: Tensor) -> Tensor:
        """Normed increments of one Brownian motion in sigma."""
        calls.append(now - to)
        step, is_whole = divmod(len(calls) - 1, 2)
        half = normals(100 + 2 * step)
        if not is_whole:
            return half
        share = calls[-2] / calls[-1]
        return share.sqrt() * half + (1 - share).sqrt() * normals(101 + 2 * step)

    scheduler.noise_sampler = path
    wide = normals(0) * scheduler.init_noise_sigma
    levels = GRIDS[spacing](ScaledLinear(), steps=steps, final_to_zero=True)
    noise = lambda key: normals(100 + key)  # noqa: E731
    got = dpmpp_sde(denoiser(prediction), wide * levels.alpha[0], levels, noise=noise)
    assert_close(got, theirs(scheduler, wide), rtol=0, atol=CLOSE[torch.float32])
