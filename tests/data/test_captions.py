"""Is the caption the one that was asked for, and is a bad one refused?"""

from __future__ import annotations

import json

import pytest

from ldm.data.captions import BadSampleError, Captions


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
