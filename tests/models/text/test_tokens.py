"""Captions become ids of a fixed length; what is cut is counted."""

from __future__ import annotations

import logging

import pytest
import torch
from transformers import CLIPTokenizer

from ldm.models.text.tokens import CaptionTokens

LONG = "a small red circle " * 20


def tokens_of(tokenizer: CLIPTokenizer, pad_id: int | None = None) -> CaptionTokens:
    pad = tokenizer.pad_token_id if pad_id is None else pad_id
    return CaptionTokens(tokenizer, max_tokens=16, pad_id=pad)


@pytest.mark.parametrize("pad_id", [None, 0])
def test_pads_fill_the_right_and_the_mask_is_false_there(tokenizer, pad_id):
    tokens = tokens_of(tokenizer, pad_id)(["a red star", "", "a large blue heart"])
    pad = tokenizer.pad_token_id if pad_id is None else pad_id
    for caption, ids, mask in zip(
        ["a red star", "", "a large blue heart"], tokens.ids, tokens.mask, strict=True
    ):
        own = tokenizer(caption)["input_ids"]
        assert ids.tolist() == own + [pad] * (16 - len(own))
        assert mask.tolist() == [True] * len(own) + [False] * (16 - len(own))


def test_same_ids_as_the_tokenizer_pads_and_cuts_itself(tokenizer, captions):
    rows = [*captions, LONG]
    expected = tokenizer(rows, padding="max_length", truncation=True, max_length=16)
    tokens = tokens_of(tokenizer)(rows)
    assert tokens.ids.tolist() == expected["input_ids"]
    assert tokens.mask.long().tolist() == expected["attention_mask"]


def test_cut_captions_keep_the_end_token_are_counted_and_logged_once(tokenizer, caplog):
    tokens = tokens_of(tokenizer)
    with caplog.at_level(logging.WARNING, logger="ldm.models.text.tokens"):
        first = tokens(["a red star", LONG, LONG])
        tokens([LONG])
    assert first.ids[1, -1] == tokenizer.eos_token_id
    assert tokens.truncated == 3
    assert len(caplog.records) == 1
    assert "to 16 tokens" in caplog.text


def test_a_caption_of_exactly_the_length_is_not_cut(tokenizer):
    tokens = tokens_of(tokenizer)
    result = tokens(["a " * 14])  # 14 words, a start and an end
    assert result.mask.all()
    assert tokens.truncated == 0


@pytest.mark.parametrize("captions", ["a red star", []])
def test_a_bare_string_or_nothing_is_refused(tokenizer, captions):
    with pytest.raises(ValueError, match="pass a list of at least one string"):
        tokens_of(tokenizer)(captions)


def test_hash_tells_vocabularies_pads_and_lengths_apart(tokenizer):
    hashes = {
        tokens_of(tokenizer).hash(),
        tokens_of(tokenizer, 0).hash(),
        CaptionTokens(tokenizer, max_tokens=8, pad_id=0).hash(),
    }
    assert len(hashes) == 3
    assert tokens_of(tokenizer).hash() == tokens_of(tokenizer).hash()


def test_ids_are_integers_for_an_embedding(tokenizer):
    assert tokens_of(tokenizer)(["a"]).ids.dtype == torch.int64
