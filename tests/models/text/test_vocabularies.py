"""Are the packaged tokenizers CLIP's and BERT's, id for id?"""

from __future__ import annotations

import pytest

from ldm.models.text import vocabularies
from ldm.models.text.clip_tokenizer import save_everywhere
from ldm.models.text.tokens import CaptionTokens


@pytest.mark.parametrize(
    ("caption", "ids"),
    [  # published examples of CLIP's ids
        ("a photo of a cat", [320, 1125, 539, 320, 2368]),
        ("A  Photo of a CAT", [320, 1125, 539, 320, 2368]),
        ("a diagram", [320, 22697]),
        ("a dog", [320, 1929]),
        ("hello world!", [3306, 1002, 256]),
        ("", []),
    ],
)
def test_clip(caption: str, ids: list[int]) -> None:
    tokenizer = vocabularies.clip_tokenizer()
    assert len(tokenizer) == vocabularies.CLIP_SIZE == 49408
    assert tokenizer(caption)["input_ids"] == [49406, *ids, 49407]
    assert tokenizer.pad_token_id == 49407


def test_every_byte_is_a_token() -> None:
    """No caption is unknown: bytes that are no letters become tokens too."""
    tokenizer = vocabularies.clip_tokenizer()
    letters = vocabularies._byte_letters()
    assert len(set(letters)) == 256
    assert tokenizer.convert_tokens_to_ids(letters) == list(range(256))
    assert len(tokenizer("猫 🐈 \u0007")["input_ids"]) > 4


def test_bert() -> None:
    tokenizer = vocabularies.bert_tokenizer()
    assert len(tokenizer) == vocabularies.BERT_SIZE == 30522
    ids = [101, 1037, 6302, 1997, 1037, 4937, 102]
    assert tokenizer("A photo of a CAT")["input_ids"] == ids
    assert tokenizer.pad_token_id == 0


def test_a_tokenizer_travels_as_text() -> None:
    first = vocabularies.clip_tokenizer(pad_token="!", max_tokens=20)
    again = vocabularies.read(vocabularies.written(first))
    assert (again.pad_token, again.model_max_length) == ("!", 20)
    captions = ["a photo of a cat!", "zwölf Boxkämpfer", ""]
    assert again(captions)["input_ids"] == first(captions)["input_ids"]
    hashes = {CaptionTokens(t, max_tokens=20, pad_id=0).hash() for t in (first, again)}
    assert len(hashes) == 1


@pytest.mark.parametrize("text", ["", "{", "[]", '{"vocab": {}}', '{"vocab": 1, "merges": []}'])
def test_another_text_is_no_tokenizer(text: str) -> None:
    with pytest.raises(ValueError, match="no tokenizer in this text"):
        vocabularies.read(text)


def test_a_folder(tmp_path) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(FileNotFoundError, match=r"vocab\.json and merges\.txt"):
        vocabularies.from_folder(tmp_path)
    save_everywhere(vocabularies.clip_tokenizer(), tmp_path)
    found = vocabularies.from_folder(tmp_path)
    assert found("a dog")["input_ids"] == [49406, 320, 1929, 49407]
