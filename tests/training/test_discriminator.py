"""Do both sides of the GAN descend what the papers say, each with its own weights?"""

from __future__ import annotations

import pytest
import torch

from ldm.models.patch_discriminator import PatchDiscriminator
from ldm.training.discriminator import adaptive_weight, hinge_loss, score


def test_the_hinge_is_0_beyond_the_margin_and_1_in_the_middle() -> None:
    real, fake = torch.tensor([1.0, 2.5]), torch.tensor([-1.0, -7.0])
    assert hinge_loss(real, fake) == 0
    assert hinge_loss(torch.zeros(3), torch.zeros(3)) == 1
    assert hinge_loss(fake, real) == pytest.approx(0.5 * ((2 + 8) / 2 + (2 + 3.5) / 2))


def test_the_score_moves_the_picture_and_not_the_discriminator() -> None:
    torch.manual_seed(0)
    network = PatchDiscriminator(width=4, layers=1)
    pixels = torch.rand(2, 3, 16, 16, requires_grad=True)
    value = score(network, pixels)
    assert value == -network(pixels).mean()
    value.backward()
    assert pixels.grad is not None
    assert pixels.grad.any()
    assert all(p.grad is None and p.requires_grad for p in network.parameters())
    with torch.no_grad():
        better = pixels - 0.1 * pixels.grad / pixels.grad.norm()
    assert network(better).mean() > network(pixels).mean()


def test_the_adaptive_weight_makes_both_pull_equally() -> None:
    reconstruction, adversarial = torch.randn(4, 3, 3, 3), 1e-2 * torch.randn(4, 3, 3, 3)
    weight = adaptive_weight(reconstruction, adversarial, maximum=1e4)
    assert float((weight * adversarial).norm()) == pytest.approx(
        float(reconstruction.norm()),
        rel=1e-2,  # of the guard against 0
    )
    assert adaptive_weight(reconstruction, adversarial, maximum=3.0) == 3.0
    assert torch.isfinite(adaptive_weight(reconstruction, torch.zeros(2), maximum=1e9))
    assert not weight.requires_grad
