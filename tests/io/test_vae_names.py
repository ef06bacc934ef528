"""Do VAE files of every age load?"""

from __future__ import annotations

from pathlib import Path

import torch

from ldm.io.frozen import load_vae_weights, write_tensors
from ldm.models.vae import VAEConfig, build_vae

CONFIG = VAEConfig(block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4)
OLD = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}


def test_old_attention_names_and_convolutions_load_as_they_are(tmp_path: Path) -> None:
    vae = build_vae(CONFIG)
    state = dict(vae.state_dict())
    old = {}
    for name, value in state.items():
        for new, former in OLD.items():
            if f".attentions.0.{new}." in name:
                name = name.replace(f".{new}.", f".{former}.")
                value = value[:, :, None, None] if value.ndim == 2 else value
        old[name] = value
    assert sum("query" in name or "proj_attn" in name for name in old) == 8
    write_tensors(tmp_path / "vae" / "diffusion_pytorch_model.safetensors", old)
    loaded = load_vae_weights(CONFIG, str(tmp_path)).state_dict()
    assert loaded.keys() == state.keys()
    assert all(torch.equal(loaded[name], state[name]) for name in state)
