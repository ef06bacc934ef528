"""Does a full-size model load without lying in memory twice?"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from ldm.io.compvis import TEXT, UNET, VAE, unet_names, vae_file_shape, vae_names
from ldm.models.text.clip import clip_l_config
from ldm.models.unet import UNet, UNetConfig
from ldm.models.vae import VAEConfig, build_vae

CODE = r"""
import logging, pathlib, re, sys
logging.basicConfig(level=logging.INFO, stream=sys.stdout)
import torch, ldm
from ldm.io.load import load_model
status = pathlib.Path("/proc/self/status")  # ru_maxrss would be the parent's, if that was larger
peak = lambda: 1024 * int(re.search(r"VmHWM:\s+(\d+)", status.read_text())[1])
before = peak()
model = load_model(sys.argv[1])
print("used", peak() - before)
"""


def sd15_shapes() -> dict[str, tuple[int, ...]]:
    """Names and shapes of v1-5-pruned-emaonly, without buffers."""
    from transformers import CLIPTextModel

    unet, vae = UNetConfig(), VAEConfig()
    with torch.device("meta"):
        network, autoencoder = UNet(unet).state_dict(), build_vae(vae).state_dict()
        text = CLIPTextModel(clip_l_config()).state_dict()
    shapes = {UNET + t: tuple(network[o].shape) for o, t in unet_names(unet).items()}
    for ours, theirs in vae_names(vae).items():
        shapes[VAE + theirs] = vae_file_shape(ours, tuple(autoencoder[ours].shape))
    prefix = f"{TEXT}transformer.text_model."
    return shapes | {
        prefix + k.removeprefix("text_model."): tuple(v.shape) for k, v in text.items()
    }


@pytest.mark.slow
def test_fp16_weights_of_sd15(tmp_path: Path) -> None:
    """2.1 GB of random fp16 become 4.3 GB of fp32: the peak stays below 1.3 times that."""
    random = (0.02 * torch.randn(1 << 24)).half()

    def made(shape: tuple[int, ...]) -> Tensor:
        count = int(torch.Size(shape).numel())
        repeats = -(-count // len(random))
        return random[:count].repeat(repeats)[:count].clone().reshape(shape)

    shapes = sd15_shapes()
    save_file({k: made(s) for k, s in shapes.items()}, tmp_path / "sd15.safetensors")
    fp32 = 4 * sum(int(torch.Size(s).numel()) for s in shapes.values())
    done = subprocess.run(
        [sys.executable, "-c", CODE, str(tmp_path / "sd15.safetensors")],
        cwd=Path(__file__).parents[2],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])},
        capture_output=True,
        text=True,
        timeout=570,
        check=True,
    )
    match = re.search(r"used (\d+)", done.stdout)
    assert match is not None
    assert int(match[1]) < 1.3 * fp32
    for words in ("loaded 686/686", "loaded 248/248", "loaded 196/196"):
        assert words in done.stdout
