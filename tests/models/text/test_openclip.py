"""SD 2's text weights, against OpenCLIP's tower written with torch's own attention."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.testing import assert_close
from transformers import CLIPTextConfig, CLIPTextModel

from ldm.models.text.clip import clip_model
from ldm.models.text.openclip import (
    SD2_LAYERS,
    from_open_clip,
    openclip_h_config,
    to_open_clip,
)


class Block(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(width)
        self.attn = nn.MultiheadAttention(width, heads, batch_first=True)
        self.ln_2 = nn.LayerNorm(width)
        self.mlp = nn.ModuleDict(
            {"c_fc": nn.Linear(width, 4 * width), "c_proj": nn.Linear(4 * width, width)}
        )

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        y = self.ln_1(x)
        x = x + self.attn(y, y, y, attn_mask=mask, need_weights=False)[0]
        hidden = nn.functional.gelu(self.mlp["c_fc"](self.ln_2(x)))
        return x + self.mlp["c_proj"](hidden)


class Tower(nn.Module):
    """OpenCLIP's text tower by its published names; forward is SD 2's penultimate state."""

    def __init__(self, vocab: int, length: int, width: int, heads: int, layers: int) -> None:
        super().__init__()
        self.token_embedding = nn.Embedding(vocab, width)
        self.positional_embedding = nn.Parameter(torch.randn(length, width))
        self.transformer = nn.Module()
        self.transformer.resblocks = nn.ModuleList([Block(width, heads) for _ in range(layers)])
        self.ln_final = nn.LayerNorm(width)
        self.text_projection = nn.Parameter(torch.randn(width, width))
        self.logit_scale = nn.Parameter(torch.zeros(()))
        mask = torch.full((length, length), float("-inf")).triu(1)
        self.register_buffer("attn_mask", mask)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.token_embedding(ids) + self.positional_embedding
        for block in self.transformer.resblocks[:-1]:
            x = block(x, self.attn_mask)
        return self.ln_final(x)


@pytest.fixture
def tower() -> Tower:
    torch.manual_seed(0)
    tower = Tower(vocab=50, length=8, width=32, heads=4, layers=3)
    with torch.no_grad():
        for value in tower.parameters():
            value.add_(0.1 * torch.randn_like(value))
    return tower.eval()


def config_of(layers: int) -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=50,
        hidden_size=32,
        intermediate_size=128,
        num_hidden_layers=layers,
        num_attention_heads=4,
        max_position_embeddings=8,
        hidden_act="gelu",
        eos_token_id=49,
    )


def test_penultimate_state_equals_open_clips(tower):
    state = from_open_clip(tower.state_dict())
    model = clip_model(state, config_of(3), layers=2, dtype=torch.float32)
    ids = torch.randint(0, 50, (4, 8))
    with torch.no_grad():
        # another order of sums in two attention implementations: some ulps of values around 3
        assert_close(model(ids).last_hidden_state, tower(ids), rtol=1e-5, atol=1e-5)


def test_names_go_both_ways(tower):
    state = tower.state_dict()
    unused = {"text_projection", "logit_scale", "attn_mask"}
    back = to_open_clip(from_open_clip(state))
    assert set(back) == set(state) - unused
    for name, value in back.items():
        assert_close(value, state[name], rtol=0, atol=0)


def test_unknown_names_are_errors(tower):
    with pytest.raises(ValueError, match=r"visual\.proj is no part"):
        from_open_clip({**tower.state_dict(), "visual.proj": torch.zeros(1)})
    with pytest.raises(ValueError, match=r"text_model\.final_layer_norm\.bias is no weight"):
        to_open_clip({"text_model.final_layer_norm.bias": torch.zeros(1)})


@pytest.mark.parametrize(("layers", "count"), [(SD2_LAYERS, 340_387_840), (24, 352_984_064)])
def test_published_size(layers, count):
    config = openclip_h_config()
    config.num_hidden_layers = layers
    with torch.device("meta"):
        model = CLIPTextModel(config)
    assert sum(p.numel() for p in model.parameters()) == count
    # every weight of the published tower has a name there and back
    state = model.state_dict()
    assert set(from_open_clip(to_open_clip(state))) == set(state)
