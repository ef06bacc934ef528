"""Does the codec scale once, in the right dtype, with autocast off?"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from ldm.models.codec import Codec
from ldm.models.vae import AutoencoderKL, IdentityVAE, IdentityVAEConfig, VAEConfig

SMALL = VAEConfig(block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4)


def small_vae() -> AutoencoderKL:
    torch.manual_seed(0)
    return AutoencoderKL(SMALL).requires_grad_(False)


def pictures() -> Tensor:
    return torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(1)) * 2 - 1


def test_latents_are_scale_times_sample_and_decode_divides() -> None:
    vae = small_vae()
    codec = Codec(vae, 0.18215)
    moments = codec.moments(pictures())
    assert_close(moments, vae.encode(pictures()), rtol=0, atol=0)  # moments are not scaled
    noise = torch.randn(2, 4, 4, 4)
    mean, logvar = moments.chunk(2, 1)
    x0 = codec.latents(moments, noise)
    assert_close(x0, 0.18215 * (mean + (logvar / 2).exp() * noise))
    assert_close(codec.decode(x0), vae.decode(x0 / 0.18215), rtol=0, atol=0)


def test_log_variances_are_clamped() -> None:
    codec = Codec(small_vae(), 1.0)
    for given, used in ((-1000.0, -30.0), (1000.0, 20.0), (1.5, 1.5)):
        moments = torch.cat((torch.zeros(1, 4, 1, 1), torch.full((1, 4, 1, 1), given)), 1)
        std = codec.latents(moments, torch.ones(1, 4, 1, 1))
        assert_close(std, torch.full_like(std, used / 2).exp())


def test_identity_round_trip() -> None:
    codec = Codec(IdentityVAE(IdentityVAEConfig()), 1.0)
    x0 = codec.latents(codec.moments(pictures()), torch.zeros(2, 3, 8, 8))
    assert_close(codec.decode(x0), pictures(), rtol=0, atol=0)
    assert (codec.factor, codec.latent_channels, codec.dtype) == (1, 3, torch.float32)


def test_autocast_around_it_changes_nothing() -> None:
    codec = Codec(small_vae(), 0.5)
    moments = codec.moments(pictures())
    picture = codec.decode(moments[:, :4])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert_close(codec.moments(pictures()), moments, rtol=0, atol=0)
        assert_close(codec.decode(moments[:, :4]), picture, rtol=0, atol=0)


def test_a_bf16_vae_computes_in_bf16_and_answers_in_fp32() -> None:
    exact = Codec(small_vae(), 0.5)
    codec = Codec(small_vae().to(torch.bfloat16), 0.5)
    assert codec.dtype == torch.bfloat16
    moments = codec.moments(pictures())
    picture = codec.decode(moments[:, :4])
    assert (moments.dtype, picture.dtype) == (torch.float32, torch.float32)
    assert_close(moments, moments.to(torch.bfloat16).float(), rtol=0, atol=0)
    # bf16 keeps 8 bits, over some ten layers
    assert_close(moments, exact.moments(pictures()), rtol=0, atol=0.1)
    x0 = codec.latents(moments, torch.randn(2, 4, 4, 4))
    assert x0.dtype == torch.float32


def test_gradients_pass_to_the_pixels() -> None:
    codec = Codec(small_vae(), 0.5)
    pixels = pictures().requires_grad_()
    codec.moments(pixels).sum().backward()
    assert pixels.grad is not None
    assert pixels.grad.any()


def test_to_moves_the_same_codec() -> None:
    codec = Codec(small_vae(), 0.5)
    assert codec.to("meta") is codec
    assert {value.device.type for value in codec.vae.parameters()} == {"meta"}


@pytest.mark.parametrize("scale", [0.0, -1.0, float("nan")])
def test_a_scale_must_be_positive(scale: float) -> None:
    with pytest.raises(ValueError, match="positive number"):
        Codec(small_vae(), scale)
