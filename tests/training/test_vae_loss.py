"""Are the terms of the autoencoder's loss what they are called?"""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from ldm.training.vae_loss import GAN, VAELoss, vae_terms

PIXELS = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
NORMAL = torch.zeros(2, 4, 2, 2), torch.zeros(2, 4, 2, 2)  # mean and log-variance


def loss(weights: VAELoss, decoded: Tensor, moments: tuple[Tensor, Tensor] = NORMAL) -> Tensor:
    return vae_terms(weights, PIXELS, decoded, moments, None)["loss"]


def test_a_perfect_picture_from_a_unit_normal_costs_nothing() -> None:
    found = vae_terms(VAELoss(kl=1.0), PIXELS, PIXELS, NORMAL, None)
    assert found["loss"].tolist() == [0.0, 0.0]
    assert found["psnr"].tolist() == [pytest.approx(10 * math.log10(4 / 1e-10))] * 2


@pytest.mark.parametrize(
    ("weights", "expected"),
    [
        (VAELoss(l1=1, l2=0, gradient=0), 0.2),
        (VAELoss(l1=0, l2=1, gradient=0), 0.04),
        (VAELoss(l1=0, l2=0, gradient=1), 0.0),  # every pixel is off by the same
    ],
)
def test_each_term_alone(weights: VAELoss, expected: float) -> None:
    values = loss(weights, PIXELS + 0.2)
    torch.testing.assert_close(values, torch.full((2,), expected))


def test_the_gradient_term_sees_edges() -> None:
    """A row of 8 that is off by 1: two edges of 8 places, among 7 x 8 vertical differences."""
    decoded = PIXELS.clone()
    decoded[:, :, 3] += 1
    values = loss(VAELoss(l1=0, l2=0, gradient=1), decoded)
    torch.testing.assert_close(values, torch.full((2,), 16 / 56))


def test_the_divergence_is_the_closed_form_per_pixel() -> None:
    mean, logvar = torch.full((2, 4, 2, 2), 0.5), torch.full((2, 4, 2, 2), math.log(2.0))
    values = loss(VAELoss(l1=1, l2=0, gradient=0, kl=3.0), PIXELS, (mean, logvar))
    one = 0.5 * (0.25 + 2 - 1 - math.log(2.0))
    torch.testing.assert_close(values, torch.full((2,), 3.0 * 16 * one / (3 * 8 * 8)))


def test_every_problem_is_named() -> None:
    with pytest.raises(ValueError, match="l1=-1") as caught:
        VAELoss(l1=-1, gan=GAN(weight=-0.5, start=-1, max_weight=0, lr=0, betas=(0.5, 1), width=0))
    for part in ("weight=-0.5", "start=-1", "max_weight=0", "lr=0", "betas=(0.5, 1)", "width=0"):
        assert f"training.vae_loss.gan.{part}" in str(caught.value)
    with pytest.raises(ValueError, match="l1, l2, gradient and perceptual are 0"):
        VAELoss(l1=0, l2=0, gradient=0)
