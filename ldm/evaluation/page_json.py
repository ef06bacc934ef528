"""Is a value that someone else wrote into a JSON file of the kind that it should be?"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

NUMBER = (int, float)
NOTHING = type(None)


@dataclass(frozen=True)
class Node:
    """A JSON object and where it stands, so that errors can say so."""

    value: dict[str, Any]
    where: str

    @classmethod
    def parse(cls, text: str, where: str) -> Node:
        """Raises ValueError for what is no JSON object."""
        try:
            value = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{where} cannot be read as JSON: {error}") from None
        return cls(_of_kind(value, (dict,), where), where)

    def get(self, key: str, *kinds: type) -> Any:
        """The value at key, of one of these kinds. A missing key is None."""
        return _of_kind(self.value.get(key), kinds, f"{self.where}: {key}")

    def node(self, key: str) -> Node:
        """The object at key; an empty one where there is none."""
        return Node(self.get(key, dict, NOTHING) or {}, f"{self.where}: {key}")

    def nodes(self, key: str) -> list[Node]:
        return [Node(_of_kind(one, (dict,), at), at) for at, one in self._each(key)]

    def numbers(self, key: str) -> list[float]:
        """null stands for NaN, which JSON does not have."""
        kinds = (*NUMBER, NOTHING)
        return [_float(_of_kind(one, kinds, at)) for at, one in self._each(key)]

    def texts(self, key: str) -> list[str]:
        return [_of_kind(one, (str,), at) for at, one in self._each(key)]

    def maybe(self, key: str) -> float | None:
        value = self.get(key, *NUMBER, NOTHING)
        return None if value is None else float(value)

    def text(self, key: str) -> str:
        return self.get(key, str, NOTHING) or ""

    def _each(self, key: str) -> list[tuple[str, Any]]:
        listed = self.get(key, list, NOTHING) or []
        return [(f"{self.where}: {key}[{i}]", one) for i, one in enumerate(listed)]


def inside(folder: Path, name: str) -> Path:
    """A file of the folder. Raises ValueError for a name that leads out of it."""
    path = folder / name
    if "\0" in name or not path.resolve().is_relative_to(folder.resolve()):
        raise ValueError(f"{folder} names {name!r}, which lies outside of it")
    return path


def _of_kind(value: Any, kinds: tuple[type, ...], where: str) -> Any:
    if isinstance(value, bool) or not isinstance(value, kinds):
        names = ["null" if kind is NOTHING else kind.__name__ for kind in kinds]
        raise ValueError(f"{where} is {value!r:.80}; give {' or '.join(names)}")
    return value


def _float(value: float | None) -> float:
    return math.nan if value is None else float(value)
