"""How does a text encoder come out of weights alone, as single-file checkpoints hold them?"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTokenizer

from ldm.models.text.base import TextEncoder, dtype_named
from ldm.models.text.bert import BertText, LDMBertConfig, bert_model
from ldm.models.text.clip import ClipText, clip_model
from ldm.models.text.keys import num_layers, plain_names
from ldm.models.text.sources import Origin
from ldm.models.text.vocabularies import BERT_SIZE, CLIP_SIZE, bert_tokenizer, clip_tokenizer

# What shapes do not say about a CLIP; the values of every released one.
SHAPELESS = ("num_attention_heads", "hidden_act", "layer_norm_eps")


def clip_from_weights(
    state: Mapping[str, Tensor],
    *,
    origin: Origin,
    heads: int,
    activation: str,
    epsilon: float = 1e-5,
    tokenizer: CLIPTokenizer | None = None,
    layers: int = 0,
    clip_skip: int = 1,
    pad_token: str = "",
    null: str = "empty",
    dtype: torch.dtype = torch.float32,
) -> ClipText:
    """A CLIP text encoder from tensors under any of CLIP's names (see keys).

    tokenizer None: the packaged one, if the vocabulary has its size. Raises ValueError otherwise.
    """
    state = plain_names(state)
    config = clip_config(state, heads=heads, activation=activation, epsilon=epsilon)
    if tokenizer is None:
        if config.vocab_size != CLIP_SIZE:
            raise ValueError(
                f"{origin.source}: a text encoder with {config.vocab_size} token embeddings is not "
                f"for CLIP's own tokenizer ({CLIP_SIZE}); put its tokenizer's folder beside the "
                "file, as tokenizer/"
            )
        tokenizer = clip_tokenizer(max_tokens=config.max_position_embeddings)
    return ClipText(
        model=clip_model(state, config, layers=layers, dtype=dtype),
        tokenizer=tokenizer,
        clip_skip=clip_skip,
        pad_token=pad_token,
        null=null,
        origin=origin,
    )


def clip_config(
    state: Mapping[str, Tensor], *, heads: int, activation: str, epsilon: float
) -> CLIPTextConfig:
    """The sizes that plain-named tensors have, and what they cannot say."""
    tokens = state["embeddings.token_embedding.weight"]
    return CLIPTextConfig(
        vocab_size=tokens.shape[0],
        hidden_size=tokens.shape[1],
        intermediate_size=state["encoder.layers.0.mlp.fc1.weight"].shape[0],
        num_hidden_layers=num_layers(state),
        num_attention_heads=heads,
        max_position_embeddings=state["embeddings.position_embedding.weight"].shape[0],
        hidden_act=activation,
        layer_norm_eps=epsilon,
        projection_dim=tokens.shape[1],
        # CLIPTextConfig's own defaults speak of another vocabulary for other sizes
        bos_token_id=tokens.shape[0] - 2,
        eos_token_id=tokens.shape[0] - 1,
        pad_token_id=tokens.shape[0] - 1,
    )


def shapeless(text: ClipText) -> dict[str, Any]:
    """What `clip_config` must be told of this encoder."""
    return {name: getattr(text.module.config, name) for name in SHAPELESS}


def with_options(
    text: TextEncoder,
    *,
    layers: int = 0,
    clip_skip: int = 1,
    pad_token: str = "",
    null: str = "empty",
    dtype: str = "fp32",
) -> TextEncoder:
    """The same weights and tokenizer with these choices, as a configuration makes them.

    Raises ValueError for a kind that has other choices.
    """
    if isinstance(text, BertText):
        text.null_kind = null
        return text.cast(dtype_named(dtype))
    if not isinstance(text, ClipText):
        raise ValueError(f"the text encoder is of the kind {text.kind!r}; known: clip, bert")
    have = text.module.config.num_hidden_layers
    if layers not in (0, have):
        raise ValueError(f"layers={layers}, but the text encoder there has {have}; use 0 for all")
    chosen = ClipText(
        model=text.module,
        tokenizer=text.tokens.tokenizer,
        clip_skip=clip_skip,
        pad_token=pad_token or text.pad_token,
        null=null,
        origin=text.origin,
    )
    return chosen.cast(dtype_named(dtype))


def bert_from_weights(
    state: Mapping[str, Tensor],
    config: LDMBertConfig,
    *,
    origin: Origin,
    null: str = "empty",
    dtype: torch.dtype = torch.float32,
) -> BertText:
    """An LDM-BERT encoder with the packaged tokenizer. Raises ValueError for another vocabulary."""
    if config.vocab_size != BERT_SIZE:
        raise ValueError(
            f"{origin.source}: {config.vocab_size} token embeddings are not for BERT's uncased "
            f"tokenizer ({BERT_SIZE})"
        )
    return BertText(
        model=bert_model(state, config, dtype=dtype),
        tokenizer=bert_tokenizer(config.max_tokens),
        null=null,
        origin=origin,
    )
