"""Where does the caption of a picture file come from?"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from ldm.data.make.sample import Plain


class NoCaption(ValueError):
    """There is no caption for a picture, or it cannot be read."""


@dataclass(frozen=True)
class Caption:
    """A caption, and what else is known about the picture."""

    text: str
    meta: Mapping[str, Plain]


def beside(picture: Path, *, caption_key: str) -> Caption:
    """From <name>.txt, else from `caption_key` of <name>.json; the rest of the json is kept."""
    text_file, json_file = picture.with_suffix(".txt"), picture.with_suffix(".json")
    meta = dict(_record(json_file.read_bytes(), json_file.name)) if json_file.is_file() else {}
    named = meta.pop(caption_key, None)
    if text_file.is_file():
        return Caption(decoded(text_file.read_bytes(), text_file.name), meta)
    if isinstance(named, str):
        return Caption(named, meta)
    if json_file.is_file():
        raise NoCaption(f"{json_file.name} has no text {caption_key!r}; it has {sorted(meta)}")
    raise NoCaption(f"no caption: neither {text_file.name} nor {json_file.name} is there")


def mapping(path: Path, *, file_key: str, caption_key: str) -> dict[str, Caption]:
    """From a jsonl file: {"file_name": "cats/tom.jpg", "caption": "a cat"} a line."""
    found: dict[str, Caption] = {}
    for number, line in enumerate(decoded(path.read_bytes(), path.name).split("\n"), 1):
        if not line.strip():
            continue
        where = f"{path} line {number}"
        try:
            record = dict(_record(line.encode(), where))
        except NoCaption as error:
            raise ValueError(str(error)) from None
        name, text = record.pop(file_key, None), record.pop(caption_key, None)
        if not isinstance(name, str) or not isinstance(text, str):
            raise ValueError(
                f"{where} needs the texts {file_key!r} and {caption_key!r}; "
                f"it has {sorted(json.loads(line))}"
            )
        key = str(PurePosixPath(name))
        if key in found:
            raise ValueError(f"{where} names {name!r} a second time")
        found[key] = Caption(text, record)
    return found


def decoded(data: bytes, name: str) -> str:
    """UTF-8 text as it is, without a byte order mark and the newline at the end of the file."""
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise NoCaption(f"{name} is not UTF-8 ({error.reason} at byte {error.start})") from None
    return text.removesuffix("\n").removesuffix("\r")


def _record(data: bytes, name: str) -> Mapping[str, Plain]:
    try:
        record = json.loads(data, parse_constant=lambda _: None)  # NaN is no JSON
    except ValueError as error:
        raise NoCaption(f"{name} is not JSON: {error}") from None
    if not isinstance(record, dict):
        raise NoCaption(f"{name} holds a {type(record).__name__}, not an object with keys")
    return record
