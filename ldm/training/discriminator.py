"""How does a discriminator judge reconstructions, and how much does its judgement count?"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

DELTA = 1e-4  # keeps eq. 7 finite; the value of VQGAN's code


def hinge_loss(real: Tensor, fake: Tensor) -> Tensor:
    """Lim & Ye 2017, eq. 2 (half of it, as VQGAN has it): what the discriminator descends. Logits
    of any shape -> scalar."""
    return 0.5 * (F.relu(1 - real).mean() + F.relu(1 + fake).mean())


def score(discriminator: nn.Module, pixels: Tensor) -> Tensor:
    """Lim & Ye 2017, eq. 3: what the decoder descends, a scalar.

    The gradient reaches the pixels and not the discriminator, which must not learn to be fooled.
    """
    fixed = {name: value.detach() for name, value in discriminator.named_parameters()}
    return -functional_call(discriminator, fixed, (pixels,)).mean()


def adaptive_weight(reconstruction: Tensor, adversarial: Tensor, *, maximum: float) -> Tensor:
    """Esser et al. 2021, eq. 7: lets both terms pull equally at the decoder's last layer.

    Both are gradients of that layer's weight, of any shape; gives a scalar without a gradient.
    """
    ratio = reconstruction.norm() / (adversarial.norm() + DELTA)
    return ratio.detach().clamp(max=maximum)
