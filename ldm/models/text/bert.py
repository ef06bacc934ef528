"""How does the BERT-style encoder of latent diffusion (LDM-1.4B) work?

Rombach et al. 2022, appendix E.2.1. Parameter names are those of diffusers' LDMBertModel.
B batch, L tokens, C width, N heads, D head dim.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import ClassVar, Self

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import BertTokenizer

from ldm.models.text.base import dtype_named
from ldm.models.text.network import NetworkText
from ldm.models.text.sources import (
    CONFIG,
    Origin,
    read_weights,
    tokenizer_folder,
    weights_folder,
    write_weights,
)
from ldm.models.text.tokens import CaptionTokens, Tokens

SCRATCH = "scratch"
# Our field: diffusers' name in config.json.
CONFIG_NAMES = {
    "vocab_size": "vocab_size",
    "max_tokens": "max_position_embeddings",
    "width": "d_model",
    "num_layers": "encoder_layers",
    "num_heads": "encoder_attention_heads",
    "head_dim": "head_dim",
    "ff_width": "encoder_ffn_dim",
}


@dataclass(frozen=True, kw_only=True)
class LDMBertConfig:
    """Sizes of the encoder; the defaults are those of LDM-1.4B."""

    vocab_size: int = 30522
    max_tokens: int = 77
    width: int = 1280
    num_layers: int = 32
    num_heads: int = 8
    head_dim: int = 64
    ff_width: int = 5120


class Attention(nn.Module):
    """Self-attention over all positions; the heads need not add up to the width."""

    def __init__(self, config: LDMBertConfig) -> None:
        super().__init__()
        inner = config.num_heads * config.head_dim
        self.num_heads = config.num_heads
        self.q_proj = nn.Linear(config.width, inner, bias=False)
        self.k_proj = nn.Linear(config.width, inner, bias=False)
        self.v_proj = nn.Linear(config.width, inner, bias=False)
        self.out_proj = nn.Linear(inner, config.width)

    def forward(self, x_BLC: Tensor) -> Tensor:
        q_BNLD, k_BNLD, v_BNLD = (
            proj(x_BLC).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for proj in (self.q_proj, self.k_proj, self.v_proj)
        )
        y_BNLD = functional.scaled_dot_product_attention(q_BNLD, k_BNLD, v_BNLD)
        return self.out_proj(y_BNLD.transpose(1, 2).flatten(2))


class Layer(nn.Module):
    """Pre-norm attention and feed-forward, each with a residual."""

    def __init__(self, config: LDMBertConfig) -> None:
        super().__init__()
        self.self_attn_layer_norm = nn.LayerNorm(config.width)
        self.self_attn = Attention(config)
        self.final_layer_norm = nn.LayerNorm(config.width)
        self.fc1 = nn.Linear(config.width, config.ff_width)
        self.fc2 = nn.Linear(config.ff_width, config.width)

    def forward(self, x_BLC: Tensor) -> Tensor:
        x_BLC = x_BLC + self.self_attn(self.self_attn_layer_norm(x_BLC))
        return x_BLC + self.fc2(functional.gelu(self.fc1(self.final_layer_norm(x_BLC))))


class Encoder(nn.Module):
    """Token and position embeddings, the layers, a last norm."""

    def __init__(self, config: LDMBertConfig) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.width)
        self.embed_positions = nn.Embedding(config.max_tokens, config.width)
        self.layers = nn.ModuleList([Layer(config) for _ in range(config.num_layers)])
        self.layer_norm = nn.LayerNorm(config.width)

    def forward(self, ids_BL: Tensor) -> Tensor:
        positions = torch.arange(ids_BL.shape[1], device=ids_BL.device)
        x_BLC = self.embed_tokens(ids_BL) + self.embed_positions(positions)
        for layer in self.layers:
            x_BLC = layer(x_BLC)
        return self.layer_norm(x_BLC)


class LDMBert(nn.Module):
    """The encoder and its head over the vocabulary, which released files hold and nothing uses."""

    def __init__(self, config: LDMBertConfig) -> None:
        super().__init__()
        self.config = config
        self.model = Encoder(config)
        self.to_logits = nn.Linear(config.width, config.vocab_size)

    def forward(self, ids_BL: Tensor) -> Tensor:
        return self.model(ids_BL)


def bert_text(
    *,
    source: str,
    config: LDMBertConfig,
    subfolder: str = "",
    revision: str = "main",
    tokenizer: str = "",
    null: str = "empty",
    dtype: str = "fp32",
) -> BertText:
    """An LDM-BERT encoder from a folder or hub id, or 'scratch': random weights, to be trained.

    tokenizer: folder or hub id of a BERT tokenizer; "": the one beside the weights.
    """
    origin = Origin(source, subfolder, revision)
    if source != SCRATCH:
        _check_same(config, read_config(weights_folder(origin)), source)
        return load_bert(origin, tokenizer=tokenizer, null=null, dtype=dtype)
    if not tokenizer:
        raise ValueError(f"source={SCRATCH!r} has no tokenizer; name one, as bert-base-uncased")
    model = LDMBert(config).to(dtype_named(dtype))
    init_embeddings(model)
    return BertText(
        model=model,
        tokenizer=BertTokenizer.from_pretrained(tokenizer_folder(Origin(tokenizer))),
        null=null,
        origin=origin,
    )


def load_bert(origin: Origin, *, tokenizer: str, null: str, dtype: str) -> BertText:
    """The encoder in a folder or on the hub, of the sizes that its config.json says."""
    folder = weights_folder(origin)
    vocabulary = tokenizer_folder(Origin(tokenizer) if tokenizer else origin)
    return BertText(
        model=bert_model(read_weights(folder), read_config(folder), dtype=dtype_named(dtype)),
        tokenizer=BertTokenizer.from_pretrained(vocabulary),
        null=null,
        origin=origin,
    )


def bert_model(
    state: Mapping[str, Tensor], config: LDMBertConfig, *, dtype: torch.dtype
) -> LDMBert:
    """The network with exactly these weights."""
    with torch.device("meta"):
        model = LDMBert(config)
    values = {name: value.to(dtype) for name, value in state.items()}
    model.load_state_dict(values, strict=True, assign=True)
    return model


def init_embeddings(model: LDMBert, std: float = 0.02) -> None:
    """Small embeddings, as the original has them; the rest keeps torch's initialisation."""
    for embedding in (model.model.embed_tokens, model.model.embed_positions):
        nn.init.normal_(embedding.weight, std=std)


