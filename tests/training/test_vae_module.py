"""Does the autoencoder descend what it is told to, with and without judges, and only where it may?"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ldm import app
from ldm.app.job import Job
from ldm.cli import ConfigError
from ldm.io import checkpoint as files
from ldm.io.reading import open_tensors
from ldm.models.lpips import LPIPS
from ldm.models.patch_discriminator import PatchDiscriminator
from ldm.training.perceptual import Perceptual
from ldm.training.vae_module import VAEModule

VAE = (
    "experiment=vae_tiny",
    "training.optim.warmup=0",
    "training.optim.lr=0.001",
    "init_from=tiny",
)
GAN = (
    "+training.vae_loss.gan._target_=ldm.training.vae_loss.GAN",
    "+training.vae_loss.gan.weight=0.5",
    "+training.vae_loss.gan.start=16",
    "+training.vae_loss.gan.width=8",
)
DECODER = "+training.optim.groups={vae.encoder.*:{lr:0},vae.quant_conv.*:{lr:0}}"


def small_lpips() -> LPIPS:
    torch.manual_seed(0)
    network = LPIPS([4, 4, 8, 8, 8])
    for head in network.heads:
        nn.init.uniform_(head.weight)  # type: ignore[arg-type]
    return network


@pytest.fixture
def lpips_file(tmp_path: Path) -> Path:
    """LPIPS of random weights in the layout of the package lpips."""
    state = small_lpips().state_dict()
    convolutions = {k: v for k, v in state.items() if k.startswith("features.")}
    found = {f"net.slice1.{k.removeprefix('features.')}": v for k, v in convolutions.items()}
    found |= {f"lin{n}.model.1.weight": state[f"heads.{n}.weight"] for n in range(5)}
    torch.save(found, tmp_path / "lpips.pth")
    return tmp_path / "lpips.pth"


def moved(before: dict[str, Tensor], module: nn.Module) -> set[str]:
    now = dict(module.named_parameters())
    return {name for name in now if not torch.equal(before[name], now[name])}
