"""Does a logit of the discriminator judge 70 x 70 px, and one picture alone?"""

from __future__ import annotations

import pytest
import torch
from torch import nn

from ldm.models.patch_discriminator import PatchDiscriminator


def test_it_has_the_published_size() -> None:
    """64-128-256-512-1, 4 x 4 kernels, as in pix2pix and VQGAN; 30 x 30 patches of 256 px."""
    with torch.device("meta"):
        network = PatchDiscriminator()
        logits = network(torch.empty(2, 3, 256, 256))
    assert sum(p.numel() for p in network.parameters()) == 2_765_633
    assert logits.shape == (2, 1, 30, 30)


@pytest.mark.parametrize(("layers", "field"), [(1, 16), (2, 34), (3, 70)])
def test_a_logit_sees_its_patch(layers: int, field: int) -> None:
    """Of the paper, sec. 6.1.2. Norms look at the whole picture and are left out."""
    network = PatchDiscriminator(width=4, layers=layers).double()
    for number, stage in enumerate(network.main):
        if isinstance(stage, nn.GroupNorm):
            network.main[number] = nn.Identity()
    pixels = torch.rand(1, 3, 128, 128, dtype=torch.float64, requires_grad=True)
    logits = network(pixels)
    middle = logits.shape[-1] // 2
    (gradient,) = torch.autograd.grad(logits[0, 0, middle, middle], pixels)
    seen = gradient.abs().sum(1)[0] > 0
    assert (int(seen.any(0).sum()), int(seen.any(1).sum())) == (field, field)


def test_a_picture_is_judged_by_itself() -> None:
    network = PatchDiscriminator(width=8, layers=2)
    pixels = torch.rand(4, 3, 32, 32)
    torch.testing.assert_close(network(pixels)[:1], network(pixels[:1]))


@pytest.mark.parametrize("layers", [1, 2, 3])
def test_the_smallest_picture_gives_one_logit(layers: int) -> None:
    network = PatchDiscriminator(width=4, layers=layers)
    side = network.smallest
    assert network(torch.rand(1, 3, side, side)).shape == (1, 1, 1, 1)
    with pytest.raises(RuntimeError):
        network(torch.rand(1, 3, side - 2**layers, side))