class BertText(NetworkText):
    """The encoder's output at all positions; it sees pads too (no attention mask), as LDM's did."""

    kind: ClassVar[str] = "bert"
    module: LDMBert

    def __init__(
        self, *, model: LDMBert, tokenizer: BertTokenizer, null: str, origin: Origin
    ) -> None:
        config = model.config
        if len(tokenizer) > config.vocab_size:
            raise ValueError(
                f"the tokenizer has {len(tokenizer)} ids and the network {config.vocab_size} rows; "
                f"give the tokenizer that belongs to it or set vocab_size={len(tokenizer)}"
            )
        tokens = CaptionTokens(
            tokenizer, max_tokens=config.max_tokens, pad_id=tokenizer.pad_token_id
        )
        super().__init__(module=model, tokens=tokens, width=config.width, null=null, origin=origin)

    def context(self, tokens: Tokens) -> Tensor:
        return self.module(tokens.ids)

    def save_weights(self, folder: Path) -> None:
        write_weights(self.named_weights(), folder)
        named = {CONFIG_NAMES[key]: value for key, value in asdict(self.module.config).items()}
        text = json.dumps({"model_type": "ldmbert", **named}, indent=2)
        (folder / CONFIG).write_text(text + "\n")

    def unfreeze(self) -> Self:
        super().unfreeze()
        # It is in no output: a parameter without a gradient would stop data-parallel training.
        self.module.to_logits.requires_grad_(False)
        return self


def read_config(folder: Path) -> LDMBertConfig:
    """The sizes in config.json, which has diffusers' names."""
    stored = json.loads((folder / CONFIG).read_text())
    missing = sorted(set(CONFIG_NAMES.values()) - set(stored))
    if missing:
        raise ValueError(f"{folder / CONFIG} is no LDM-BERT's: it lacks {', '.join(missing)}")
    return LDMBertConfig(**{key: stored[name] for key, name in CONFIG_NAMES.items()})


def _check_same(given: LDMBertConfig, stored: LDMBertConfig, source: str) -> None:
    ours, theirs = asdict(given), asdict(stored)
    wrong = [f"{key}={ours[key]} (there {theirs[key]})" for key in ours if ours[key] != theirs[key]]
    if wrong:
        raise ValueError(f"sizes differ from those in {source!r}: {', '.join(wrong)}; use those")
