"""Is inpainting without training diffusers' blend after every step, with DDIM?

Their legacy pipeline steps, then puts the known latents back at the next time with the same noise,
and clean after the last step. Our denoiser believes (known, noise) there instead, and the caller
puts the clean latents back once at the end.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from ldm.diffusion.objective import Objective
from ldm.diffusion.prediction import Eps, V
from ldm.diffusion.schedules import ScaledLinear
from ldm.sampling.denoiser import Denoiser
from ldm.sampling.edits import inpaint
from ldm.sampling.levels import leading
from ldm.sampling.solvers import ddim
from ldm.types import Conditioning, Denoised, Level

pytestmark = pytest.mark.reference
SHAPE = (2, 4, 8, 8)
PREDICTIONS = {"epsilon": Eps(), "v_prediction": V()}


def normals(seed: int) -> Tensor:
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(seed))


KNOWN, NOISE = normals(0), normals(1)
MASK = torch.zeros(2, 1, 8, 8)
MASK[0, :, 2:6, 3:] = 1  # repaint
MASK[1, :, :4] = 1


def network(
    x: Tensor, t: Tensor, context: Tensor | None = None, mask: Tensor | None = None
) -> Tensor:
    """Looks beyond a pixel, so that the known region tells on the hole."""
    near = x + x.roll(1, -1) + x.roll(-1, -2)
    return (0.5 * near - t.to(x)[:, None, None, None] / 2000).tanh()


def theirs(prediction: str, steps: int, strength: float) -> Tensor:
    """The loop of the legacy pipeline, written out on their scheduler."""
    from diffusers import DDIMScheduler

    scheduler: Any = DDIMScheduler(
        num_train_timesteps=1000,
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        prediction_type=prediction,
    )
    scheduler.set_timesteps(steps)
    times = scheduler.timesteps[max(steps - int(steps * strength), 0) :]
    x = NOISE if strength == 1 else scheduler.add_noise(KNOWN, NOISE, times[:1])
    for i, t in enumerate(times):
        x = scheduler.step(network(x, t.float().expand(len(x))), t, x).prev_sample
        last = i == len(times) - 1
        known = KNOWN if last else scheduler.add_noise(KNOWN, NOISE, times[i + 1 : i + 2])
        x = MASK * x + (1 - MASK) * known
    return x


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("steps", [10, 50])
@pytest.mark.parametrize("strength", [1.0, 0.6])
def test_the_legacy_blend(prediction: str, steps: int, strength: float) -> None:
    objective = Objective(schedule=ScaledLinear(), prediction=PREDICTIONS[prediction])
    wrapped = Denoiser(network, objective)

    def denoise(x: Tensor, level: Level) -> Denoised:
        return wrapped(x, level, Conditioning())

    levels = leading(objective.schedule, steps=steps).truncate(strength)
    first = levels.at(0)
    start = NOISE if strength == 1 else first.alpha * KNOWN + first.sigma * NOISE
    x = ddim(inpaint(denoise, KNOWN, MASK, NOISE), start, levels)
    got = torch.where(MASK == 1, x, KNOWN)
    assert_close(got, theirs(prediction, steps, strength), rtol=0, atol=1e-4)
    hole = (MASK == 1).expand(SHAPE)
    assert torch.equal(got[~hole], KNOWN[~hole])
    alone = ddim(denoise, start, levels)
    assert float((alone - got)[hole].abs().max()) > 0.01  # the known region told on the hole
