"""Saved encoders that cannot come back, and the one without captions."""

from __future__ import annotations

import json

import pytest

from ldm.models.text.folder import load_text
from ldm.models.text.none import NoText


def test_without_captions_there_is_no_context(tmp_path):
    encoder = NoText()
    for cond in (encoder.encode(["a", "b"]), encoder.null(3)):
        assert (cond.context, cond.mask, cond.concat) == (None, None, None)
    assert (encoder.width, encoder.max_tokens, encoder.truncated) == (0, 0, 0)
    assert not list(encoder.module.parameters())
    with pytest.raises(ValueError, match="no text encoder to train"):
        encoder.unfreeze()


def test_no_text_is_saved_as_well(tmp_path):
    NoText().save(tmp_path / "text")
    assert isinstance(load_text(tmp_path / "text"), NoText)
    assert json.loads((tmp_path / "text" / "text.json").read_text()) == NoText().spec()


def test_a_card_wins_over_the_file(tmp_path):
    NoText().save(tmp_path)
    with pytest.raises(ValueError, match="kind='clap' is not known; known: clip, auto, bert, none"):
        load_text(tmp_path, {**NoText().spec(), "kind": "clap"})


def test_an_empty_folder_says_what_belongs_there(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"text\.json is missing: put the saved text enc"):
        load_text(tmp_path)
