"""How captions become token ids.

n captions, L tokens.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
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
        self._learnt: dict[str, list[int]] = {}

    def learn(self, token: str, ids: list[int]) -> None:
        """From now on `token` in a caption stands for these ids. Raises ValueError for a known one.

        The tokenizer, its hash and its files stay as they are.
        """
        if token in self._learnt:
            raise ValueError(f"the token {token!r} is learnt already; learnt: {self.learnt}")
        if not token or any(letter.isspace() for letter in token):
            raise ValueError(f"the token {token!r} is empty or has blanks; rename it in its file")
        if len(self.tokenizer(token, add_special_tokens=False, verbose=False)["input_ids"]) == 1:
            raise ValueError(
                f"the token {token!r} exists already in the vocabulary; give another word, as "
                f"<{token.strip('<>')}-1> (a file without one is called by its name)"
            )
        self._learnt[token] = ids

    def forget(self, token: str) -> None:
        del self._learnt[token]

    @property
    def learnt(self) -> str:
        """The new words, to be read."""
        return ", ".join(self._learnt) or "none"

    def pieces(self, text: str) -> list[str | list[int]]:
        """Text as it is, and the ids of new words where they stand in it."""
        if not any(token in text for token in self._learnt):
            return [text]
        longest = sorted(self._learnt, key=len, reverse=True)
        parts = re.split("(" + "|".join(map(re.escape, longest)) + ")", text)
        return [self._learnt.get(part, part) for part in parts if part]

    def ids_of(self, text: str) -> list[int]:
        """Without start, end and pads; new words are their ids."""
        found: list[int] = []
        for piece in self.pieces(text):
            if isinstance(piece, str):
                piece = self.tokenizer(piece, add_special_tokens=False, verbose=False)["input_ids"]
            found += piece
        return found

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
        if any(token in caption for caption in captions for token in self._learnt):
            return [self._with_new_words(caption) for caption in captions]
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

    def _with_new_words(self, caption: str) -> list[int]:
        """One row, cut between start and end."""
        start, end = start_and_end(self.tokenizer)
        inside, room = self.ids_of(caption), self.max_tokens - len(start) - len(end)
        if len(inside) > room:
            self.count_cut([(len(start) + len(inside) + len(end), caption)])
        return [*start, *inside[:room], *end]

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


def start_and_end(tokenizer: Any) -> tuple[list[int], list[int]]:
    """What the tokenizer puts before and after a text."""
    read = tokenizer("a", return_special_tokens_mask=True)
    ids, special = read["input_ids"], read["special_tokens_mask"]
    return ids[: special.index(0)], ids[len(ids) - special[::-1].index(0) :]


def check_captions(captions: Sequence[str]) -> None:
    if isinstance(captions, str) or not captions:
        raise ValueError(f"captions={captions!r}; pass a list of at least one string")
