"""Which tokenizers come with the project, for weights that arrive without one?

A single-file checkpoint holds no tokenizer; CLIP's and BERT's are always the same, so they are
packaged (ldm/assets/vocabularies) and nothing is downloaded.
"""

from __future__ import annotations

import gzip
import json
from functools import cache
from pathlib import Path

from transformers import BertTokenizer, CLIPTokenizer

FOLDER = Path(__file__).parents[2] / "assets" / "vocabularies"
CLIP_SIZE, BERT_SIZE = 49408, 30522
START, END = "<|startoftext|>", "<|endoftext|>"
WORD_END = "</w>"
SPECIALS = ("unk_token", "bos_token", "eos_token", "pad_token")


def clip_tokenizer(pad_token: str = END, max_tokens: int = 77) -> CLIPTokenizer:
    """CLIP's own: 49,408 tokens, ids as in Radford et al. 2021's code (start 49406, end 49407)."""
    return CLIPTokenizer(
        vocab=dict(_clip_vocabulary()),
        merges=list(_clip_merges()),
        unk_token=END,
        bos_token=START,
        eos_token=END,
        pad_token=pad_token,
        model_max_length=max_tokens,
    )


def bert_tokenizer(max_tokens: int = 77) -> BertTokenizer:
    """BERT base uncased: 30,522 word pieces."""
    words = _lines("bert_uncased.txt.gz")
    vocabulary = {word: i for i, word in enumerate(words)}
    return BertTokenizer(vocab=vocabulary, do_lower_case=True, model_max_length=max_tokens)


def from_folder(folder: Path) -> CLIPTokenizer:
    """The CLIP tokenizer in a folder. Raises FileNotFoundError naming the files it needs."""
    if not any((folder / name).exists() for name in ("tokenizer.json", "vocab.json")):
        raise FileNotFoundError(
            f"{folder} holds no tokenizer: put tokenizer.json, or vocab.json and merges.txt, there"
        )
    return CLIPTokenizer.from_pretrained(folder)


def written(tokenizer: CLIPTokenizer) -> str:
    """A CLIP tokenizer as one JSON text, to lie in a file's metadata; see `read`."""
    bpe = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    specials = {name: getattr(tokenizer, name) for name in SPECIALS}
    merges = [list(pair) for pair in bpe["merges"]]
    length = tokenizer.model_max_length
    fields = {"vocab": bpe["vocab"], "merges": merges, **specials, "model_max_length": length}
    return json.dumps(fields, ensure_ascii=False)


def read(text: str) -> CLIPTokenizer:
    """The tokenizer that `written` wrote. Raises ValueError for another text."""
    try:
        fields = json.loads(text)
        merges = [tuple(map(str, pair)) for pair in fields.pop("merges")]
        vocabulary = {str(word): int(i) for word, i in fields.pop("vocab").items()}
        length = int(fields.pop("model_max_length"))
        specials = {name: str(fields[name]) for name in SPECIALS}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"no tokenizer in this text: {error}") from error
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=length, **specials)


@cache
def _clip_merges() -> tuple[tuple[str, str], ...]:
    pairs = (line.split() for line in _lines("clip_merges.txt.gz"))
    return tuple((first, second) for first, second in pairs)


@cache
def _clip_vocabulary() -> tuple[tuple[str, int], ...]:
    """Bytes, bytes that end a word, merges in their order, the two specials."""
    letters = _byte_letters()
    words = [*letters, *(letter + WORD_END for letter in letters)]
    words += ["".join(pair) for pair in _clip_merges()]
    return tuple((word, i) for i, word in enumerate([*words, START, END]))


def _byte_letters() -> list[str]:
    """A printable letter for each byte: itself where it is printable, else from 256 on."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return [chr(byte) for byte in printable] + [chr(256 + n) for n in range(len(others))]


def _lines(name: str) -> list[str]:
    with gzip.open(FOLDER / name, "rt", encoding="utf-8", newline="\n") as file:
        return file.read().rstrip("\n").split("\n")
