"""The byte-pair vocabulary that is learnt from captions."""

from __future__ import annotations

import itertools
from collections import Counter

import pytest
from transformers import AutoTokenizer, CLIPTokenizer, CLIPTokenizerFast

from ldm.models.text.tiny_tokenizer import (
    byte_symbols,
    count_words,
    learn_merges,
    merged,
    train_tokenizer,
)

UNSEEN = ["zebra crossing", "naïve Ünïcödé", "日本", "it's 42!", "🦓", ""]


def slow_merges(words: Counter[tuple[str, ...]], limit: int) -> list[tuple[str, str]]:
    """Sennrich et al. 2016, algorithm 1: count all pairs anew for every merge."""
    merges: list[tuple[str, str]] = []
    while len(merges) < limit:
        counts: Counter[tuple[str, str]] = Counter()
        for word, number in words.items():
            for pair in itertools.pairwise(word):
                counts[pair] += number
        if not counts or max(counts.values()) < 2:
            break
        best = min(counts, key=lambda pair: (-counts[pair], pair))
        merges.append(best)
        joined: Counter[tuple[str, ...]] = Counter()
        for word, number in words.items():
            joined[merged(word, best)] += number
        words = joined
    return merges


def test_merges_are_those_of_the_plain_algorithm(captions):
    words = count_words([*captions, "aaaa aaa banana bananas abababab"])
    merges = learn_merges(words, 1000)
    assert merges == slow_merges(words, 1000)
    assert len(merges) < 1000  # it ended by itself: what occurs once is not merged
    assert learn_merges(words, 20) == merges[:20]


def test_merged_joins_from_the_left():
    assert merged(("a", "a", "a", "b"), ("a", "a")) == ("aa", "a", "b")
    assert merged(("a", "b", "a", "b"), ("a", "b")) == ("ab", "ab")


def test_same_captions_give_the_same_file(captions, tmp_path):
    for name in ("one", "two"):
        train_tokenizer(captions, tmp_path / name, vocab_size=700)
    one, two = ((tmp_path / name / "tokenizer.json").read_bytes() for name in ("one", "two"))
    assert one == two


def test_ids_are_laid_out_as_in_clip(captions, tmp_path):
    tokenizer = train_tokenizer(captions, tmp_path, vocab_size=560)
    vocabulary = tokenizer.get_vocab()
    assert len(tokenizer) == 560
    assert sorted(vocabulary.values()) == list(range(560))
    assert (vocabulary["!"], vocabulary["!</w>"]) == (0, 256)
    assert [vocabulary[s] for s in byte_symbols()] == list(range(256))
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id) == (558, 559)
    assert tokenizer.pad_token_id == tokenizer.eos_token_id
    ids = tokenizer("a red star")["input_ids"]
    assert (ids[0], ids[-1]) == (558, 559)


@pytest.mark.parametrize("reader", [CLIPTokenizer, CLIPTokenizerFast, AutoTokenizer])
def test_the_folder_gives_the_same_ids(captions, tmp_path, reader):
    tokenizer = train_tokenizer(captions, tmp_path, vocab_size=700)
    again = reader.from_pretrained(tmp_path)
    assert again([*captions, *UNSEEN])["input_ids"] == tokenizer([*captions, *UNSEEN])["input_ids"]
    assert again.model_max_length == 24


def test_captions_can_be_read_back(captions, tmp_path):
    """Lower case and spaces aside, which CLIP does not keep."""
    tokenizer = train_tokenizer(captions, tmp_path, vocab_size=700)
    for caption in [*captions, *UNSEEN]:
        text = tokenizer.decode(tokenizer(caption)["input_ids"], skip_special_tokens=True)
        assert text.replace(" ", "") == caption.lower().replace(" ", "")


def test_frequent_words_become_one_token(captions, tmp_path):
    tokenizer = train_tokenizer(captions, tmp_path, vocab_size=700)
    for word in ("small", "purple", "triangle"):
        assert len(tokenizer(word)["input_ids"]) == 3  # start, word, end


def test_a_vocabulary_without_room_for_bytes_is_refused(captions, tmp_path):
    with pytest.raises(ValueError, match="vocab_size=513 is too small; use 514 or more"):
        train_tokenizer(captions, tmp_path, vocab_size=513)
