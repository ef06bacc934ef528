"""Are schedules, grids, fresh noise and rescaled guidance those of diffusers?"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from ldm.diffusion.objective import Objective
from ldm.diffusion.prediction import Eps, FlowVelocity, V
from ldm.diffusion.schedules import Cosine, Flow, Linear, ScaledLinear
from ldm.sampling.denoiser import Denoiser
from ldm.sampling.guidance import rescaled
from ldm.sampling.levels import Levels, flow_shift, leading, trailing
from ldm.sampling.solvers import ddim, ddpm, euler
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
CLOSE = {"rtol": 0.0, "atol": 1e-4}  # both compute in float32, over up to 50 steps of values near 1


def normals(seed: int) -> Tensor:
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(seed))


def network(
    x: Tensor, t: Tensor, context: Tensor | None = None, mask: Tensor | None = None
) -> Tensor:
    """A smooth function of x and t near the size of a trained network's answer."""
    return (0.8 * x + 0.3 * x.roll(1, -1) - t[:, None, None, None] / 2000).tanh()


def bound(objective: Objective) -> Callable[[Tensor, Level], Denoised]:
    denoiser = Denoiser(network, objective)
    return lambda x, level: denoiser(x, level, Conditioning())


def theirs(scheduler: Any, x: Tensor, **step: Any) -> Tensor:
    """diffusers' denoising loop."""
    for t in scheduler.timesteps:
        fed = scheduler.scale_model_input(x, t)
        x = scheduler.step(network(fed, t.float().expand(len(x))), t, x, **step).prev_sample
    return x


@pytest.mark.parametrize("steps", [50, 30])
def test_leading_times_for_any_steps(steps: int) -> None:
    from diffusers import DDIMScheduler

    scheduler = DDIMScheduler(**SD, steps_offset=1, timestep_spacing="leading")
    scheduler.set_timesteps(steps)
    assert leading(ScaledLinear(), steps=steps).t[:-1].tolist() == scheduler.timesteps.tolist()


def test_ddim_zero_terminal_snr_to_alpha_one() -> None:
    from diffusers import DDIMScheduler

    scheduler = DDIMScheduler(
        **SD,
        clip_sample=False,
        set_alpha_to_one=True,
        timestep_spacing="trailing",
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
    )
    scheduler.set_timesteps(50)
    objective = Objective(schedule=ScaledLinear(zero_terminal_snr=True), prediction=V())
    levels = trailing(objective.schedule, steps=50, final_to_zero=True)
    got = ddim(bound(objective), normals(0), levels)
    assert_close(got, theirs(scheduler, normals(0)), **CLOSE)


def test_ddim_with_fresh_noise() -> None:
    from diffusers import DDIMScheduler

    scheduler = DDIMScheduler(
        **SD, clip_sample=False, set_alpha_to_one=False, steps_offset=1, timestep_spacing="leading"
    )
    scheduler.set_timesteps(50)
    want = normals(0)
    for i, t in enumerate(scheduler.timesteps):
        out = network(want, t.float().expand(len(want)))
        step = scheduler.step(out, t, want, eta=0.7, variance_noise=normals(100 + i))
        want = step.prev_sample
    objective = Objective(schedule=ScaledLinear(), prediction=Eps())
    levels = leading(objective.schedule, steps=50)
    noise = lambda i: normals(100 + i)  # noqa: E731
    got = ddim(bound(objective), normals(0), levels, eta=0.7, noise=noise)
    assert_close(got, want, **CLOSE)


def test_ddpm() -> None:
    from diffusers import DDPMScheduler

    scheduler = DDPMScheduler(
        **SD, clip_sample=False, timestep_spacing="trailing", variance_type="fixed_small"
    )
    scheduler.set_timesteps(50)
    want = theirs(scheduler, normals(0), generator=torch.Generator().manual_seed(5))
    objective = Objective(schedule=ScaledLinear(), prediction=Eps())
    levels = trailing(objective.schedule, steps=50, final_to_zero=True)
    generator = torch.Generator().manual_seed(5)
    noise = lambda i: torch.randn(SHAPE, generator=generator)  # noqa: E731
    got = ddpm(bound(objective), normals(0), levels, noise=noise)
    assert_close(got, want, **CLOSE)


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_flow_euler(shift: float) -> None:
    from diffusers import FlowMatchEulerDiscreteScheduler

    scheduler = FlowMatchEulerDiscreteScheduler(num_train_timesteps=1000, shift=shift)
    scheduler.set_timesteps(sigmas=(1 - torch.arange(28) / 28).tolist())
    objective = Objective(schedule=Flow(), prediction=FlowVelocity())
    levels: Levels = flow_shift(objective.schedule, steps=28, shift=shift)
    assert_close(levels.sigma, scheduler.sigmas, rtol=0, atol=1e-6)
    want = normals(0)
    for t in scheduler.timesteps:
        want = scheduler.step(network(want, t.expand(len(want))), t, want).prev_sample
    assert_close(euler(bound(objective), normals(0), levels), want, **CLOSE)


def test_guidance_rescale() -> None:
    from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import rescale_noise_cfg

    want = rescale_noise_cfg(normals(0), normals(1), guidance_rescale=0.7)
    assert_close(rescaled(normals(0), normals(1), 0.7), want, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("schedule", "beta_schedule"),
    [(ScaledLinear(), "scaled_linear"), (Linear(), "linear"), (Cosine(), "squaredcos_cap_v2")],
    ids=["scaled_linear", "linear", "cosine"],
)
@pytest.mark.parametrize("zero_terminal_snr", [False, True])
def test_alphas_cumprod(schedule: Any, beta_schedule: str, zero_terminal_snr: bool) -> None:
    from diffusers import DDIMScheduler

    schedule = type(schedule)(zero_terminal_snr=zero_terminal_snr)
    spec = schedule.spec()
    scheduler = DDIMScheduler(
        beta_start=spec.get("beta_start", 0.0001),
        beta_end=spec.get("beta_end", 0.02),
        beta_schedule=beta_schedule,
        rescale_betas_zero_snr=zero_terminal_snr,
    )
    # theirs is a float32 product of 1000 factors
    assert_close(schedule.alphas_cumprod().float(), scheduler.alphas_cumprod, rtol=0, atol=2e-6)
