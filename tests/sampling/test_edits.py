"""Does inpainting carry the known region at the right level, whatever the solver?"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from ldm.diffusion.schedules import Flow, ScaledLinear, Schedule
from ldm.sampling.edits import inpaint
from ldm.sampling.levels import leading, linspace, trailing
from ldm.sampling.presets import SAMPLERS
from ldm.sampling.solvers import ddim, dpm2, dpmpp_2m, euler, heun, lms, plms, unipc
from ldm.types import Denoised, Level

SOLVERS = {
    "ddim": ddim,
    "euler": euler,
    "heun": heun,
    "plms": plms,
    "lms": lms,
    "2m": dpmpp_2m,
    "dpm2": dpm2,
    "unipc": unipc,
}
KNOWN, NOISE = (
    torch.randn(2, 4, 6, 6, generator=torch.Generator().manual_seed(s)).double() for s in range(2)
)
MASK = torch.zeros(2, 1, 6, 6, dtype=torch.float64)
MASK[..., 3:] = 1  # repaint the right half


@pytest.mark.parametrize("name", SOLVERS)
@pytest.mark.parametrize("schedule", [ScaledLinear(), Flow()], ids=str)
def test_known_region_is_at_its_level_after_every_step(
    name: str, schedule: Schedule, gaussian: Any
) -> None:
    """alpha known + sigma noise there, although the first x is pure noise everywhere."""
    levels = trailing(schedule, steps=12)
    seen: list[tuple[Level, Tensor]] = []

    def denoise(x: Tensor, level: Level) -> Denoised:
        seen.append((level, x))
        return gaussian.denoise(x, level)

    x = SOLVERS[name](inpaint(denoise, KNOWN, MASK, NOISE), NOISE, levels)
    seen.append((levels.at(12), x))
    assert torch.equal(seen[0][1], NOISE)
    for level, at in seen[1:]:
        want = level.alpha * KNOWN + level.sigma * NOISE
        assert_close(at[..., :3], want[..., :3], rtol=0, atol=1e-5)  # levels are float32


def test_ddim_is_the_blend_after_each_step(gaussian: Any) -> None:
    """diffusers' legacy inpainting: x = m x + (1 - m) add_noise(known, noise, next level)."""
    levels = leading(ScaledLinear(), steps=10)
    x = NOISE
    for i in range(10):
        level, to = levels.at(i), levels.at(i + 1)
        belief = gaussian.denoise(x, level)
        stepped = to.alpha * belief.x0 + to.sigma * belief.eps
        x = MASK * stepped + (1 - MASK) * (to.alpha * KNOWN + to.sigma * NOISE)
    got = ddim(inpaint(gaussian.denoise, KNOWN, MASK, NOISE), NOISE, levels)
    assert_close(got, x, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", [name for name, s in SAMPLERS.items() if s.eta > 0])
def test_fresh_noise_keeps_the_known_region_known(name: str, gaussian: Any) -> None:
    levels = linspace(ScaledLinear(), steps=10)  # ends at sigma = 0

    def noise(step: int) -> Tensor:
        return torch.randn(KNOWN.shape, generator=torch.Generator().manual_seed(step)).double()

    denoise = inpaint(gaussian.denoise, KNOWN, MASK, NOISE)
    x = SAMPLERS[name].solve(denoise, NOISE, levels, eta=1.0, noise=noise)
    assert torch.equal(x[..., :3], KNOWN[..., :3])
    assert not torch.equal(x[..., 3:], KNOWN[..., 3:])


def test_masks_of_one_and_zero(gaussian: Any) -> None:
    level = ScaledLinear().at(torch.tensor(300.0))
    everything = inpaint(gaussian.denoise, KNOWN, torch.ones_like(MASK), NOISE)(KNOWN, level)
    plain = gaussian.denoise(KNOWN, level)
    assert torch.equal(everything.x0, plain.x0)
    assert torch.equal(everything.eps, plain.eps)
    nothing = inpaint(gaussian.denoise, KNOWN, torch.zeros_like(MASK), NOISE)(NOISE, level)
    assert torch.equal(nothing.x0, KNOWN)
    assert torch.equal(nothing.eps, NOISE)
