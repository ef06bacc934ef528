"""Is DDIM with fresh noise the ancestral sampler, in any coordinates?"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from ldm.diffusion.schedules import EDM, Flow, ScaledLinear, Schedule
from ldm.sampling.levels import leading, linspace, trailing
from ldm.sampling.solvers import ddim, ddpm, euler, euler_ancestral
from ldm.types import Denoised, Level


def keyed(shape: torch.Size) -> Any:
    """Noise of step i from i alone."""
    return lambda i: torch.randn(shape, generator=torch.Generator().manual_seed(i)).double()


def test_eta_is_song_et_al_equation_16(gaussian: Any) -> None:
    """One step against the published formula in abar: sigma = eta sqrt(..) sqrt(..)."""
    schedule, eta = ScaledLinear(), 0.6
    levels = leading(schedule, steps=50)
    x = torch.randn(64, generator=torch.Generator().manual_seed(0)).double()
    noise = keyed(x.shape)
    belief = gaussian.denoise(x, levels.at(0))
    abar, to = schedule.alphas_cumprod()[981], schedule.alphas_cumprod()[961]
    fresh = eta * ((1 - to) / (1 - abar)).sqrt() * (1 - abar / to).sqrt()
    want = to.sqrt() * belief.x0 + (1 - to - fresh**2).sqrt() * belief.eps + fresh * noise(0)
    one = type(levels)(levels.t[:2], levels.alpha[:2], levels.sigma[:2])
    got = ddim(gaussian.denoise, x, one, eta=eta, noise=noise)
    assert_close(got, want, rtol=0, atol=1e-6)  # levels are float32


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_ddim_is_euler_ancestral_in_sigma_space(eta: float, gaussian: Any) -> None:
    """k-diffusion's get_ancestral_step on x/alpha and sigma/alpha gives the same samples."""
    levels = linspace(ScaledLinear(), steps=20)
    x = torch.randn(64, generator=torch.Generator().manual_seed(0)).double()
    noise = keyed(x.shape)
    got = ddim(gaussian.denoise, x, levels, eta=eta, noise=noise)
    wide = x / levels.alpha[0].double()
    ratio = (levels.sigma.double() / levels.alpha.double()).tolist()
    for i, (now, to) in enumerate(pairwise(ratio)):
        level = levels.at(i)
        x0 = gaussian.denoise(wide * level.alpha.double(), level).x0
        up = min(to, eta * (to**2 * (now**2 - to**2) / now**2) ** 0.5)
        down = (to**2 - up**2) ** 0.5
        wide = wide + (wide - x0) / now * (down - now) + up * noise(i)
    assert_close(got, wide, rtol=0, atol=1e-5)  # levels are float32, 20 steps


@pytest.mark.parametrize("schedule", [ScaledLinear(), Flow(), EDM(sigma_max=20.0)], ids=str)
def test_fresh_noise_keeps_the_distribution(schedule: Schedule, gaussian: Any) -> None:
    """The mean and spread of the data come out whatever eta; 400 steps, 40,000 samples."""
    levels = linspace(schedule, steps=400)
    z = torch.randn(40_000, generator=torch.Generator().manual_seed(7)).double()
    x = ddpm(gaussian.denoise, gaussian.exact(z, levels.at(0)), levels, noise=keyed(z.shape))
    # 5 standard errors are 0.018 and 0.012; the rest is what 400 first-order steps leave
    assert abs(float(x.mean()) - gaussian.mean) < 0.02
    assert abs(float(x.std()) - gaussian.std) < 0.02


def test_full_step_ddpm_is_the_posterior(gaussian: Any) -> None:
    """Ho et al. 2020, eqs. 6-7 with the posterior variance, on the training grid itself."""
    schedule = ScaledLinear(num_train_steps=10)
    levels = trailing(schedule, steps=10, final_to_zero=True)
    x = torch.randn(32, generator=torch.Generator().manual_seed(0)).double()
    noise = keyed(x.shape)
    got = ddpm(gaussian.denoise, x, levels, noise=noise)
    betas, abar = schedule.betas(), schedule.alphas_cumprod()
    for t in reversed(range(10)):
        before = abar[t - 1] if t else torch.tensor(1.0).double()
        x0 = gaussian.denoise(x, levels.at(9 - t)).x0
        mean = (
            before.sqrt() * betas[t] / (1 - abar[t]) * x0
            + (1 - betas[t]).sqrt() * (1 - before) / (1 - abar[t]) * x
        )
        x = mean + ((1 - before) / (1 - abar[t]) * betas[t]).sqrt() * noise(9 - t)
    assert_close(got, x, rtol=0, atol=1e-5)  # levels are float32


def test_out_of_pure_noise_eta_1_forgets_x() -> None:
    """At alpha = 0 all of sigma' is fresh: x' = alpha' x0 + sigma' noise."""
    levels = linspace(Flow(), steps=3).truncate(1.0)
    first = type(levels)(levels.t[:2], levels.alpha[:2], levels.sigma[:2])
    assert first.at(0).alpha == 0
    x0, eps, fresh = (torch.randn(5, generator=torch.Generator().manual_seed(s)) for s in range(3))

    def denoise(x: Tensor, level: Level) -> Denoised:
        return Denoised(x0, eps)

    got = ddim(denoise, eps, first, eta=1.0, noise=lambda i: fresh)
    assert_close(got, first.alpha[1] * x0 + first.sigma[1] * fresh, rtol=0, atol=1e-6)


def test_names_for_the_same_solver(gaussian: Any, uniform_in_lambda: Any, z: Tensor) -> None:
    levels, noise = uniform_in_lambda(9), keyed(z.shape)
    plain = ddim(gaussian.denoise, z, levels)
    ancestral = ddim(gaussian.denoise, z, levels, eta=1.0, noise=noise)
    assert torch.equal(euler(gaussian.denoise, z, levels), plain)
    assert torch.equal(euler_ancestral(gaussian.denoise, z, levels, noise=noise), ancestral)
    assert torch.equal(ddpm(gaussian.denoise, z, levels, noise=noise), ancestral)
    assert not torch.equal(plain, ancestral)
