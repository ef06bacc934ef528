"""Do the sampler names mean the same in Python, in conf and in the papers?"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from torch.testing import assert_close

from ldm.diffusion.schedules import EDM, ScaledLinear
from ldm.sampling.presets import SAMPLERS, get_sampler, own_noise, total_noise

CONF = Path(__file__).parents[2] / "conf" / "sampling"
KEYS = {"sampler", "steps", "guidance", "guidance_rescale", "eta"}


def test_every_preset_has_a_file_and_the_reverse() -> None:
    assert {file.stem for file in CONF.glob("*.yaml")} == set(SAMPLERS)


@pytest.mark.parametrize("name", SAMPLERS)
def test_file_says_what_the_preset_says(name: str) -> None:
    file = CONF / f"{name}.yaml"
    values = OmegaConf.to_container(OmegaConf.load(file))
    assert isinstance(values, dict)
    assert set(values) == KEYS
    assert values.pop("sampler") == name
    assert values == {key: getattr(SAMPLERS[name], key) for key in values}
    assert all("  # " in line for line in file.read_text().splitlines())


def test_public_names_exist() -> None:
    assert {"ddim", "plms", "lms", "euler", "heun", "dpmpp_2m"} <= set(SAMPLERS)


def test_unknown_sampler_lists_the_nearest_first() -> None:
    with pytest.raises(ValueError, match=r"'dpmpp2m' is unknown; known: dpmpp_2m, "):
        get_sampler("dpmpp2m")
    assert get_sampler("ddim") is SAMPLERS["ddim"]


@pytest.mark.parametrize("name", SAMPLERS)
def test_eta_is_used_or_refused(name: str, gaussian: Any, uniform_in_lambda: Any) -> None:
    sampler, levels = SAMPLERS[name], uniform_in_lambda(5)
    x = torch.ones(2, 3, dtype=torch.float64)

    def solved(eta: float) -> torch.Tensor:
        return sampler.solve(gaussian.denoise, x, levels, eta=eta, noise=lambda i: x)

    if name in ("ddim", "ddim_trailing", "ddpm", "euler_ancestral"):
        assert not torch.equal(solved(1.0), solved(0.0))
    else:
        with pytest.raises(ValueError, match=r"eta=1\.0.*use eta=0, or one of ddim"):
            solved(1.0)
    assert sampler.eta == (1.0 if name in ("ddpm", "euler_ancestral") else 0.0)


def test_starts() -> None:
    """K-LMS starts from sigma_max z in sigma space; where alpha^2 + sigma^2 = 1, DDIM from z."""
    noise = torch.randn(2, 3, generator=torch.Generator().manual_seed(0))
    levels = SAMPLERS["lms"].grid(ScaledLinear(), steps=50)
    start = SAMPLERS["lms"].start(noise, levels)
    assert_close(start / levels.alpha[0], 14.6146 * noise, rtol=1e-5, atol=0)
    levels = SAMPLERS["ddim"].grid(ScaledLinear(), steps=50)
    assert_close(total_noise(noise, levels), noise, rtol=1e-6, atol=0)
    # diffusers' sqrt(sigma^2 + 1) of the leading grid, 13.15847
    assert_close(total_noise(noise, levels) / levels.alpha[0], 13.15847 * noise, rtol=1e-5, atol=0)
    levels = SAMPLERS["heun"].grid(EDM(), steps=18)
    assert_close(own_noise(noise, levels), 80 * noise, rtol=1e-6, atol=0)
