"""How are the options of another library's config.json read, all that is wrong told at once?"""

from __future__ import annotations

import reprlib
from collections.abc import Iterable, Mapping
from typing import Any

Values = tuple[Any, ...]
CLASS = "_class_name"


class Options:
    """The options of a config.json; what is wrong with them gathers in `problems`.

    defaults: of the options that are read. What cannot be read is given out as a stand-in: raise
    before it is used.
    """

    def __init__(self, config: Mapping[str, Any], defaults: Mapping[str, Any]) -> None:
        self.given = config
        self.read = set(defaults)
        self.values = {**defaults, **config}
        self.problems: list[str] = []

    def refuse(self, class_name: str, fixed: Mapping[str, Values], ignored: set[str]) -> None:
        """Another class, fixed options of another value, unknown ones that may mean something.

        fixed: the values allowed, the first to be named. Names with _ are a writer's notes.
        """
        if self.given.get(CLASS, class_name) != class_name:
            self._say(CLASS, f"only {class_name} is built here")
        notes = {name for name in self.given if name.startswith("_")}
        known = self.read | ignored | notes
        for name, value in self.given.items():
            if name in fixed:
                if _one(value) not in fixed[name]:
                    self._say(name, f"only {fixed[name][0]!r} is built here")
            elif name not in known and value is not None and value is not False:
                self._say(name, "not known; remove it if it changes nothing in the network")

    def number(self, name: str) -> int:
        """A whole number, or a list of the same one for every level."""
        value = _one(self.values[name])
        return value if _is_whole(value) else self._say(name, "give one whole number", 1)

    def number_or_null(self, name: str) -> int | None:
        return None if _one(self.values[name]) is None else self.number(name)

    def numbers(self, name: str) -> tuple[int, ...]:
        """One whole number a level."""
        value = self.values[name]
        if isinstance(value, (list, tuple)) and all(map(_is_whole, value)):
            return tuple(value)
        return self._say(name, "give whole numbers, one a level", ())

    def per_level(self, name: str) -> int | tuple[int, ...]:
        """A whole number for all levels, or one a level."""
        value = self.values[name]
        return value if _is_whole(value) else self.numbers(name)

    def words(self, name: str, known: Iterable[str]) -> tuple[str, ...]:
        """Some of the known words, one a level."""
        value = self.values[name]
        if isinstance(value, (list, tuple)) and all(word in tuple(known) for word in value):
            return tuple(value)
        return self._say(name, f"give one of {', '.join(known)} a level", ())

    def flag(self, name: str) -> bool:
        """true or false; null, which converters of old files write, is false."""
        value = self.values[name]
        if value is None or isinstance(value, bool):
            return bool(value)
        return self._say(name, "give true or false", False)

    def real(self, name: str) -> float:
        value = self.values[name]
        if _is_whole(value) or isinstance(value, float):
            return float(value)
        return self._say(name, "give a number", 1.0)

    def _say(self, name: str, allowed: str, stand_in: Any = None) -> Any:
        self.problems.append(f"{name}={reprlib.repr(self.values[name])}; {allowed}")
        return stand_in


def _one(value: Any) -> Any:
    """The value, or what a list holds that is the same at every level."""
    if isinstance(value, (list, tuple)) and value and all(item == value[0] for item in value):
        return value[0]
    return value


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
