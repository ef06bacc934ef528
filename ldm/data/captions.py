"""Which words go with a picture?"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from ldm.data.tags import Tags, Templates


class BadSampleError(ValueError):
    """A sample that cannot be used; another takes its position."""


_TXT = ".txt"


@dataclass(frozen=True, kw_only=True)
class Captions:
    """Where captions are, and how a visit varies them.

    key: the `.txt` member (None), a text member (`.long.txt`, beginning with a dot), a field of the
    `.json` member (`caption`), or a list of these; a field may hold a list itself. Each visit takes
    one of all the texts there are. optional: a sample without a caption gets "" instead of being
    unusable (unconditional training).
    """

    key: str | Sequence[str] | None = None
    optional: bool = False
    tags: Tags = field(default_factory=Tags)
    templates: Templates = field(default_factory=Templates)

    @property
    def names(self) -> tuple[str, ...]:
        """The members (with a dot) and fields that may hold a caption."""
        if self.key is None:
            return (_TXT,)
        return (self.key,) if isinstance(self.key, str) else tuple(self.key)

    @property
    def exts(self) -> tuple[str, ...]:
        """The members that may hold a caption."""
        members = [name[1:].lower() if name.startswith(".") else "json" for name in self.names]
        return tuple(dict.fromkeys(members))

    @property
    def varies(self) -> bool:
        """Whether visits write the same caption differently."""
        return self.tags.used or bool(self.templates.texts)

    def fixed(self) -> Captions:
        """For validation: tags as they are, the first template."""
        return replace(self, tags=Tags(), templates=Templates(self.templates.texts[:1]))

    def make(self, members: Mapping[str, bytes], u: float, *, seed: int, number: int) -> str:
        """The caption that sample `number` shows; u: uniform in [0, 1), picks one of several."""
        caption = self.tags.vary(self.choose(members, u), seed=seed, number=number)
        return self.templates.fill(caption, seed=seed, number=number)

    def choose(self, members: Mapping[str, bytes], u: float) -> str:
        """One of the captions of a sample as it is written; u: uniform in [0, 1)."""
        absent: list[str] = []
        found = [text for name in self.names for text in _texts(name, members, absent)]
        texts = [text for text in map(_clean, found) if text]
        if texts:
            return texts[int(u * len(texts))]
        if self.optional:
            return ""
        raise BadSampleError("the caption is empty" if found or not absent else "; ".join(absent))


def _texts(name: str, members: Mapping[str, bytes], absent: list[str]) -> Sequence[str]:
    """The texts under one name; where it is not there, `absent` is told why."""
    ext = name[1:].lower() if name.startswith(".") else "json"
    data = members.get(ext)
    if data is None:
        absent.append(f"no .{ext} member; there are {', '.join(sorted(members))}")
        return []
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise BadSampleError(f"the .{ext} member is not UTF-8: {error.reason}") from None
    if ext != "json":
        return [text]
    try:
        record = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise BadSampleError(f"the .json member is not JSON: {error}") from None
    if not isinstance(record, dict):
        raise BadSampleError(f"the .json member is a {type(record).__name__}, not an object")
    if record.get(name) is None:
        fields = ", ".join(sorted(record))
        absent.append(f"the .json member has no field {name!r}; it has {fields}")
        return []
    return _as_texts(name, record[name])


def _as_texts(key: str, value: object) -> Sequence[str]:
    values = value if isinstance(value, list) else [value]
    texts = [item for item in values if isinstance(item, str)]
    if len(texts) < len(values):
        raise BadSampleError(f"the json field {key!r} holds {value!r:.80}, not a text or texts")
    return texts


def _clean(text: str) -> str:
    """One line; a zero byte would end the text inside some tokenizers."""
    try:
        text.encode()
    except UnicodeEncodeError:  # json may escape half of a character, which no tokenizer takes
        raise BadSampleError("the caption holds half a character (a lone surrogate)") from None
    return " ".join(text.replace("\0", " ").split())
