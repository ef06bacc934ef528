"""Is the autoencoder the network it claims to be, and does folding change nothing but latents?"""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from ldm.models.vae import (
    AutoencoderKL,
    IdentityVAE,
    IdentityVAEConfig,
    VAEConfig,
    build_vae,
    fold_normalisation,
    sample_moments,
)

TINY = VAEConfig(
    block_out_channels=(32, 64, 64),
    layers_per_block=1,
    norm_num_groups=8,
    mid_block_add_attention=False,
    scaling_factor=1.0,
)


def small(**changes: Any) -> VAEConfig:
    fields: dict[str, Any] = {
        "block_out_channels": (8, 16, 16),
        "layers_per_block": 1,
        "norm_num_groups": 4,
    }
    return VAEConfig(**{**fields, **changes})


def pictures(rows: int = 2, size: int = 16, dtype: torch.dtype = torch.float32) -> Tensor:
    rng = torch.Generator().manual_seed(1)
    return torch.rand(rows, 3, size, size, generator=rng, dtype=dtype) * 2 - 1


def test_kl_f8_has_the_published_size() -> None:
    with torch.device("meta"):
        vae = AutoencoderKL(VAEConfig())

    def size(module: torch.nn.Module) -> int:
        return sum(value.numel() for value in module.parameters())

    assert (size(vae), len(vae.state_dict())) == (83_653_863, 248)
    assert (size(vae.encoder), size(vae.decoder)) == (34_163_592, 49_490_179)
    norms = [m for m in vae.modules() if isinstance(m, torch.nn.GroupNorm)]
    assert {norm.eps for norm in norms} == {1e-6}


@pytest.mark.parametrize(
    ("key", "shape"),
    [
        ("encoder.mid_block.attentions.0.to_q.weight", (512, 512)),
        ("encoder.mid_block.attentions.0.to_out.0.bias", (512,)),
        ("decoder.mid_block.attentions.0.group_norm.weight", (512,)),
        ("encoder.down_blocks.1.resnets.0.conv_shortcut.weight", (256, 128, 1, 1)),
        ("encoder.down_blocks.2.downsamplers.0.conv.weight", (512, 512, 3, 3)),
        ("decoder.up_blocks.3.resnets.2.conv2.weight", (128, 128, 3, 3)),
        ("decoder.up_blocks.2.upsamplers.0.conv.weight", (256, 256, 3, 3)),
        ("quant_conv.weight", (8, 8, 1, 1)),
        ("post_quant_conv.weight", (4, 4, 1, 1)),
    ],
)
def test_kl_f8_names_and_shapes(key: str, shape: tuple[int, ...]) -> None:
    with torch.device("meta"):
        state = AutoencoderKL(VAEConfig()).state_dict()
    assert tuple(state[key].shape) == shape


def test_tiny_size_and_shapes() -> None:
    vae = AutoencoderKL(TINY)
    assert sum(value.numel() for value in vae.parameters()) == 921_031
    assert vae.factor == 4
    with torch.no_grad():
        moments = vae.encode(pictures(2, 32))
        assert moments.shape == (2, 8, 8, 8)
        assert vae.decode(moments[:, :4]).shape == (2, 3, 32, 32)


def test_sizes_that_do_not_fit_are_named_with_ones_that_do() -> None:
    with pytest.raises(ValueError, match=r"18x16 px.*multiples of 4: crop to 16x16"):
        AutoencoderKL(small()).encode(torch.zeros(1, 3, 18, 16))


def test_every_parameter_learns() -> None:
    torch.manual_seed(0)
    vae = AutoencoderKL(small())
    moments = vae.encode(pictures())
    vae.decode(sample_moments(moments, torch.randn(2, 4, 4, 4))).square().mean().backward()
    without = [key for key, value in vae.named_parameters() if value.grad is None]
    assert without == []


def count(calls: list[int], *_: Any) -> None:
    calls.append(1)


@pytest.mark.parametrize("attention", [False, True])
def test_checkpointing_changes_no_gradient(attention: bool) -> None:
    gradients = []
    for checkpointing in (False, True):
        torch.manual_seed(0)
        config = small(checkpointing=checkpointing, mid_block_add_attention=attention)
        vae = AutoencoderKL(config)
        calls: list[int] = []
        vae.encoder.mid_block.register_forward_pre_hook(partial(count, calls))
        loss = vae.decode(vae.encode(pictures())[:, :4]).square().mean()
        loss.backward()
        assert len(calls) == 1 + checkpointing  # run again in the backward
        gradients.append([loss] + [value.grad for value in vae.parameters()])
    for plain, recomputed in zip(*gradients, strict=True):
        assert_close(recomputed, plain, rtol=0, atol=0)


