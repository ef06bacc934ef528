"""What is a text encoder to the rest of the code?

n captions or rows, k chunks a prompt, L tokens, D context width.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol, Self

import torch
from torch import nn

from ldm.models.dtypes import DTYPES
from ldm.types import Conditioning

Spec = dict[str, str | int | bool]

NULLS = ("empty", "zeros")


class TextEncoder(Protocol):
    """Captions to a context for cross-attention. A plain object; the network is its `module`.

    Frozen from the start: eval, no gradients, its own dtype, autocast off.
    """

    @property
    def kind(self) -> str:
        """The name in the table of kinds (`folder.py`) that can load it again."""

    @property
    def module(self) -> nn.Module:
        """The network: adapters attach to it, and training registers it as a submodule."""

    @property
    def width(self) -> int:
        """D, the network's cross_attention_dim; 0 without a context."""

    @property
    def max_tokens(self) -> int:
        """L; longer captions are cut."""

    @property
    def truncated(self) -> int:
        """How many captions were cut so far (in this process)."""

    @property
    def gradients(self) -> bool:
        """Whether gradients pass: the weights are trained, or an adapter is."""

    @property
    def null_kind(self) -> str:
        """'empty' or 'zeros'; what guidance uses must be what dropout used."""

    def encode(self, captions: Sequence[str]) -> Conditioning:
        """Context [n,L,D] fp32, with a mask [n,L] where the encoder uses one."""

    def encode_prompts(
        self, prompts: Sequence[str], *, weighting: bool = True, chunks: int | None = None
    ) -> Conditioning:
        """What a user types, uncut: context [n,kL,D], k chunks of L tokens one after the other.

        weighting: read (word:1.2), [word] and BREAK (see prompts.py); False: all of it is text.
        chunks: k, chunks of "" fill up; None: as many as the longest prompt needs.
        """

    def chunks_needed(self, prompts: Sequence[str], *, weighting: bool = True) -> int:
        """k of the longest prompt; 1 where the encoder has no chunks and cuts."""

    def ids_of(self, text: str) -> list[int]:
        """The token ids of a text, without start, end and pads."""

    def learn(self, token: str, count: int) -> list[int]:
        """Makes `token` a word of `count` new ids, for an adapter (adapters/token.py) to embed.

        Raises ValueError for a word that is known already.
        """

    def forget(self, token: str) -> None:
        """Makes a learnt word plain text again."""

    def null(self, n: int, chunks: int = 1) -> Conditioning:
        """The unconditional context [n,kL,D]: of the caption "" ('empty') or 'zeros', k times."""

    def spec(self) -> Spec:
        """What a checkpoint's card says about this encoder: plain values only."""

    def hash(self) -> str:
        """Hash of the weights' names and values; "" without any."""

    def save(self, folder: Path) -> None:
        """Everything that `folder.load_text` needs: weights, config, tokenizer, choices."""

    def to(self, device: torch.device | str) -> Self:
        """Move the network."""

    def cast(self, dtype: torch.dtype) -> Self:
        """The network in another dtype; the context stays fp32."""

    def freeze(self) -> Self:
        """Eval, no gradients: the state after construction."""

    def allow_gradients(self) -> Self:
        """Let gradients pass through the frozen weights, to an adapter."""

    def unfreeze(self) -> Self:
        """Train the weights: register `module` as a submodule and give it to the optimiser."""


def dtype_named(name: str) -> torch.dtype:
    if name not in DTYPES:
        raise ValueError(f"dtype={name!r} is not known; use one of {', '.join(DTYPES)}")
    return DTYPES[name]


def dtype_name(dtype: torch.dtype) -> str:
    return next(name for name, value in DTYPES.items() if value == dtype)
