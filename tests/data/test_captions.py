"""Is the caption the one that was asked for, and is a bad one refused?"""

from __future__ import annotations

import json
import re

import pytest

from ldm.data.captions import BadSampleError, Captions
from ldm.data.tags import Tags, Templates


def test_text_member() -> None:
    members = {"png": b"", "txt": "\ufeff  a “red”\n\tcircle\r\n".encode()}
    assert Captions().choose(members, 0.0) == "a “red” circle"


def test_json_field() -> None:
    record = {"caption": "one", "long": ["a", "b", " ", "c"]}
    members = {"txt": b"not this", "json": json.dumps(record).encode()}
    assert Captions(key="caption").choose(members, 0.9) == "one"
    chosen = [Captions(key="long").choose(members, u) for u in (0.0, 0.33, 0.34, 0.67, 0.999)]
    assert chosen == ["a", "a", "b", "c", "c"]


@pytest.mark.parametrize(
    ("captions", "members", "said"),
    [
        (Captions(), {"txt": b" \n\0"}, "empty"),
        (Captions(), {"txt": b"caf\xe9"}, "not UTF-8"),
        (Captions(), {"png": b"", "json": b"{}"}, "no .txt member; there are json, png"),
        (Captions(key="c"), {"txt": b"x"}, "no .json member; there are txt"),
        (Captions(key="c"), {"json": b"{"}, "not JSON"),
        (Captions(key="c"), {"json": b"[" * 100_000}, "not JSON"),
        (Captions(key="c"), {"json": b"[1]"}, "is a list, not an object"),
        (Captions(key="c"), {"json": b'{"d": 1, "b": 2}'}, "no field 'c'; it has b, d"),
        (Captions(key="c"), {"json": b'{"c": 5}'}, "holds 5"),
        (Captions(key="c"), {"json": b'{"c": ["a", null]}'}, "not a text or texts"),
        (Captions(key="c"), {"json": b'{"c": []}'}, "empty"),
        (Captions(key="c"), {"json": b'{"c": "\\ud83d"}'}, "half a character"),
    ],
)
def test_bad_captions_say_what_is_wrong(
    captions: Captions, members: dict[str, bytes], said: str
) -> None:
    with pytest.raises(BadSampleError) as caught:
        captions.choose(members, 0.0)
    assert said in str(caught.value)


@pytest.mark.parametrize("members", [{}, {"txt": b""}, {"txt": b" "}])
def test_optional_captions_may_be_absent(members: dict[str, bytes]) -> None:
    assert Captions(optional=True).choose(members, 0.5) == ""


def test_optional_captions_are_still_read() -> None:
    assert Captions(optional=True).choose({"txt": b"x"}, 0.5) == "x"
    assert Captions(key="c", optional=True).choose({"json": b'{"d": 1}'}, 0.5) == ""
    with pytest.raises(BadSampleError, match="not UTF-8"):
        Captions(optional=True).choose({"txt": b"\xff"}, 0.5)


# -- several places -------------------------------------------------------------------------------

MANY = {
    "txt": b"short",
    "long.txt": b"a long one",
    "json": json.dumps({"alt": "alt text", "blip": ["b1", "b2"], "none": None}).encode(),
}


def all_of(captions: Captions, members: dict[str, bytes]) -> list[str]:
    return list(dict.fromkeys(captions.choose(members, n / 1000) for n in range(1000)))


@pytest.mark.parametrize(
    ("key", "found"),
    [
        (".long.txt", ["a long one"]),
        ([".txt", ".long.txt"], ["short", "a long one"]),
        (["blip", ".txt", "alt"], ["b1", "b2", "short", "alt text"]),
        (["none", "absent", ".other.txt", "alt"], ["alt text"]),  # those that are there
        ([".LONG.txt"], ["a long one"]),  # extensions are kept in lower case
    ],
)
def test_each_visit_takes_one_of_all_texts(key: str | list[str], found: list[str]) -> None:
    assert all_of(Captions(key=key), MANY) == found


def test_all_texts_are_equally_likely() -> None:
    captions = Captions(key=["blip", ".txt", "alt"])
    chosen = [captions.choose(MANY, n / 1000) for n in range(1000)]
    assert [chosen.count(text) for text in ("b1", "b2", "short", "alt text")] == [250] * 4


def test_what_members_are_needed() -> None:
    assert Captions().exts == ("txt",)
    assert Captions(key="a").exts == ("json",)
    assert Captions(key=["a", ".Long.txt", "b", ".txt"]).exts == ("json", "long.txt", "txt")


def test_none_of_several_says_all_that_is_missing() -> None:
    with pytest.raises(BadSampleError) as caught:
        Captions(key=[".txt", "c"]).choose({"json": b'{"d": 1}'}, 0.0)
    assert str(caught.value) == (
        "no .txt member; there are json; the .json member has no field 'c'; it has d"
    )
    assert Captions(key=[".txt", "c"], optional=True).choose({"json": b"{}"}, 0.0) == ""
    with pytest.raises(BadSampleError, match="empty"):
        Captions(key=[".txt", "c"]).choose({"txt": b" ", "json": b"{}"}, 0.0)


def test_tags_then_template() -> None:
    captions = Captions(
        tags=Tags(shuffle=True, keep_first=1), templates=Templates(("a photo of {}", "{}, art"))
    )
    members = {"txt": b"cat, red, big, old"}
    made = [captions.make(members, 0.0, seed=0, number=n) for n in range(100)]
    assert all(re.fullmatch(r"a photo of cat, .*|cat, .*, art", text) for text in made)
    assert len(set(made)) == 12
    assert captions.make(members, 0.0, seed=0, number=50) == made[50]
    assert captions.make(members, 0.0, seed=1, number=50) in made
    fixed = captions.fixed()
    assert {fixed.make(members, 0.0, seed=0, number=n) for n in range(20)} == {
        "a photo of cat, red, big, old"
    }