def test_identity_is_exact() -> None:
    vae = build_vae(IdentityVAEConfig())
    assert isinstance(vae, IdentityVAE)
    assert (vae.factor, vae.latent_channels) == (1, 3)
    pixels = pictures()
    moments = vae.encode(pixels)
    assert_close(vae.decode(moments[:, :3]), pixels, rtol=0, atol=0)
    # a normal beyond 3.2 would be 1e-6 of noise: far below what 8-bit pictures hold (8e-3)
    drawn = sample_moments(moments, torch.full_like(pixels, 3.2))
    assert_close(drawn, pixels, rtol=0, atol=1e-6)


def test_sample_is_mean_plus_deviation_times_noise_with_clamped_logvar() -> None:
    mean = torch.tensor([0.5, -1.0, 2.0, 3.0]).reshape(1, 4, 1, 1)
    logvar = torch.tensor([0.0, 2.0, -100.0, 100.0]).reshape(1, 4, 1, 1)
    noise = torch.tensor([1.0, -2.0, 3.0, 1e-3]).reshape(1, 4, 1, 1)
    got = sample_moments(torch.cat((mean, logvar), 1), noise).flatten().double()
    e = torch.e
    expected = [1.5, -1 - 2 * e, 2 + 3 * e**-15, 3 + 1e-3 * e**10]
    assert_close(got, torch.tensor(expected, dtype=torch.float64), rtol=1e-6, atol=0)


def test_folding_keeps_pictures_and_normalises_latents() -> None:
    torch.manual_seed(0)
    vae = AutoencoderKL(small(scaling_factor=0.3)).double()
    pixels = pictures(8, 32, torch.float64)
    noise = torch.randn(8, 4, 8, 8, dtype=torch.float64)
    with torch.no_grad():
        vae.quant_conv.bias += torch.randn(8)  # so that there is something to normalise
        moments = vae.encode(pixels)
        z = sample_moments(moments, noise)
        before = vae.decode(z)
        mean, std = z.mean((0, 2, 3)), z.std((0, 2, 3))
        fold_normalisation(vae, mean, std)
        folded = sample_moments(vae.encode(pixels), noise)
        after = vae.decode(folded)
    # rounding of float64 only
    assert_close(folded, (z - mean[:, None, None]) / std[:, None, None], rtol=0, atol=1e-12)
    assert_close(folded.mean((0, 2, 3)), torch.zeros_like(mean), rtol=0, atol=1e-12)
    assert_close(folded.std((0, 2, 3)), torch.ones_like(std), rtol=0, atol=1e-12)
    assert_close(after, before, rtol=0, atol=1e-12)
    assert (mean.abs().max() > 0.1, vae.config.scaling_factor) == (True, 1.0)


@pytest.mark.parametrize(
    ("mean", "std", "words"),
    [
        (torch.zeros(3), torch.ones(4), "one number a latent channel"),
        (torch.zeros(4), torch.tensor([1.0, 1.0, 0.0, 1.0]), "stds > 0"),
        (torch.full((4,), torch.nan), torch.ones(4), "finite means"),
    ],
)
def test_folding_refuses_bad_statistics(mean: Tensor, std: Tensor, words: str) -> None:
    vae = AutoencoderKL(small())
    before = vae.quant_conv.weight.clone()
    with pytest.raises(ValueError, match=words):
        fold_normalisation(vae, mean, std)
    assert_close(vae.quant_conv.weight, before, rtol=0, atol=0)


def test_one_error_names_every_problem() -> None:
    with pytest.raises(ValueError, match="VAEConfig") as caught:
        VAEConfig(block_out_channels=(30, 64), latent_channels=0, scaling_factor=0.0)
    for words in ("[30]", "norm_num_groups=32", "latent_channels=0", "scaling_factor=0.0"):
        assert words in str(caught.value), words
    with pytest.raises(ValueError, match="block_out_channels is empty"):
        VAEConfig(block_out_channels=())
    with pytest.raises(ValueError, match="in_channels=0"):
        IdentityVAEConfig(in_channels=0)
