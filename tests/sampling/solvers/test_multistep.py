"""Do the multistep solvers have the published coefficients?"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.testing import assert_close

from ldm.diffusion.schedules import ScaledLinear
from ldm.sampling.levels import leading, linspace
from ldm.sampling.solvers.multistep import ADAMS_BASHFORTH, lms, lms_weights
from ldm.types import Denoised


def test_lms_weights_of_stable_diffusion() -> None:
    """K-LMS order 4, 50 linspace steps, at step 3 (the reference integrates to 1e-4)."""
    levels = linspace(ScaledLinear(), steps=50)
    ratio = (levels.sigma.double() / levels.alpha.double()).tolist()
    got = lms_weights([ratio[3], ratio[2], ratio[1], ratio[0]], ratio[4])
    want = [-2.165802, 1.815607, -0.906185, 0.173819]
    assert_close(torch.tensor(got), torch.tensor(want), rtol=1e-4, atol=0)


def test_lms_weights_integrate_polynomials_exactly() -> None:
    nodes, end = [2.0, 2.7, 3.9, 5.0], 1.1
    for order in range(1, 5):
        weights = lms_weights(nodes[:order], end)
        for power in range(order):
            got = sum(w * node**power for w, node in zip(weights, nodes[:order], strict=True))
            want = (end ** (power + 1) - nodes[0] ** (power + 1)) / (power + 1)
            assert math.isclose(got, want, rel_tol=1e-12)


def test_adams_bashforth_is_lms_on_equal_steps() -> None:
    for order, weights in ADAMS_BASHFORTH.items():
        nodes = [float(-k) for k in range(order)]
        got = torch.tensor(lms_weights(nodes, 1.0))
        assert_close(got, torch.tensor(weights), rtol=1e-6, atol=0)


def test_lms_starts_at_a_lower_order(gaussian: Any, uniform_in_lambda: Any, z: Tensor) -> None:
    """Step i is of order min(i + 1, 4)."""
    for steps in range(1, 5):
        levels = uniform_in_lambda(steps)
        x = lms(gaussian.denoise, z, levels)
        assert torch.equal(x, lms(gaussian.denoise, z, levels, order=steps))
        if steps > 1:
            assert not torch.equal(x, lms(gaussian.denoise, z, levels, order=steps - 1))


def test_lms_stays_where_a_level_repeats() -> None:
    """leading with steps = T ends twice at the first step; the polynomial has no length there."""
    levels = leading(ScaledLinear(num_train_steps=8), steps=8)
    assert levels.t[-1] == levels.t[-2]
    belief = Denoised(torch.tensor([0.5]), torch.tensor([1.5]))
    x = lms(lambda x, level: belief, torch.ones(1), levels)
    assert_close(x, levels.alpha[-1] * belief.x0 + levels.sigma[-1] * belief.eps)
