"""What is the autoencoder's loss made of, and how much does each term count?"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from ldm.training.perceptual import Perceptual


@dataclass(frozen=True, kw_only=True)
class GAN:
    """The adversarial term (Esser et al. 2021, sec. 3.1); weight 0: no discriminator.

    start: samples after which both sides of it begin; max_weight: of the adaptive factor; lr: of
    the discriminator, a factor on training.optim.lr; width, layers: of its network.
    """

    weight: float = 0.0
    start: int = 0
    max_weight: float = 1e4
    lr: float = 1.0
    betas: tuple[float, float] = (0.5, 0.9)
    width: int = 64
    layers: int = 3

    def problems(self) -> list[str]:
        """Everything wrong with the values, each with what is allowed."""
        limits = {"weight": 0, "start": 0, "width": 1, "layers": 1}
        found = [
            f"training.vae_loss.gan.{name}={getattr(self, name)}; {least} or more"
            for name, least in limits.items()
            if not getattr(self, name) >= least
        ]
        for name in ("max_weight", "lr"):
            if not getattr(self, name) > 0:
                found.append(f"training.vae_loss.gan.{name}={getattr(self, name)}; above 0")
        if len(self.betas) != 2 or not all(0 <= beta < 1 for beta in self.betas):
            found.append(f"training.vae_loss.gan.betas={self.betas}; two of 0 to below 1")
        return found


@dataclass(frozen=True, kw_only=True)
class VAELoss:
    """Weights of the terms, all per pixel: |d|, d², |gradient of d|, KL to the unit normal, LPIPS.

    perceptual_weights: the file or files that LPIPS is read from (perceptual.py). Raises ValueError
    with everything that is wrong.
    """

    l1: float = 1.0
    l2: float = 1.0
    gradient: float = 0.5
    kl: float = 1e-6
    perceptual: float = 0.0
    perceptual_weights: str | list[str] | None = None
    gan: GAN = field(default_factory=GAN)

    def __post_init__(self) -> None:
        problems = [
            f"training.vae_loss.{name}={getattr(self, name)}; 0 or more"
            for name in ("l1", "l2", "gradient", "kl", "perceptual")
            if not getattr(self, name) >= 0
        ]
        if not any((self.l1, self.l2, self.gradient, self.perceptual)):
            problems.append("training.vae_loss: l1, l2, gradient and perceptual are 0; give one")
        problems += self.gan.problems()
        if problems:
            raise ValueError("\n".join(problems))


def vae_terms(
    weights: VAELoss,
    pixels: Tensor,
    decoded: Tensor,
    moments: tuple[Tensor, Tensor],
    perceptual: Perceptual | None,
) -> dict[str, Tensor]:
    """Rombach et al. 2022, sec. 3.1 and app. G, without the adversarial term: [B] by name.

    pixels, decoded: [B,3,H,W]; moments: mean and log-variance [B,C,h,w]. `loss` has the gradient.
    """
    mean, logvar = moments
    difference = decoded - pixels
    kl = 0.5 * (mean.square() + logvar.exp() - 1 - logvar).flatten(1).sum(1)
    kl = kl / pixels[0].numel()
    l1, l2 = _mean(difference.abs()), _mean(difference.square())
    gradient = _mean(difference.diff(dim=2).abs()) + _mean(difference.diff(dim=3).abs())
    loss = weights.l1 * l1 + weights.l2 * l2 + weights.gradient * gradient + weights.kl * kl
    psnr = 10 * torch.log10(4 / l2.detach().clamp(min=1e-10))  # peak to peak is 2
    found = {"loss": loss, "l1": l1.detach(), "kl": kl.detach(), "psnr": psnr}
    if perceptual is not None:
        distance = perceptual(pixels, decoded)
        found["loss"] = loss + weights.perceptual * distance
        found["perceptual"] = distance.detach()
    return found


def _mean(value: Tensor) -> Tensor:
    return value.flatten(1).mean(1)
