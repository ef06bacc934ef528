"""How does a CLIP text model turn captions into a context?

n captions, L tokens, D context width.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from ldm.models.text.base import Spec, dtype_named
from ldm.models.text.clip_tokenizer import as_a_word, rebuilt, save_everywhere
from ldm.models.text.keys import file_names, first_layers, module_names, num_layers, plain_names
from ldm.models.text.network import NetworkText
from ldm.models.text.sources import (
    Origin,
    read_weights,
    tokenizer_folder,
    weights_folder,
    write_weights,
)
from ldm.models.text.tokens import CaptionTokens, Tokens

log = logging.getLogger(__name__)
UNKNOWN = Origin("")  # parts that were put together by hand, or read from a single file


def clip_text(
    *,
    source: str,
    subfolder: str = "",
    revision: str = "main",
    tokenizer: str = "",
    layers: int = 0,
    clip_skip: int = 1,
    pad_token: str = "",
    null: str = "empty",
    dtype: str = "fp32",
) -> ClipText:
    """A CLIP text encoder from a folder, a hub id or 'tiny' (the packaged one).

    tokenizer: its folder or hub id; "": the one beside the weights. layers: keep only the first so
    many (0: all). pad_token "": the tokenizer's own.
    """
    origin = Origin(source, subfolder, revision)
    folder = weights_folder(origin)
    vocabulary = tokenizer_folder(Origin(tokenizer) if tokenizer else origin)
    config = CLIPTextConfig.from_pretrained(folder)
    return ClipText(
        model=clip_model(read_weights(folder), config, layers=layers, dtype=dtype_named(dtype)),
        tokenizer=CLIPTokenizer.from_pretrained(vocabulary),
        clip_skip=clip_skip,
        pad_token=pad_token,
        null=null,
        origin=origin,
    )


def clip_model(
    state: Mapping[str, Tensor], config: CLIPTextConfig, *, layers: int = 0, dtype: torch.dtype
) -> CLIPTextModel:
    """The network with exactly these weights, which may be named as in any file (see keys)."""
    state = plain_names(state)
    have = num_layers(state)
    if have != config.num_hidden_layers:
        raise ValueError(f"the weights have {have} layers, the config {config.num_hidden_layers}")
    if not 0 <= layers <= have:
        raise ValueError(f"layers={layers}; use 1 to {have}, or 0 for all {have}")
    wanted = layers or have
    config = CLIPTextConfig.from_dict({**config.to_dict(), "num_hidden_layers": wanted})
    config.architectures = ["CLIPTextModel"]
    with torch.device("meta"):  # no random weights are drawn: the generator is left alone
        model = CLIPTextModel(config)
    values = {name: value.to(dtype) for name, value in first_layers(state, wanted).items()}
    model.load_state_dict(module_names(values, model), strict=True, assign=True)
    log.info("text encoder: loaded %d/%d tensors", len(values), len(state))
    for module in model.modules():
        for name, buffer in module.named_buffers(recurse=False):
            assert name == "position_ids", f"unknown buffer {name}"  # the only one, not in files
            module.register_buffer(name, torch.arange(buffer.shape[-1])[None], persistent=False)
    return model


def clip_l_config() -> CLIPTextConfig:
    """CLIP ViT-L/14's text tower, the encoder of Stable Diffusion 1."""
    return CLIPTextConfig(
        vocab_size=49408,
        hidden_size=768,
        intermediate_size=3072,
        num_hidden_layers=12,
        num_attention_heads=12,
        max_position_embeddings=77,
        hidden_act="quick_gelu",
        projection_dim=768,
    )


class ClipText(NetworkText):
    """CLIP's hidden states of all positions, pads included; no attention mask but the causal one.

    clip_skip n: the final layer norm on the n-th hidden state from the end; 1 is CLIP's own output.
    """

    kind: ClassVar[str] = "clip"
    module: CLIPTextModel

    def __init__(
        self,
        *,
        model: CLIPTextModel,
        tokenizer: CLIPTokenizer,
        clip_skip: int = 1,
        pad_token: str = "",
        null: str = "empty",
        origin: Origin = UNKNOWN,
    ) -> None:
        config = model.config
        _check(config, tokenizer, clip_skip, pad_token)
        self.clip_skip = clip_skip
        self.pad_token = pad_token or tokenizer.pad_token
        tokens = CaptionTokens(
            as_a_word(tokenizer, self.pad_token),
            max_tokens=config.max_position_embeddings,
            pad_id=tokenizer.get_vocab()[self.pad_token],
        )
        super().__init__(
            module=model, tokens=tokens, width=config.hidden_size, null=null, origin=origin
        )

    def context(self, tokens: Tokens) -> Tensor:
        if self.clip_skip == 1:
            return self.module(input_ids=tokens.ids).last_hidden_state
        states = self.module(input_ids=tokens.ids, output_hidden_states=True).hidden_states
        return self.final_norm(states[-self.clip_skip])

    @property
    def final_norm(self) -> torch.nn.Module:
        return next(m for n, m in self.module.named_modules() if n.endswith("final_layer_norm"))

    def options(self) -> Spec:
        return {
            "layers": self.module.config.num_hidden_layers,
            "clip_skip": self.clip_skip,
            "pad_token": self.pad_token,
        }

    def named_weights(self) -> Mapping[str, Tensor]:
        return file_names(self.module.state_dict())

    def save_weights(self, folder: Path) -> None:
        write_weights(self.named_weights(), folder)
        config = copy.deepcopy(self.module.config)
        config.dtype = self.dtype  # not the source's: readers take it for granted
        config.save_pretrained(folder)

    def save_for_diffusers(self, text_folder: Path, tokenizer_folder: Path) -> None:
        """As a diffusers pipeline has it: what pads is what the tokenizer says."""
        text_folder.mkdir(parents=True, exist_ok=True)
        self.save_weights(text_folder)
        save_everywhere(rebuilt(self.tokens.tokenizer, self.pad_token), tokenizer_folder)


def _check(
    config: CLIPTextConfig, tokenizer: CLIPTokenizer, clip_skip: int, pad_token: str
) -> None:
    """All problems at once: they come from one configuration."""
    problems = []
    if not 1 <= clip_skip <= config.num_hidden_layers:
        problems.append(f"clip_skip={clip_skip}; use 1 (the last) to {config.num_hidden_layers}")
    if pad_token and pad_token not in tokenizer.get_vocab():
        problems.append(f"pad_token={pad_token!r} is not in the vocabulary of {len(tokenizer)}")
    if len(tokenizer) > config.vocab_size:
        problems.append(
            f"the tokenizer has {len(tokenizer)} ids and the network {config.vocab_size} rows; "
            "give the tokenizer that belongs to these weights"
        )
    if problems:
        raise ValueError("; ".join(problems))
