"""Do the sampler names mean the same in Python, in conf and in the papers?"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import hydra
import pytest
import torch
from omegaconf import OmegaConf
from torch import Tensor
from torch.testing import assert_close

from ldm.diffusion.schedules import EDM, Flow, ScaledLinear, Schedule
from ldm.sampling.levels import GRIDS
from ldm.sampling.presets import (
    ALIASES,
    SAMPLER_NAMES,
    SAMPLERS,
    get_sampler,
    own_noise,
    total_noise,
)

CONF = Path(__file__).parents[2] / "conf"
KEYS = {"sampler", "steps", "guidance", "guidance_rescale", "eta"}
WITH_ETA = {
    "ddim",
    "ddim_trailing",
    "ddpm",
    "euler_ancestral",
    "dpm2_ancestral",
    "dpmpp_2s_ancestral",
    "dpmpp_2s_ancestral_karras",
    "dpmpp_sde",
    "dpmpp_sde_karras",
    "dpmpp_2m_sde",
    "dpmpp_2m_sde_karras",
}
ETA_1 = WITH_ETA - {"ddim", "ddim_trailing"}
# what diffusers, k-diffusion and the web UIs call them
USERS_NAMES = [
    "ddim",
    "ddpm",
    "pndm",
    "plms",
    "k_lms",
    "lms",
    "lms_karras",
    "euler",
    "euler_karras",
    "euler_a",
    "euler_ancestral",
    "heun",
    "heun_karras",
    "dpm2",
    "dpm2_karras",
    "dpm2_a",
    "dpmpp_2m",
    "dpmpp_2m_karras",
    "dpmpp_2s_a",
    "dpmpp_2s_a_karras",
    "dpmpp_sde",
    "dpmpp_sde_karras",
    "dpmpp_2m_sde",
    "dpmpp_2m_sde_karras",
    "unipc",
    "edm",
    "heun_churn",
    "ays",
]


def noise(key: int) -> Tensor:
    return torch.randn(2, 3, generator=torch.Generator().manual_seed(key))


def test_every_name_has_a_file_and_the_reverse() -> None:
    assert {file.stem for file in (CONF / "sampling").glob("*.yaml")} == set(SAMPLER_NAMES)
    assert len(set(SAMPLER_NAMES)) == len(SAMPLER_NAMES)


@pytest.mark.parametrize("name", SAMPLERS)
def test_file_says_what_the_preset_says(name: str) -> None:
    file = CONF / "sampling" / f"{name}.yaml"
    values = OmegaConf.to_container(OmegaConf.load(file))
    assert isinstance(values, dict)
    assert set(values) == KEYS
    assert values.pop("sampler") == name
    assert values == {key: getattr(SAMPLERS[name], key) for key in values}
    assert all("  # " in line for line in file.read_text().splitlines())


@pytest.mark.parametrize(("alias", "name"), ALIASES.items())
def test_an_alias_is_no_copy(alias: str, name: str) -> None:
    assert get_sampler(alias) is SAMPLERS[name]
    file = CONF / "sampling" / f"{alias}.yaml"
    assert OmegaConf.to_container(OmegaConf.load(file)) == {"defaults": [name]}


def test_an_alias_composes() -> None:
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        one, other = (hydra.compose("train", [f"sampling={name}"]) for name in ("pndm", "plms"))
    assert one.sampling == other.sampling
    assert one.sampling.sampler == "plms"


def test_users_names_exist() -> None:
    assert set(USERS_NAMES) <= set(SAMPLER_NAMES)


def test_unknown_names_list_the_nearest_first() -> None:
    with pytest.raises(ValueError, match=r"sampler 'dpmpp2m' is unknown; known: dpmpp_2m, "):
        get_sampler("dpmpp2m")
    with pytest.raises(ValueError, match=r"sampler 'pmdn' is unknown; known: pndm, .*ddim"):
        get_sampler("pmdn")
    with pytest.raises(ValueError, match=r"grid 'karas' is unknown; known: karras, .*leading"):
        get_sampler("ddim", grid="karas")
    with pytest.raises(ValueError, match="sampler '' is unknown"):
        get_sampler("", grid="karras")


def test_a_grid_is_swapped_and_nothing_else() -> None:
    schedule = ScaledLinear()
    lms = get_sampler("k_lms", grid="karras")
    assert lms == SAMPLERS["lms_karras"]
    assert get_sampler("dpmpp_2m", grid="karras").start is total_noise
    for grid in GRIDS:
        swapped = get_sampler("euler", grid=grid)
        assert (swapped.solve, swapped.steps) == (SAMPLERS["euler"].solve, SAMPLERS["euler"].steps)
        levels = swapped.grid(schedule, steps=7)
        assert torch.equal(levels.t, GRIDS[grid](schedule, steps=7).t)
        assert levels.sigma[-1] == 0


@pytest.mark.parametrize("name", SAMPLER_NAMES)
def test_a_sampler_keeps_its_own_end(name: str) -> None:
    """Only DDIM and PLMS stop at the first step; on a grid that holds it they go on to no noise."""
    schedule = ScaledLinear()
    stops = ALIASES.get(name, name) in ("ddim", "ddim_trailing", "plms")
    for grid in (None, "leading", "trailing"):
        last = get_sampler(name, grid=grid).grid(schedule, steps=5).at(5)
        assert (last.sigma > 0) == stops
    for grid in ("linspace", "karras", "exponential", "ays", "flow", "flow_shift"):
        levels = get_sampler(name, grid=grid).grid(schedule, steps=5)
        assert levels.at(5).sigma == 0
    assert get_sampler("ddim", grid="leading") == SAMPLERS["ddim"]


@pytest.mark.parametrize("name", SAMPLERS)
def test_eta_is_used_or_refused(name: str, gaussian: Any, uniform_in_lambda: Any) -> None:
    sampler, levels = SAMPLERS[name], uniform_in_lambda(5)
    x = torch.ones(2, 3, dtype=torch.float64)

    def solved(eta: float) -> Tensor:
        return sampler.solve(gaussian.denoise, x, levels, eta=eta, noise=noise)

    if name in WITH_ETA:
        assert not torch.equal(solved(1.0), solved(0.0))
        with pytest.raises(ValueError, match=r"eta=1\.5; allowed: 0"):
            solved(1.5)
    else:
        with pytest.raises(ValueError, match=r"eta=1\.0.*use eta=0, or one of ddim.*dpmpp_sde"):
            solved(1.0)
    assert sampler.eta == (1.0 if name in ETA_1 else 0.0)


def test_churn_needs_noise(gaussian: Any, uniform_in_lambda: Any, z: Tensor) -> None:
    with pytest.raises(ValueError, match=r"churn adds noise.*give noise"):
        SAMPLERS["heun_churn"].solve(gaussian.denoise, z, uniform_in_lambda(5), eta=0.0)


def sampled(name: str, grid: str | None, schedule: Schedule, steps: int, gaussian: Any) -> Tensor:
    sampler = get_sampler(name, grid=grid)
    levels = sampler.grid(schedule, steps=steps)
    x = sampler.start(noise(-1), levels)
    return sampler.solve(gaussian.denoise, x, levels, eta=sampler.eta, noise=noise)


SCHEDULES = [ScaledLinear(), ScaledLinear(zero_terminal_snr=True), Flow(), EDM()]


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
def test_few_steps_on_every_grid_are_finite(name: str, schedule: Schedule, gaussian: Any) -> None:
    """Finite, not good: two steps from sigma 80 by eps alone overshoot by far."""
    for steps in (1, 2, 3, 7):
        for grid in (None, *GRIDS):
            x = sampled(name, grid, schedule, steps, gaussian)
            assert bool(x.isfinite().all()), (steps, grid)


@pytest.mark.slow
@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("schedule", SCHEDULES[:3], ids=str)
def test_many_steps_are_finite(name: str, schedule: Schedule, gaussian: Any) -> None:
    for steps in (999, 1000, 1001, 2000):
        x = sampled(name, None, schedule, steps, gaussian)
        assert bool(x.isfinite().all()), steps
        assert float(x.abs().max()) < 10, steps


def test_starts() -> None:
    """K-LMS starts from sigma_max z in sigma space; where alpha^2 + sigma^2 = 1, DDIM from z."""
    normals = torch.randn(2, 3, generator=torch.Generator().manual_seed(0))
    levels = SAMPLERS["lms"].grid(ScaledLinear(), steps=50)
    start = SAMPLERS["lms"].start(normals, levels)
    assert_close(start / levels.alpha[0], 14.6146 * normals, rtol=1e-5, atol=0)
    levels = SAMPLERS["ddim"].grid(ScaledLinear(), steps=50)
    assert_close(total_noise(normals, levels), normals, rtol=1e-6, atol=0)
    # diffusers' sqrt(sigma^2 + 1) of the leading grid, 13.15847
    wide = total_noise(normals, levels) / levels.alpha[0]
    assert_close(wide, 13.15847 * normals, rtol=1e-5, atol=0)
    levels = SAMPLERS["heun"].grid(EDM(), steps=18)
    assert_close(own_noise(normals, levels), 80 * normals, rtol=1e-6, atol=0)
