"""Does DDIM up the levels and down again return, with more steps the better?

Closed form: solvers/test_orders.py. Here the shipped network, which was trained.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from ldm.diffusion.objective import Objective, objective_from_spec
from ldm.io.load import load_model
from ldm.sampling.denoiser import Denoise, Denoiser
from ldm.sampling.guidance import cfg
from ldm.sampling.levels import trailing
from ldm.sampling.solvers import ddim, dpmpp_2m
from ldm.types import Denoised, Level

Solver = Callable[..., Tensor]
Shipped = tuple[Denoise, Objective, Tensor]


@pytest.fixture(scope="module")
def shipped() -> Shipped:
    """The tiny UNet told of one shape, without guidance, and latents that it made."""
    model = load_model("tiny", weights="ema", dtype=torch.float32)
    objective = objective_from_spec(model.card["objective"])
    cond = model.text.encode(["a large red circle"])
    denoise = cfg(Denoiser(model.unet.eval(), objective), cond, cond, scale=1.0)
    normals = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        clean = ddim(denoise, normals, trailing(objective.schedule, steps=25))
    return denoise, objective, clean


def lost(solver: Solver, shipped: Shipped, steps: int) -> float:
    """Relative error of latents that went up to noise and came down again."""
    denoise, objective, clean = shipped
    levels = trailing(objective.schedule, steps=steps)
    with torch.inference_mode():
        noisy = solver(denoise, clean, levels.reversed())
        back = solver(denoise, noisy, levels)
    assert float((noisy - clean).norm() / clean.norm()) > 0.5  # it went somewhere
    return float((back - clean).norm() / clean.norm())


def test_more_steps_lose_less(shipped: Shipped) -> None:
    few, many = (lost(ddim, shipped, steps) for steps in (10, 40))
    assert many < 0.5 * few
    assert many < 0.05  # 0.031; 0.019 at 80 steps, 0.010 at 160
    assert lost(dpmpp_2m, shipped, 10) < few  # any solver inverts; second order loses less


@pytest.mark.slow
def test_a_thousand_steps_lose_next_to_nothing(shipped: Shipped) -> None:
    assert lost(ddim, shipped, 1000) < 0.004


def test_the_way_up_asks_in_ascending_order_and_ends_at_the_most_noise(
    shipped: Shipped,
) -> None:
    denoise, objective, _ = shipped
    asked: list[float] = []

    def watched(x: Tensor, level: Level) -> Denoised:
        asked.append(float(level.t))
        return denoise(x, level)

    levels = trailing(objective.schedule, steps=5)
    with torch.inference_mode():
        ddim(watched, torch.zeros(1, 4, 8, 8), levels.reversed())
    assert asked == sorted(asked)
    assert asked == levels.t.flip(0).tolist()[:-1]
