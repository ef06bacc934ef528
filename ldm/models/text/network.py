"""What do all text encoders with a network share?

n captions or rows, k chunks a prompt, L tokens, D context width.
"""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import ClassVar, Self

import torch
from torch import Tensor, nn

from ldm.models.text.base import NULLS, Spec, dtype_name
from ldm.models.text.sources import Origin
from ldm.models.text.tokens import CaptionTokens, Tokens
from ldm.models.text.weighted import emphasised, framed, split_prompts
from ldm.types import Conditioning

SPEC_FILE = "text.json"


class NetworkText(ABC):
    """The TextEncoder protocol around a network and a tokenizer; a kind adds `context`."""

    kind: ClassVar[str]
    chunked: ClassVar[bool] = True  # prompts of more than L tokens are read in several chunks

    def __init__(
        self, *, module: nn.Module, tokens: CaptionTokens, width: int, null: str, origin: Origin
    ) -> None:
        if null not in NULLS:
            raise ValueError(f"null={null!r} is not known; use one of {', '.join(NULLS)}")
        self.module = module
        self.tokens = tokens
        self.width = width
        self.null_kind = null
        self.origin = origin
        self.gradients = False
        self.trained = False
        self._hash = ""
        self._new_ids = 0
        self.freeze()

    @property
    def max_tokens(self) -> int:
        return self.tokens.max_tokens

    @property
    def truncated(self) -> int:
        return self.tokens.truncated

    @property
    def dtype(self) -> torch.dtype:
        return next(self.module.parameters()).dtype

    @property
    def device(self) -> torch.device:
        return next(self.module.parameters()).device

    def encode(self, captions: Sequence[str]) -> Conditioning:
        tokens = self.tokens(captions).to(self.device)
        return Conditioning(self._states(tokens), self.context_mask(tokens))

    def encode_prompts(
        self, prompts: Sequence[str], *, weighting: bool = True, chunks: int | None = None
    ) -> Conditioning:
        rows = split_prompts(prompts, self.tokens, weighting=weighting, chunked=self.chunked)
        needed = max(len(row) for row in rows)
        count = needed if chunks is None else self._checked(chunks, needed)
        tokens, weights = framed(
            [chunk for row in rows for chunk in row + [[]] * (count - len(row))],
            [prompt for prompt in prompts for _ in range(count)],
            self.tokens,
        )
        tokens = tokens.to(self.device)
        mask = self.context_mask(tokens)
        context = emphasised(self._states(tokens), weights.to(self.device), mask)
        return Conditioning(  # [nk,L,D] -> [n,kL,D]
            context.unflatten(0, (-1, count)).flatten(1, 2),
            None if mask is None else mask.unflatten(0, (-1, count)).flatten(1, 2),
        )

    def chunks_needed(self, prompts: Sequence[str], *, weighting: bool = True) -> int:
        rows = split_prompts(prompts, self.tokens, weighting=weighting, chunked=self.chunked)
        return max(len(row) for row in rows)

    def ids_of(self, text: str) -> list[int]:
        return self.tokens.ids_of(text)

    def learn(self, token: str, count: int) -> list[int]:
        rows = max(m.num_embeddings for m in self.module.modules() if isinstance(m, nn.Embedding))
        ids = list(range(rows + self._new_ids, rows + self._new_ids + count))
        self.tokens.learn(token, ids)
        self._new_ids += count
        return ids

    def forget(self, token: str) -> None:
        self.tokens.forget(token)

    def null(self, n: int, chunks: int = 1) -> Conditioning:
        self._checked(chunks, 1)
        # Computed anew: a cached row would be stale once an adapter is attached.
        row = self.encode([""])
        assert row.context is not None
        context = torch.zeros_like(row.context) if self.null_kind == "zeros" else row.context
        mask = None if row.mask is None else row.mask.repeat(1, chunks).expand(n, -1)
        return Conditioning(context.repeat(1, chunks, 1).expand(n, -1, -1), mask)

    def _states(self, tokens: Tokens) -> Tensor:
        """[n,L] -> [n,L,D] fp32; gradients only where they are allowed."""
        with ExitStack() as stack:
            if not self.gradients:
                stack.enter_context(torch.no_grad())
                stack.enter_context(torch.autocast(self.device.type, enabled=False))
            return self.context(tokens).float()

    def _checked(self, chunks: int, needed: int) -> int:
        if not self.chunked and chunks != 1:
            raise ValueError(
                f"chunks={chunks}, but {self.kind!r} text has one chunk a prompt; use 1"
            )
        if chunks < needed:
            raise ValueError(f"chunks={chunks} is too few; use {needed} or more")
        return chunks

    @abstractmethod
    def context(self, tokens: Tokens) -> Tensor:
        """The network on ids [n,L], in its own dtype: [n,L,D]."""

    def context_mask(self, tokens: Tokens) -> Tensor | None:
        """What cross-attention may see, [n,L] bool; None: every position, pads included."""
        return None

    def options(self) -> Spec:
        """The choices beside source and null that change the context."""
        return {}

    def named_weights(self) -> Mapping[str, Tensor]:
        """The weights under their names in files, which do not depend on library versions."""
        return self.module.state_dict()

    @abstractmethod
    def save_weights(self, folder: Path) -> None:
        """Config and weights (safetensors, in the current dtype) into `folder`."""

    def save(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.save_weights(folder)
        self.tokens.save(folder)
        (folder / SPEC_FILE).write_text(json.dumps(self.spec(), indent=2) + "\n")

    def spec(self) -> Spec:
        return {
            "kind": self.kind,
            **asdict(self.origin),
            **self.options(),
            "null": self.null_kind,
            "width": self.width,
            "max_tokens": self.max_tokens,
            "dtype": dtype_name(self.dtype),
            "trained": self.trained,
            "hash": self.hash(),
            "tokenizer_hash": self.tokens.hash(),
        }

    def hash(self) -> str:
        """Hash of the frozen weights, computed once; of trained ones at every call."""
        if self.trained or not self._hash:
            self._hash = weights_hash(self.named_weights())
        return self._hash

    def to(self, device: torch.device | str) -> Self:
        self.module.to(device)
        return self

    def cast(self, dtype: torch.dtype) -> Self:
        self.module.to(dtype)
        self._hash = ""
        return self

    def freeze(self) -> Self:
        self.module.eval().requires_grad_(False)
        self.gradients = False
        self.trained = False
        self._hash = ""
        return self

    def allow_gradients(self) -> Self:
        self.gradients = True
        return self

    def unfreeze(self) -> Self:
        self.module.train().requires_grad_(True)
        self.trained = True
        return self.allow_gradients()


def weights_hash(state: Mapping[str, Tensor]) -> str:
    """blake2b of names, shapes and fp32 values: the file's half precision plays no part."""
    digest = hashlib.blake2b(digest_size=20)
    for name in sorted(state):
        values = state[name].detach().to("cpu", torch.float32).contiguous()
        digest.update(f"{name}{tuple(values.shape)}".encode())
        digest.update(values.numpy().data)
    return digest.hexdigest()
