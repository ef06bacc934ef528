"""How is a small CLIP-style vocabulary learnt from captions?

Sennrich et al. 2016: byte-pair encoding; over bytes as in GPT-2, with `</w>` at word ends as in
CLIP. Written out here because the trainer of the tokenizers library breaks ties by hash order:
two runs on the same captions gave different merges.
"""

from __future__ import annotations

import heapq
from collections import Counter, defaultdict
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path
from typing import Any

from transformers import CLIPTokenizer

WORD_END = "</w>"
BOS, EOS = "<|startoftext|>", "<|endoftext|>"

Symbols = tuple[str, ...]
Pair = tuple[str, str]


def train_tokenizer(
    captions: Iterable[str], folder: Path, vocab_size: int = 4096, max_tokens: int = 24
) -> CLIPTokenizer:
    """A CLIPTokenizer with the most frequent merges of `captions`, saved into `folder`.

    Ids as in CLIP: 256 bytes, 256 bytes that end a word, merges, start, end; so any text can be
    written. Pairs seen once are not merged: the vocabulary may stay below `vocab_size`.
    """
    alphabet = byte_symbols()
    fixed = [*alphabet, *(symbol + WORD_END for symbol in alphabet)]
    room = vocab_size - len(fixed) - 2
    if room < 0:
        raise ValueError(f"vocab_size={vocab_size} is too small; use {len(fixed) + 2} or more")
    merges: Any = learn_merges(count_words(captions), room)
    # Two merges may spell the same symbol (ab+c, a+bc): one id for both.
    symbols = dict.fromkeys([*fixed, *(first + second for first, second in merges), BOS, EOS])
    tokenizer = CLIPTokenizer(
        vocab={symbol: i for i, symbol in enumerate(symbols)},
        merges=merges,
        model_max_length=max_tokens,
    )
    tokenizer.save_pretrained(folder)
    return tokenizer


def byte_symbols() -> list[str]:
    """One printable character for each byte, in CLIP's order: visible ones stand for themselves."""
    visible = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1)]
    visible += range(ord("®"), ord("ÿ") + 1)
    return [chr(byte) for byte in visible] + [chr(256 + i) for i in range(256 - len(visible))]


def count_words(captions: Iterable[str]) -> Counter[Symbols]:
    """How often each word occurs, spelt in byte symbols, split exactly as CLIPTokenizer splits."""
    pipeline = CLIPTokenizer().backend_tokenizer
    words: Counter[Symbols] = Counter()
    for caption in captions:
        text = pipeline.normalizer.normalize_str(caption)
        for word, _ in pipeline.pre_tokenizer.pre_tokenize_str(text):
            words[(*word[:-1], word[-1] + WORD_END)] += 1
    return words


def learn_merges(words: Counter[Symbols], limit: int) -> list[Pair]:
    """The `limit` most frequent merges, one after the other; ties in alphabetical order."""
    spelling = list(words)
    counts: Counter[Pair] = Counter()
    places: defaultdict[Pair, set[int]] = defaultdict(set)  # words that a pair may occur in
    for i, word in enumerate(spelling):
        for pair in pairwise(word):
            counts[pair] += words[word]
            places[pair].add(i)
    numbers = list(words.values())
    heap = [(-count, pair) for pair, count in counts.items()]
    heapq.heapify(heap)
    merges: list[Pair] = []
    while heap and len(merges) < limit:
        count, best = heapq.heappop(heap)
        if -count != counts[best]:
            continue  # an older count of this pair; the newer one is in the heap as well
        if -count < 2:
            break
        merges.append(best)
        changed: set[Pair] = set()
        for i in sorted(places[best]):
            before, after = spelling[i], merged(spelling[i], best)
            for pair in pairwise(before):
                counts[pair] -= numbers[i]
            for pair in pairwise(after):
                counts[pair] += numbers[i]
                places[pair].add(i)
            changed |= {*pairwise(before), *pairwise(after)}
            spelling[i] = after
        for pair in changed:
            if counts[pair] > 0:
                heapq.heappush(heap, (-counts[pair], pair))
    return merges


def merged(word: Symbols, pair: Pair) -> Symbols:
    """The word with every occurrence of the pair joined, from the left."""
    joined: list[str] = []
    i = 0
    while i < len(word):
        if word[i : i + 2] == pair:
            joined.append(word[i] + word[i + 1])
            i += 2
        else:
            joined.append(word[i])
            i += 1
    return tuple(joined)
