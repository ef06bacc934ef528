"""How do weighted prompts of any length become rows for an encoder, and their weights act?

n rows, k chunks a prompt, L tokens, D context width.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from operator import itemgetter
from typing import Any

import torch
from torch import Tensor

from ldm.models.text.prompts import MAX_WEIGHT, Piece, Section, parse_prompts
from ldm.models.text.tokens import CaptionTokens, Tokens, check_captions, start_and_end

Weighted = list[tuple[int, float]]  # token ids and their weights, without start, end and pads


def split_prompts(
    prompts: Sequence[str], tokens: CaptionTokens, *, weighting: bool, chunked: bool
) -> list[list[Weighted]]:
    """The chunks of each prompt. weighting False: every character is text.

    A chunk holds what is between start and end token; a word begins the next chunk if it does not
    fit into the rest of this one. chunked False: one chunk a prompt, BREAK is an error.
    """
    check_captions(prompts)
    parsed = parse_prompts(prompts) if weighting else [[[Piece(text)]] for text in prompts]
    if not chunked:
        many = [row for row, sections in enumerate(parsed) if len(sections) > 1]
        if many:
            raise ValueError(
                f"BREAK in prompts {many}: this text encoder reads a prompt as one piece of up to "
                f"{tokens.max_tokens} tokens; take BREAK out, or turn weighting off"
            )
        return [[[t for word in _words(row, tokens) for t in word]] for (row,) in parsed]
    start, end = start_and_end(tokens.tokenizer)
    room = tokens.max_tokens - len(start) - len(end)
    if room < 1:
        raise ValueError(f"max_tokens={tokens.max_tokens} leaves a prompt no room; use 3 or more")
    return [
        [
            chunk
            for section in sections
            for chunk in cut_between_words(_words(section, tokens), room)
        ]
        for sections in parsed
    ]


def cut_between_words(words: Iterable[Weighted], room: int) -> list[Weighted]:
    """Chunks of up to `room` tokens, at least one; only a word longer than that is cut."""
    chunks: list[Weighted] = [[]]
    for word in words:
        if chunks[-1] and len(chunks[-1]) + len(word) > room:
            chunks.append([])
        chunks[-1] += word
        while len(chunks[-1]) > room:
            chunks[-1:] = [chunks[-1][:room], chunks[-1][room:]]
    return chunks


def _words(section: Section, tokens: CaptionTokens) -> Iterator[Weighted]:
    """Every piece is read alone, so a bracket inside a word makes two words of it."""
    for piece in section:
        # SentencePiece would give the blank at a bracket a token of its own.
        text = piece.text.strip() if len(section) > 1 else piece.text
        for part in tokens.pieces(text):
            if isinstance(part, str):
                yield from _read(part, piece.weight, tokens.tokenizer)
            else:  # a new word
                yield [(i, piece.weight) for i in part]


def _read(text: str, weight: float, tokenizer: Any) -> Iterator[Weighted]:
    read = tokenizer(text, add_special_tokens=False, verbose=False)
    ids = read["input_ids"]
    # A tokenizer written in Python does not say what a word is: each token is one.
    owners = read.word_ids() if read.is_fast else range(len(ids))
    for _, word in groupby(zip(owners, ids, strict=True), key=itemgetter(0)):
        yield [(i, weight) for _, i in word]


def framed(
    rows: Sequence[Weighted], captions: Sequence[str], tokens: CaptionTokens
) -> tuple[Tokens, Tensor]:
    """Rows with start, end and pads: ids [n,L] and weights [n,L], 1 on those three.

    captions: what each row stems from; rows that are too long are cut, and counted with it.
    """
    start, end = start_and_end(tokens.tokenizer)
    room = tokens.max_tokens - len(start) - len(end)
    tokens.count_cut(
        [
            (len(start) + len(row) + len(end), caption)
            for row, caption in zip(rows, captions, strict=True)
            if len(row) > room
        ]
    )
    weights = torch.ones(len(rows), tokens.max_tokens)
    for i, row in enumerate(rows):
        inside = [weight for _, weight in row[:room]]
        weights[i, len(start) : len(start) + len(inside)] = torch.tensor(inside)
    return tokens.padded([[*start, *(i for i, _ in row[:room]), *end] for row in rows]), weights


def emphasised(context: Tensor, weights: Tensor, seen: Tensor | None = None) -> Tensor:
    """Automatic1111's emphasis: z' = w z mean(z) / mean(w z), the means over each row's L and D.

    context [n,L,D] fp32, weights [n,L], seen [n,L] bool: what cross-attention sees (None: all).

    If all tokens' means have one sign, mean(w z) / mean(z) is an average of the weights and lies
    between them. Where those means cancel it is noise (in a small CLIP of mean 1e-4 it came out as
    -1), so it is kept between the smallest and the largest weight.
    """
    scaled = context * weights[..., None]
    before, after = (
        (z if seen is None else z * seen[..., None]).sum((1, 2)) for z in (context, scaled)
    )
    low = weights.amin(1).clamp(min=1 / MAX_WEIGHT)  # start, end and pads have 1: low <= 1 <= high
    change = (after / before).nan_to_num(nan=1.0).clamp(low, weights.amax(1))  # [n]
    return scaled / change[:, None, None]
