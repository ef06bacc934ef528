"""Does conf/models/{unet,vae} say what the classes say, with nothing left out?"""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf

from ldm.models.unet import UNet, UNetConfig
from ldm.models.vae import VAEConfig, build_vae

CONF = Path(__file__).parents[2] / "conf" / "models"
UNET_SIZES = {  # of published networks, and of those whose size the docs state
    "tiny": 4_283_012,
    "mini": 50_032_900,
    "sd15": 859_520_964,
    "sd15_inpaint": 859_535_364,
    "sd21": 865_910_724,
    "ldm_bert": 872_300_484,
}
VAE_SIZES = {"tiny": 921_031, "kl_f8": 83_653_863, "identity": 0}
FILES = sorted([*CONF.glob("unet/*.yaml"), *CONF.glob("vae/*.yaml")])


def test_the_files_of_known_size_are_there() -> None:
    assert {file.stem for file in FILES if file.parent.name == "unet"} >= set(UNET_SIZES)
    assert {file.stem for file in FILES if file.parent.name == "vae"} >= set(VAE_SIZES)


@pytest.mark.parametrize("file", FILES, ids=lambda f: f"{f.parent.name}/{f.stem}")
def test_size_and_every_field_with_a_comment(file: Path) -> None:
    node = OmegaConf.load(file)
    config = instantiate(node, _convert_="all")
    assert set(node) - {"_target_"} == {field.name for field in fields(config)}
    lines = [line for line in file.read_text().splitlines() if not line.startswith(("#", "_"))]
    assert all("  # [" in line for line in lines)
    with torch.device("meta"):
        network = UNet(config) if isinstance(config, UNetConfig) else build_vae(config)
    size = sum(value.numel() for value in network.parameters())
    known = {"unet": UNET_SIZES, "vae": VAE_SIZES}[file.parent.name]
    assert size == known.get(file.stem, size)


def test_defaults_are_sd15_and_kl_f8() -> None:
    for folder, name, default in (("unet", "sd15", UNetConfig()), ("vae", "kl_f8", VAEConfig())):
        assert instantiate(OmegaConf.load(CONF / folder / f"{name}.yaml")) == default
