"""What does a source of captioned pictures hand to the shard writer?"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from PIL import Image

Plain = None | bool | int | float | str | list["Plain"] | dict[str, "Plain"]


@dataclass(frozen=True)
class Sample:
    """One captioned picture.

    name: where it comes from, also seen in the key in the tar; image: the bytes of a picture file
    as they are, or a drawn picture; meta: what goes into the .json member.
    """

    name: str
    image: bytes | Image.Image
    caption: str
    meta: Mapping[str, Plain] = field(default_factory=dict)


@dataclass(frozen=True)
class LeftOut:
    """An item that cannot become a sample, and why."""

    name: str
    reason: str


class Source(Protocol):
    """Captioned pictures in a fixed order."""

    def __len__(self) -> int:
        """How many items there are, those that will be left out included."""

    def items(self, start: int = 0) -> Iterator[Sample | LeftOut]:
        """Items start, start + 1, … : the same ones whenever it is called."""

    def spec(self) -> dict[str, Plain]:
        """What decides the content, as plain data: kept in index.json, compared when resuming."""
