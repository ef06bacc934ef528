"""Our config.json, read by diffusers: is it the same network?"""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.testing import assert_close

from ldm.io import diffusers_config as options
from ldm.io.detect import (
    diffusers_unet_config,
    diffusers_unet_json,
    diffusers_vae_config,
    diffusers_vae_json,
)
from ldm.models.unet import UNet, UNetConfig
from ldm.models.vae import AutoencoderKL, VAEConfig

pytestmark = pytest.mark.reference

ATTENDS, PLAIN = ("CrossAttnDownBlock2D", "CrossAttnUpBlock2D"), ("DownBlock2D", "UpBlock2D")
CLOSE = {"rtol": 0.0, "atol": 2e-5}  # fp32 sums of some thousand terms in another order


def small(down: tuple[bool, ...], up: tuple[bool, ...], **fields: Any) -> UNetConfig:
    """A narrow UNet; where it has attention, from the picture inwards on both ways."""
    return UNetConfig(
        **{
            "block_out_channels": (16, 24, 48)[: len(down)],
            "down_block_types": tuple((ATTENDS if has else PLAIN)[0] for has in down),
            "up_block_types": tuple((ATTENDS if has else PLAIN)[1] for has in reversed(up)),
            "num_attention_heads": 4,
            "cross_attention_dim": 20,
            "norm_num_groups": 8,
            **fields,
        }
    )


UNETS = {
    "sd1": small((True, True, False), (True, True, False)),
    "sd2": small(
        (True, True, True),
        (True, True, True),
        num_attention_heads=(2, 3, 6),
        transformer_layers_per_block=(1, 2, 1),
        use_linear_projection=True,
        upcast_attention=True,
    ),
    "no_text": small((False, False), (False, False), cross_attention_dim=None),
    "attention_only_in_the_middle": small((False, False), (False, False), in_channels=3),
    "another_way_up": small((False, True), (True, False), layers_per_block=1, out_channels=6),
    "one_level": small((True,), (True,), layers_per_block=3, dropout=0.5),
}
VAES = {
    "kl_f8": VAEConfig(block_out_channels=(8, 16, 24, 24), norm_num_groups=4),
    "odd": VAEConfig(
        in_channels=1,
        out_channels=2,
        latent_channels=5,
        block_out_channels=(8, 16),
        layers_per_block=1,
        norm_num_groups=4,
        mid_block_add_attention=False,
        scaling_factor=0.5,
    ),
}


def written(folder: Path, network: nn.Module, config: dict[str, Any]) -> Path:
    """A folder as from_pretrained reads it, with random weights."""
    torch.manual_seed(0)
    with torch.no_grad():  # zeros and unit norms would hide what is missing or misplaced
        for value in network.parameters():
            value.add_(0.05 * torch.randn_like(value))
    (folder / "config.json").write_text(json.dumps(config))
    save_file(dict(network.state_dict()), folder / "diffusion_pytorch_model.safetensors")
    return folder


@pytest.mark.parametrize("name", UNETS)
def test_they_build_the_same_unet(name: str, tmp_path: Path) -> None:
    from diffusers import UNet2DConditionModel

    config = UNETS[name]
    ours = UNet(config).eval()
    folder = written(tmp_path, ours, diffusers_unet_json(config))
    theirs, info = UNet2DConditionModel.from_pretrained(
        folder, output_loading_info=True, low_cpu_mem_usage=False
    )
    assert not any(info.values())  # no key missing, unexpected or of another shape
    width = config.cross_attention_dim
    x = torch.randn(2, config.in_channels, 8, 8)
    t = torch.tensor([3.0, 900.0])
    context = None if width is None else torch.randn(2, 5, width)
    with torch.no_grad():
        assert_close(ours(x, t, context), theirs.eval()(x, t, context).sample, **CLOSE)
    theirs.save_pretrained(tmp_path / "theirs")  # every option written out, by them
    stored = json.loads((tmp_path / "theirs" / "config.json").read_text())
    assert diffusers_unet_config(stored) == config


@pytest.mark.parametrize("name", VAES)
def test_they_build_the_same_vae(name: str, tmp_path: Path) -> None:
    import diffusers

    config = VAES[name]
    ours = AutoencoderKL(config).eval()
    folder = written(tmp_path, ours, diffusers_vae_json(config))
    theirs, info = diffusers.AutoencoderKL.from_pretrained(
        folder, output_loading_info=True, low_cpu_mem_usage=False
    )
    assert not any(info.values())
    pixels = torch.randn(1, config.in_channels, 16, 16)
    z = torch.randn(1, config.latent_channels, 4, 4)
    with torch.no_grad():
        assert_close(ours.encode(pixels), theirs.encode(pixels).latent_dist.parameters, **CLOSE)
        assert_close(ours.decode(z), theirs.decode(z).sample, **CLOSE)
    assert theirs.config.scaling_factor == config.scaling_factor
    theirs.save_pretrained(tmp_path / "theirs")
    stored = json.loads((tmp_path / "theirs" / "config.json").read_text())
    assert diffusers_vae_config(stored) == config


@pytest.mark.parametrize("part", ["unet", "vae"])
def test_every_option_of_theirs_is_known_with_its_default(part: str) -> None:
    import diffusers

    network, read, fixed, ignored = {
        "unet": (
            diffusers.UNet2DConditionModel,
            options.UNET_READ,
            options.UNET_FIXED,
            options.UNET_IGNORED,
        ),
        "vae": (diffusers.AutoencoderKL, options.VAE_READ, options.VAE_FIXED, options.VAE_IGNORED),
    }[part]
    defaults = {
        name: parameter.default
        for name, parameter in inspect.signature(network.__init__).parameters.items()
        if name != "self"
    }
    assert defaults.keys() == read.keys() | fixed.keys() | ignored
    assert {name: defaults[name] for name in read} == read
    assert {name: defaults[name] for name in fixed} == {k: v[0] for k, v in fixed.items()}


def test_the_average_that_they_save_is_read(tmp_path: Path) -> None:
    from diffusers import UNet2DConditionModel
    from diffusers.training_utils import EMAModel

    config = UNETS["sd1"]
    theirs = UNet2DConditionModel.from_config(diffusers_unet_json(config))
    EMAModel(
        theirs.parameters(), model_cls=UNet2DConditionModel, model_config=theirs.config
    ).save_pretrained(tmp_path)
    stored = json.loads((tmp_path / "config.json").read_text())
    assert stored.keys() >= options.EMA_IGNORED
    assert diffusers_unet_config(stored) == config
