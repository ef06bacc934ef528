"""Small models of the released kinds, with random weights, in other people's formats."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import CLIPTextModel

from ldm.io.checkpoint import CARD_FORMAT
from ldm.io.configs import plain
from ldm.io.facts import objective_spec, schedule_named
from ldm.io.frozen import frozen_codec
from ldm.io.single_write import Parts, single_tensors
from ldm.models.text import vocabularies
from ldm.models.text.assemble import clip_from_weights
from ldm.models.text.base import TextEncoder
from ldm.models.text.bert import BertText, LDMBert, LDMBertConfig
from ldm.models.text.clip import clip_l_config
from ldm.models.text.openclip import SD2_PAD
from ldm.models.text.sources import Origin
from ldm.models.unet import UNet, UNetConfig
from ldm.models.vae import VAEConfig, build_vae

UNET = UNetConfig(
    sample_size=8,
    block_out_channels=(32, 64),
    down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
    up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    layers_per_block=1,
    cross_attention_dim=64,
)
VAE = VAEConfig(block_out_channels=(32, 32, 64), layers_per_block=1)
BERT = LDMBertConfig(width=64, num_layers=2, num_heads=2, head_dim=64, ff_width=128)


def random_like(module: torch.nn.Module, seed: int) -> dict[str, Tensor]:
    """Weights that no initialisation gives: no zeros, so that every part shows in the output."""
    random = torch.Generator().manual_seed(seed)
    return {
        name: 0.06 * torch.randn(value.shape, generator=random) + (0.9 if "norm" in name else 0)
        for name, value in module.state_dict().items()
    }


def small_text(kind: str) -> TextEncoder:
    """CLIP as SD 1 has it, as SD 2 has it (23 of 24 becomes 3 of 4), or LDM-BERT."""
    if kind == "bert":
        bert = LDMBert(BERT)
        bert.load_state_dict(random_like(bert, 3))
        tokenizer = vocabularies.bert_tokenizer()
        return BertText(model=bert, tokenizer=tokenizer, null="empty", origin=Origin("made"))
    config = clip_l_config()
    config.hidden_size, config.intermediate_size, config.num_hidden_layers = 64, 96, 3
    config.num_attention_heads, config.projection_dim = 1, 64
    with torch.device("meta"):
        meta = CLIPTextModel(config)
    state = random_like(meta, 2)
    return clip_from_weights(
        state,
        origin=Origin("made"),
        heads=1,
        activation="gelu" if kind == "sd2" else "quick_gelu",
        pad_token=SD2_PAD if kind == "sd2" else "",
    )


def small_parts(kind: str, prediction: str = "eps", schedule: str = "scaled_linear") -> Parts:
    """A whole model with raw and averaged weights."""
    unet = replace(
        UNET,
        in_channels=9 if kind == "inpaint" else 4,
        block_out_channels=(64, 64) if kind == "sd2" else (32, 64),
        use_linear_projection=kind == "sd2",
        num_attention_heads=(1, 1) if kind == "sd2" else 8,
    )
    vae = build_vae(VAE)
    vae.load_state_dict(random_like(vae, 1))
    network = UNet(unet)
    text = small_text(kind)
    card: dict[str, Any] = {
        "format": CARD_FORMAT,
        "task": "diffusion",
        "name": kind,
        "unet": plain(asdict(unet)),
        "vae": {"config": plain(asdict(VAE)), "source": "made"},
        "objective": objective_spec(prediction, schedule_named(schedule)),
        "null": "empty",
        "sampling": {
            "sampler": "ddim",
            "steps": 10,
            "guidance": 3.0,
            "guidance_rescale": 0.0,
            "eta": 0.0,
            "size": [32, 32],
        },
        "samples_seen": None,
    }
    return Parts(
        card=card,
        networks={"raw": random_like(network, 4), "ema": random_like(network, 5)},
        weights="raw",
        codec=frozen_codec(vae, torch.float32),
        text=text,
    )


@pytest.fixture(scope="session")
def parts_of_kind() -> Callable[..., Parts]:
    """parts_of_kind("sd1" | "sd2" | "inpaint" | "bert", prediction=…)."""
    return small_parts


@pytest.fixture
def foreign(tmp_path: Path) -> Callable[..., Path]:
    """foreign("sd1", …): a single file as other programs write it: no metadata of ours."""

    def write(kind: str, *, ema: bool = True, dtype: torch.dtype = torch.float32) -> Path:
        tensors = single_tensors(small_parts(kind), with_ema=ema)
        tensors = {
            k: v.to(dtype) if "." in k and v.is_floating_point() else v for k, v in tensors.items()
        }
        if ema:
            tensors["model_ema.decay"] = torch.tensor(0.9999)
        if kind == "sd2":  # what the encoder does not use: the last block, the projection
            prefix = "cond_stage_model.model."
            last = {
                k.replace("resblocks.2.", "resblocks.3."): v + 1
                for k, v in tensors.items()
                if k.startswith(f"{prefix}transformer.resblocks.2.")
            }
            tensors |= last | {f"{prefix}text_projection": torch.randn(64, 64).to(dtype)}
        path = tmp_path / f"{kind}.safetensors"
        save_file({k: v.contiguous() for k, v in tensors.items()}, path)
        return path

    return write


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Equal numbers whatever runs beside."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
