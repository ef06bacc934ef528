"""How is a model without captions expressed?"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar, Self

import torch
from torch import nn

from ldm.models.text.base import Spec
from ldm.models.text.network import SPEC_FILE
from ldm.types import Conditioning


class NoText:
    """The TextEncoder of an unconditional model: no context, whatever the captions say."""

    kind: ClassVar[str] = "none"
    width = 0
    max_tokens = 0
    truncated = 0
    null_kind = "empty"
    gradients = False

    def __init__(self) -> None:
        self.module = nn.Identity()

    def encode(self, captions: Sequence[str]) -> Conditioning:
        return Conditioning()

    def encode_prompts(
        self, prompts: Sequence[str], *, weighting: bool = True, chunks: int | None = None
    ) -> Conditioning:
        return Conditioning()

    def chunks_needed(self, prompts: Sequence[str], *, weighting: bool = True) -> int:
        return 1

    def ids_of(self, text: str) -> list[int]:
        return []

    def learn(self, token: str, count: int) -> list[int]:
        raise ValueError(f"a model without captions cannot learn the word {token!r}")

    def forget(self, token: str) -> None:
        raise ValueError(f"a model without captions never learnt {token!r}")

    def null(self, n: int, chunks: int = 1) -> Conditioning:
        return Conditioning()

    def spec(self) -> Spec:
        return {
            "kind": self.kind,
            "source": "",
            "subfolder": "",
            "revision": "",
            "null": self.null_kind,
            "width": self.width,
            "max_tokens": self.max_tokens,
            "hash": self.hash(),
            "tokenizer_hash": "",
        }

    def hash(self) -> str:
        return ""

    def save(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / SPEC_FILE).write_text(json.dumps(self.spec(), indent=2) + "\n")

    def to(self, device: torch.device | str) -> Self:
        return self

    def cast(self, dtype: torch.dtype) -> Self:
        return self

    def freeze(self) -> Self:
        return self

    def allow_gradients(self) -> Self:
        return self

    def unfreeze(self) -> Self:
        raise ValueError("there is no text encoder to train: choose models/text other than none")
