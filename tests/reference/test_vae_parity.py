"""Our autoencoder against diffusers' AutoencoderKL, at reduced width, with its very state dict."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from ldm.models.codec import Codec
from ldm.models.vae import AutoencoderKL, VAEConfig

pytestmark = pytest.mark.reference

CONFIGS = {
    "kl_f8": VAEConfig(block_out_channels=(8, 16, 24, 32), norm_num_groups=4),
    "tiny": VAEConfig(
        block_out_channels=(16, 32, 32),
        layers_per_block=1,
        norm_num_groups=8,
        mid_block_add_attention=False,
    ),
    "wide": VAEConfig(  # other channels than 3 and 4; one level, so no change of size
        in_channels=1,
        out_channels=2,
        latent_channels=5,
        block_out_channels=(16,),
        layers_per_block=3,
        norm_num_groups=8,
    ),
}
CLOSE = {"rtol": 0.0, "atol": 1e-5}  # fp32 sums of some thousand terms in another order


def reference(config: VAEConfig) -> nn.Module:
    import diffusers

    levels = len(config.block_out_channels)
    torch.manual_seed(0)
    vae = diffusers.AutoencoderKL(
        in_channels=config.in_channels,
        out_channels=config.out_channels,
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        block_out_channels=config.block_out_channels,
        layers_per_block=config.layers_per_block,
        latent_channels=config.latent_channels,
        norm_num_groups=config.norm_num_groups,
        mid_block_add_attention=config.mid_block_add_attention,
    )
    with torch.no_grad():  # unit norms would hide a missing or misplaced one
        for value in vae.parameters():
            value.add_(0.02 * torch.randn_like(value))
    return vae


def pair(name: str) -> tuple[AutoencoderKL, nn.Module]:
    theirs = reference(CONFIGS[name])
    ours = AutoencoderKL(CONFIGS[name])
    ours.load_state_dict(theirs.state_dict())  # strict: the names and shapes are theirs
    return ours, theirs


@pytest.mark.parametrize("name", CONFIGS)
def test_same_names_forward_and_gradients(name: str) -> None:
    ours, theirs = pair(name)
    config = CONFIGS[name]
    pixels = torch.randn(2, config.in_channels, 16, 24, generator=torch.Generator().manual_seed(1))
    z = torch.randn(2, config.latent_channels, 3, 5, generator=torch.Generator().manual_seed(2))
    got = ours.encode(pixels), ours.decode(z)
    expected = theirs.encode(pixels).latent_dist.parameters, theirs.decode(z).sample
    for a, b in zip(got, expected, strict=True):
        assert_close(a, b, **CLOSE)

    sum(value.square().mean() for value in got).backward()
    sum(value.square().mean() for value in expected).backward()
    gradients = {key: value.grad for key, value in theirs.named_parameters()}
    for key, parameter in ours.named_parameters():
        assert_close(parameter.grad, gradients[key], **CLOSE, msg=lambda m, key=key: f"{key}: {m}")


def test_a_codec_draws_and_scales_as_their_pipeline() -> None:
    ours, theirs = pair("kl_f8")
    codec = Codec(ours, 0.18215)
    pixels = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(1)) * 2 - 1
    noise = torch.randn(2, 4, 2, 2, generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        x0 = codec.latents(codec.moments(pixels), noise)
        posterior = theirs.encode(pixels).latent_dist
        drawn = posterior.sample(torch.Generator().manual_seed(5))  # draws the same normals
        assert_close(x0, drawn * 0.18215, **CLOSE)
        assert_close(codec.decode(x0), theirs.decode(drawn).sample, **CLOSE)
