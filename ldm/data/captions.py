"""Which words go with a picture?"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass


class BadSampleError(ValueError):
    """A sample that cannot be used; another takes its position."""


@dataclass(frozen=True, kw_only=True)
class Captions:
    """Where captions are: the `.txt` member, or with `key` that field of the `.json` member.

    A json field may hold a list: each visit then takes one of its texts. optional: a sample
    without a caption gets "" instead of being unusable (unconditional training).
    """

    key: str | None = None
    optional: bool = False

    @property
    def ext(self) -> str:
        """The member that holds the caption."""
        return "txt" if self.key is None else "json"

    def choose(self, members: Mapping[str, bytes], u: float) -> str:
        """The caption of a sample; u: uniform in [0, 1), picks one of several."""
        texts = [text for text in map(_clean, self._texts(members)) if text]
        if texts:
            return texts[int(u * len(texts))]
        if self.optional:
            return ""
        raise BadSampleError("the caption is empty")

    def _texts(self, members: Mapping[str, bytes]) -> Sequence[str]:
        data = members.get(self.ext)
        if data is None:
            return self._absent(f"no .{self.ext} member; there are {', '.join(sorted(members))}")
        try:
            text = data.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise BadSampleError(f"the .{self.ext} member is not UTF-8: {error.reason}") from None
        if self.key is None:
            return [text]
        try:
            record = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise BadSampleError(f"the .json member is not JSON: {error}") from None
        if not isinstance(record, dict):
            raise BadSampleError(f"the .json member is a {type(record).__name__}, not an object")
        if record.get(self.key) is None:
            fields = ", ".join(sorted(record))
            return self._absent(f"the .json member has no field {self.key!r}; it has {fields}")
        return _as_texts(self.key, record[self.key])

    def _absent(self, reason: str) -> Sequence[str]:
        if self.optional:
            return []
        raise BadSampleError(reason)


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
