"""Is DPM-Solver++ first order exactly where it should be?"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from ldm.diffusion.schedules import ScaledLinear
from ldm.sampling.levels import leading
from ldm.sampling.solvers import dpmpp_2m
from ldm.sampling.solvers.moves import move
from ldm.types import Level


@pytest.mark.parametrize(("steps", "first_order"), [(14, True), (15, False)])
def test_the_last_of_few_steps_is_first_order(
    steps: int, first_order: bool, gaussian: Any, uniform_in_lambda: Any, z: Tensor
) -> None:
    levels = uniform_in_lambda(steps)
    seen: list[Tensor] = []

    def denoise(x: Tensor, level: Level) -> Any:
        seen.append(x)
        return gaussian.denoise(x, level)

    x = dpmpp_2m(denoise, gaussian.exact(z, levels.at(0)), levels)
    belief = gaussian.denoise(seen[-1], levels.at(steps - 1))
    assert torch.equal(x, move(belief, levels.at(steps))) == first_order


def test_inversion_of_a_grid_that_repeats_a_level(gaussian: Any, z: Tensor) -> None:
    """leading with steps = T has its first step twice; a step of length 0 gives no slope."""
    levels = leading(ScaledLinear(num_train_steps=20), steps=20).reversed()
    assert levels.t[0] == levels.t[1]
    x = dpmpp_2m(gaussian.denoise, gaussian.exact(z, levels.at(0)), levels)
    assert bool(x.isfinite().all())
