"""Is a picture that is decoded in tiles the whole picture?"""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

import ldm
from ldm.data.shapes import EASY, render, scenes
from ldm.images import from_uint8
from ldm.models.codec import Codec
from ldm.models.vae import IdentityVAE, IdentityVAEConfig
from ldm.pipeline import tiles
from ldm.pipeline.tiles import decoded, in_tiles, is_tiled, moments, starts
from ldm.rng import normal


def noise(*shape: int) -> Tensor:
    return normal(0, "tiles", torch.arange(shape[0]), shape[1:])


@pytest.mark.parametrize(
    ("length", "tile", "overlap"), [(20, 8, 3), (8, 8, 2), (9, 8, 2), (5, 8, 2), (100, 16, 4)]
)
def test_tiles_cover_everything_and_are_equally_large(length: int, tile: int, overlap: int) -> None:
    begins = starts(length, tile, overlap)
    assert begins[0] == 0
    assert min(begins[-1] + tile, length) == length
    steps = [b - a for a, b in pairwise(begins)]
    assert all(0 < step <= tile - overlap for step in steps)


@pytest.mark.parametrize("shape", [(1, 3, 40, 56), (2, 3, 8, 33)])
def test_what_looks_at_one_position_is_exact(shape: tuple[int, ...]) -> None:
    """Blended values are one value: only the weights' rounding is left."""
    x = noise(*shape)
    got = in_tiles(lambda part: 2 * part, x, unit_in=1, unit_out=1, tile=16, overlap=8)
    assert_close(got, 2 * x, rtol=0, atol=1e-6)


class Local(nn.Module):
    """A decoder without norms: three convolutions, each on twice the size, see 3 positions far."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.convolutions = nn.ModuleList(nn.Conv2d(4, 4, 3, padding=1) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        for convolution in self.convolutions:
            x = nn.functional.interpolate(x, scale_factor=2.0)
            x = torch.nn.functional.silu(convolution(x))
        return x


@torch.no_grad()
def test_what_looks_less_far_than_the_margin_is_exact() -> None:
    """The outer quarter of an overlap counts nothing, and the edge's error ends there."""
    x, decoder = noise(1, 4, 48, 40), Local()
    got = in_tiles(decoder, x, unit_in=1, unit_out=8, tile=24, overlap=12)
    assert_close(got, decoder(x), rtol=0, atol=1e-5)
    cut = in_tiles(decoder, x, unit_in=1, unit_out=8, tile=24, overlap=1)
    assert float((cut - decoder(x)).abs().max()) > 1e-3  # an overlap too small does show


@torch.no_grad()
def test_a_trained_autoencoder_differs_a_little() -> None:
    """Its norms see a tile instead of the picture: measured 0.005 of 2 in the mean, 0.13 at most,
    where the autoencoder's own error is 0.046."""
    codec = ldm.load("tiny", device="cpu").codec
    drawn = render(scenes(EASY, seed=1, index=range(144)), side_px=32)
    mosaic = from_uint8(torch.from_numpy(drawn)).reshape(12, 12, 3, 32, 32)
    pixels = mosaic.permute(2, 0, 3, 1, 4).reshape(1, 3, 384, 384)
    whole = codec.moments(pixels)
    tiled = in_tiles(codec.moments, pixels, unit_in=4, unit_out=1, tile=48, overlap=12)
    assert tiled.shape == whole.shape
    means = whole[:, :4]
    assert 0 < float((tiled[:, :4] - means).abs().mean()) < 0.04 * float(means.abs().mean())
    once = codec.decode(means * codec.scale)
    parts = in_tiles(codec.decode, means * codec.scale, unit_in=1, unit_out=4, tile=48, overlap=12)
    assert 0 < float((parts - once).abs().mean()) < 0.01
    assert float((parts - once).abs().max()) < 0.2


@torch.no_grad()
def test_encoding_and_decoding_choose_by_size(monkeypatch: pytest.MonkeyPatch) -> None:
    codec = Codec(IdentityVAE(IdentityVAEConfig()), 1.0)
    pixels = noise(1, 3, 40, 40)
    for side, tiled in ((128, False), (129, True)):
        assert is_tiled(side * 128, None) is tiled
    assert is_tiled(1, True)
    assert not is_tiled(1 << 20, False)
    monkeypatch.setattr(tiles, "WHOLE", 39 * 40)
    calls: list[int] = []
    monkeypatch.setattr(
        tiles, "in_tiles", lambda *given, **how: calls.append(1) or in_tiles(*given, **how)
    )
    x0 = moments(codec, pixels).chunk(2, dim=1)[0]
    assert_close(x0, pixels, rtol=0, atol=1e-6)
    assert_close(decoded(codec, x0), pixels, rtol=0, atol=1e-6)
    assert len(calls) == 2
    decoded(codec, x0, tiled=False)
    assert len(calls) == 2
