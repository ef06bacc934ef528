"""How is a choice of the objective written into a card, and read back?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from difflib import get_close_matches
from typing import Any, ClassVar, TypeVar

Plain = bool | int | float | str
T = TypeVar("T", bound="Named")


class Named:
    """A frozen dataclass of plain fields, known by its name in a table."""

    name: ClassVar[str]

    def spec(self) -> dict[str, Plain]:
        """Name and fields as plain values, for `from_spec`."""
        names = [f.name for f in fields(self)]  # type: ignore[arg-type]
        return {"name": self.name, **{name: getattr(self, name) for name in names}}


def table(*classes: type[T]) -> dict[str, type[T]]:
    """The classes by name."""
    return {cls.name: cls for cls in classes}


def from_spec(known: Mapping[str, type[T]], spec: Mapping[str, Any], kind: str) -> T:
    """The value that `spec()` described; a field that is absent takes its default."""
    arguments = dict(spec)
    name = arguments.pop("name", None)
    if name not in known:
        raise ValueError(f"{kind} {name!r} is unknown; known: {listed(name, known)}")
    cls = known[name]
    allowed = [f.name for f in fields(cls)]  # type: ignore[arg-type]
    wrong = sorted(set(arguments) - set(allowed))
    if wrong:
        raise ValueError(
            f"{kind} {name!r} has no field {', '.join(wrong)}; its fields: {', '.join(allowed)}"
        )
    return cls(**arguments)


def listed(name: object, known: Mapping[str, object]) -> str:
    """The known names, nearest to `name` first."""
    near = get_close_matches(str(name), known, n=3, cutoff=0.5)
    return ", ".join([*near, *(other for other in known if other not in near)])
