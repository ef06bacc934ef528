"""How does any other encoder of transformers (T5, BERT, another CLIP …) give a context?

n captions, L tokens, D context width.
"""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import transformers
from torch import Tensor
from transformers import AutoConfig, AutoModel, AutoTokenizer, PreTrainedModel

from ldm.models.text.base import Spec, dtype_named
from ldm.models.text.network import NetworkText
from ldm.models.text.sources import Origin, tokenizer_folder, weights_folder
from ldm.models.text.tokens import CaptionTokens, Tokens

# The part of a model that reads text, where AutoModel would give more than that.
TEXT_CLASSES = {
    "t5": "T5EncoderModel",
    "mt5": "MT5EncoderModel",
    "umt5": "UMT5EncoderModel",
    "clip": "CLIPTextModel",
    "siglip": "SiglipTextModel",
    "siglip2": "Siglip2TextModel",
}
# Heads over the first token: the context does not use them, many files do not have them.
UNUSED = ("pooler.",)


def auto_text(
    *,
    source: str,
    subfolder: str = "",
    revision: str = "main",
    max_tokens: int = 77,
    attention_mask: bool = True,
    null: str = "empty",
    dtype: str = "fp32",
) -> AutoText:
    """A text encoder from a folder or a hub id; its config.json says of which class.

    attention_mask: the encoder and the network's cross-attention do not see pads.
    """
    origin = Origin(source, subfolder, revision)
    folder = weights_folder(origin)
    config = AutoConfig.from_pretrained(folder)
    name = TEXT_CLASSES.get(config.model_type)
    loader = AutoModel if name is None else getattr(transformers, name)
    model, info = loader.from_pretrained(folder, dtype=dtype_named(dtype), output_loading_info=True)
    _check_loaded(info, source, type(model).__name__)
    return AutoText(
        model=model,
        tokenizer=AutoTokenizer.from_pretrained(tokenizer_folder(origin)),
        max_tokens=max_tokens,
        attention_mask=attention_mask,
        null=null,
        origin=origin,
    )


class AutoText(NetworkText):
    """The last hidden state of an encoder that transformers knows."""

    kind: ClassVar[str] = "auto"
    chunked: ClassVar[bool] = False  # with relative positions, max_tokens is what one asks for
    module: PreTrainedModel

    def __init__(
        self,
        *,
        model: PreTrainedModel,
        tokenizer: transformers.PreTrainedTokenizerBase,
        max_tokens: int,
        attention_mask: bool,
        null: str,
        origin: Origin,
    ) -> None:
        config = model.config.get_text_config()
        _check_lengths(config, tokenizer, max_tokens)
        self.attention_mask = attention_mask
        tokens = CaptionTokens(tokenizer, max_tokens=max_tokens, pad_id=tokenizer.pad_token_id)
        super().__init__(
            module=model, tokens=tokens, width=config.hidden_size, null=null, origin=origin
        )

    def context(self, tokens: Tokens) -> Tensor:
        mask = tokens.mask.long() if self.attention_mask else None
        return self.module(input_ids=tokens.ids, attention_mask=mask).last_hidden_state

    def context_mask(self, tokens: Tokens) -> Tensor | None:
        return tokens.mask if self.attention_mask else None

    def options(self) -> Spec:
        return {"attention_mask": self.attention_mask}

    def save_weights(self, folder: Path) -> None:
        self.module.save_pretrained(folder)


def _check_loaded(info: dict[str, set[str]], source: str, cls: str) -> None:
    """from_pretrained fills what a file lacks with random numbers and goes on: an error here."""
    missing = sorted(key for key in info["missing_keys"] if not key.startswith(UNUSED))
    wrong = sorted(str(key) for key in info["mismatched_keys"])
    if missing or wrong:
        raise ValueError(
            f"the weights of {source!r} do not fill a {cls}: missing {missing[:5]} "
            f"({len(missing)}), wrong shape {wrong[:5]} ({len(wrong)}); give the matching files"
        )


def _check_lengths(
    config: transformers.PretrainedConfig,
    tokenizer: transformers.PreTrainedTokenizerBase,
    max_tokens: int,
) -> None:
    limit = getattr(config, "max_position_embeddings", None)  # T5 has relative positions: none
    if max_tokens < 2 or (limit is not None and max_tokens > limit):
        raise ValueError(f"max_tokens={max_tokens}; use 2 to {limit or 'what memory allows'}")
    if tokenizer.pad_token_id is None:
        raise ValueError("the tokenizer has no pad token; set pad_token in tokenizer_config.json")
