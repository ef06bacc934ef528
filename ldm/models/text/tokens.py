"""How captions become token ids.

n captions, L tokens.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Tokens:
    """ids: [n,L] int64. mask: [n,L] bool, False on pads."""

    ids: Tensor
    mask: Tensor

    def to(self, device: torch.device) -> Tokens:
        return Tokens(self.ids.to(device), self.mask.to(device))


class CaptionTokens:
    """A transformers tokenizer with a fixed length: longer captions are cut, and counted."""

    def __init__(self, tokenizer: Any, *, max_tokens: int, pad_id: int) -> None:
        self.tokenizer = tokenizer
        self.max_tokens = max_tokens
        self.pad_id = pad_id
        self.truncated = 0

    def __call__(self, captions: Sequence[str]) -> Tokens:
        """Captions to ids [n,L], padded on the right to max_tokens."""
        check_captions(captions)
        return self.padded(self._rows(list(captions)))

    def padded(self, rows: list[list[int]]) -> Tokens:
        """Rows of at most max_tokens ids, start and end included, to ids [n,L]."""
        lengths = torch.tensor([len(row) for row in rows])
        padded = [row + [self.pad_id] * (self.max_tokens - len(row)) for row in rows]
        return Tokens(torch.tensor(padded), torch.arange(self.max_tokens) < lengths[:, None])

    def _rows(self, captions: list[str]) -> list[list[int]]:
        rows: list[list[int]] = self.tokenizer(captions, verbose=False)["input_ids"]
        long = [i for i, row in enumerate(rows) if len(row) > self.max_tokens]
        if long:
            self.count_cut([(len(rows[i]), captions[i]) for i in long])
            # The tokenizer cuts, not we: only it knows which end tokens must survive.
            cut = self.tokenizer(
                [captions[i] for i in long], truncation=True, max_length=self.max_tokens
            )["input_ids"]
            for i, row in zip(long, cut, strict=True):
                rows[i] = row
        return rows

    def count_cut(self, long: Sequence[tuple[int, str]]) -> None:
        """Lengths (in tokens) and texts of captions that are cut now; the first is logged."""
        if long and not self.truncated:
            log.warning(
                "caption cut from %d to %d tokens (%.60r); further ones are only counted",
                long[0][0],
                self.max_tokens,
                long[0][1],
            )
        self.truncated += len(long)

    def save(self, folder: Path) -> None:
        self.tokenizer.save_pretrained(folder)

    def hash(self) -> str:
        """sha256 over the vocabulary, the pad and the length."""
        vocab = sorted(self.tokenizer.get_vocab().items())
        return hashlib.sha256(
            json.dumps([vocab, self.pad_id, self.max_tokens]).encode()
        ).hexdigest()


def check_captions(captions: Sequence[str]) -> None:
    if isinstance(captions, str) or not captions:
        raise ValueError(f"captions={captions!r}; pass a list of at least one string")
