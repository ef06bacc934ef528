"""How is a CLIP tokenizer given another pad, and written for every reader?"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from transformers import AddedToken, CLIPTokenizer


def as_a_word(tokenizer: CLIPTokenizer, token: str) -> CLIPTokenizer:
    """The tokenizer with `token` read in captions like any other text.

    SD 2 pads with "!" and its tokenizer therefore takes every "!" of a caption for a pad (id 0),
    where OpenCLIP reads the word "!" (id 256). CLIP's own end token stays what it is.
    """
    special = {tokenizer.bos_token, tokenizer.eos_token}
    if token in special or token not in tokenizer.get_added_vocab():
        return tokenizer
    return rebuilt(tokenizer, tokenizer.eos_token)


def rebuilt(tokenizer: CLIPTokenizer, pad_token: str) -> CLIPTokenizer:
    """The same merges and learnt extra tokens, with this pad and no other special word."""
    bpe = _bpe(tokenizer)
    fresh = CLIPTokenizer(
        vocab=bpe["vocab"],
        merges=bpe["merges"],
        unk_token=tokenizer.unk_token,
        bos_token=tokenizer.bos_token,
        eos_token=tokenizer.eos_token,
        pad_token=pad_token,
        model_max_length=tokenizer.model_max_length,
    )
    extra = [t for i, t in sorted(tokenizer.added_tokens_decoder.items()) if i >= len(bpe["vocab"])]
    fresh.add_tokens([AddedToken(t.content, normalized=False) for t in extra])
    return fresh


def save_everywhere(tokenizer: CLIPTokenizer, folder: Path) -> None:
    """tokenizer.json, and vocab.json with merges.txt for readers before transformers 5."""
    tokenizer.save_pretrained(folder)
    bpe = _bpe(tokenizer)
    (folder / "vocab.json").write_text(json.dumps(bpe["vocab"], ensure_ascii=False))
    lines = ["#version: 0.2", *(" ".join(pair) for pair in bpe["merges"])]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n")


def _bpe(tokenizer: CLIPTokenizer) -> dict[str, Any]:
    bpe = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    return {"vocab": bpe["vocab"], "merges": [tuple(pair) for pair in bpe["merges"]]}
