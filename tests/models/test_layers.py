"""Do the shared parts follow their formulas?"""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from ldm.models.layers import Downsample, Upsample, time_features
from ldm.models.resnet import ResnetBlock


@pytest.mark.parametrize("t", [0.0, 1.0, 500.25, 999.0, -0.8])
def test_time_features_are_cosines_then_sines(t: float) -> None:
    got = time_features(torch.tensor([t], dtype=torch.float64), 320)
    angles = [t * math.exp(-math.log(10_000) * i / 160) for i in range(160)]
    expected = [math.cos(a) for a in angles] + [math.sin(a) for a in angles]
    # fp32 angles up to 1,000 have steps of 6e-5
    assert_close(got, torch.tensor([expected]), rtol=0, atol=2e-4)
    assert got.dtype == torch.float32


def test_half_precision_networks_get_fp32_time_features() -> None:
    t = torch.tensor([999.0])
    assert_close(time_features(t.half(), 64), time_features(t, 64), rtol=0, atol=0)


def test_the_two_ways_to_halve_pad_differently() -> None:
    x = torch.arange(16.0).reshape(1, 1, 4, 4)
    for asymmetric, first in ((False, (-1, -1)), (True, (0, 0))):
        layer = Downsample(1, asymmetric=asymmetric)
        torch.nn.init.ones_(layer.conv.weight)
        torch.nn.init.zeros_(layer.conv.bias)
        padded = F.pad(x, (1, 2, 1, 2))[0, 0]  # the picture begins at [1, 1]
        for row in range(2):
            for column in range(2):
                top, left = 1 + first[0] + 2 * row, 1 + first[1] + 2 * column
                expected = padded[top : top + 3, left : left + 3].sum()
                assert layer(x)[0, 0, row, column] == expected


def test_upsampling_repeats_pixels_before_the_convolution() -> None:
    layer = Upsample(2)
    x = torch.randn(1, 2, 3, 5)
    doubled = x.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
    assert_close(layer(x), layer.conv(doubled), rtol=0, atol=0)
    assert layer(x, (5, 9)).shape == (1, 2, 5, 9)


def test_residual_block_is_its_formula() -> None:
    torch.manual_seed(0)
    block = ResnetBlock(8, 12, groups=4, eps=1e-5, time_width=6).double()
    x = torch.randn(2, 8, 5, 5, dtype=torch.float64)
    time = torch.randn(2, 6, dtype=torch.float64)

    def normed(h: torch.Tensor, norm: torch.nn.GroupNorm) -> torch.Tensor:
        grouped = h.reshape(2, 4, -1)
        mean, var = grouped.mean(-1, keepdim=True), grouped.var(-1, keepdim=True, correction=0)
        h = ((grouped - mean) / (var + 1e-5).sqrt()).reshape(h.shape)
        h = h * norm.weight[:, None, None] + norm.bias[:, None, None]
        return h * h.sigmoid()

    assert block.time_emb_proj is not None
    assert block.conv_shortcut is not None
    h = block.conv1(normed(x, block.norm1)) + block.time_emb_proj(time)[:, :, None, None]
    expected = block.conv_shortcut(x) + block.conv2(normed(h, block.norm2))
    assert_close(block(x, time), expected, rtol=0, atol=1e-12)
