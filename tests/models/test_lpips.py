"""Is LPIPS the distance of the paper, layer by layer?"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ldm.models.lpips import LPIPS

WIDTHS = [4, 4, 8, 8, 8]


def small() -> LPIPS:
    torch.manual_seed(0)
    network = LPIPS(WIDTHS).requires_grad_(False)
    for head in network.heads:
        nn.init.uniform_(head.weight)  # type: ignore[arg-type]
    return network


def pictures(count: int) -> Tensor:
    return torch.rand(count, 3, 32, 48, generator=torch.Generator().manual_seed(1)) * 2 - 1


def test_it_is_vgg16() -> None:
    """Numbered as in torchvision, of its size, and tapped at relu1_2, 2_2, 3_3, 4_3 and 5_3."""
    with torch.device("meta"):
        network = LPIPS()
    numbers = [int(name.split(".")[0]) for name in network.features.state_dict() if "bias" in name]
    assert numbers == [0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28]
    assert network.taps == [3, 8, 15, 22, 29]
    parts = network.features, network.heads
    sizes = [sum(p.numel() for p in part.parameters()) for part in parts]
    assert sizes == [14_714_688, 64 + 128 + 256 + 512 + 512]


def test_the_distance_is_eq_1_of_the_paper() -> None:
    """Written out again, from the weights alone."""
    network = small()
    weights = network.state_dict()
    one, other = pictures(4).chunk(2)

    def features(x: Tensor) -> list[Tensor]:
        shift, scale = torch.tensor([-0.030, -0.088, -0.188]), torch.tensor([0.458, 0.448, 0.450])
        x = (x - shift.view(3, 1, 1)) / scale.view(3, 1, 1)
        found = []
        for block in ((0, 2), (5, 7), (10, 12, 14), (17, 19, 21), (24, 26, 28)):
            if block[0]:
                x = F.max_pool2d(x, 2)
            for n in block:
                kernel = weights[f"features.{n}.weight"], weights[f"features.{n}.bias"]
                x = F.conv2d(x, *kernel, padding=1).clamp(min=0)
            found.append(x)
        return found

    expected = torch.zeros(2)
    for layer, (a, b) in enumerate(zip(features(one), features(other), strict=True)):
        for row in range(2):
            for y in range(a.shape[2]):
                for x in range(a.shape[3]):
                    u, v = a[row, :, y, x], b[row, :, y, x]
                    u, v = u / (u.norm() + 1e-10), v / (v.norm() + 1e-10)
                    weight = weights[f"heads.{layer}.weight"].flatten()
                    place = a.shape[2] * a.shape[3]
                    expected[row] += (weight * (u - v) ** 2).sum() / place
    torch.testing.assert_close(network(one, other), expected, rtol=1e-5, atol=0)


def test_equal_pictures_are_at_0_and_order_does_not_count() -> None:
    network = small()
    one, other = pictures(4).chunk(2)
    assert network(one, one).tolist() == [0.0, 0.0]
    assert torch.equal(network(one, other), network(other, one))
    assert (network(one, other) > 0).all()


def test_the_gradient_is_finite_where_no_feature_answers() -> None:
    """A position whose features are all 0 has no direction, and must not have a nan for one."""
    network = small()
    for layer in network.features:
        if isinstance(layer, nn.Conv2d):
            layer.bias.fill_(-10)  # type: ignore[union-attr]
    pixels = pictures(1).requires_grad_()
    (gradient,) = torch.autograd.grad(network(pictures(2)[1:], pixels).sum(), pixels)
    assert gradient.eq(0).all()
