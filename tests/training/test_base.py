"""Is clipping left out exactly where it would change nothing?"""

from __future__ import annotations

import pytest
import torch
from torch import nn

from ldm.training.base import _surely_within


@pytest.mark.parametrize("norm", [0.0, 0.5, 1 - 2e-6, 1 - 1e-6, 1 - 5e-7, 1.0, 1.5, float("nan")])
def test_gradients_are_those_that_torch_would_clip(norm: float) -> None:
    parameter = nn.Parameter(torch.zeros(3))
    parameter.grad = before = torch.tensor([1.0, -0.5, 3e-3])
    total = torch.tensor(norm)
    within = _surely_within(total, 1.0)
    before = before.clone()
    nn.utils.clip_grads_with_norm_([parameter], 1.0, total)
    assert within == torch.equal(parameter.grad, before)
