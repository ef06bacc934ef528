"""Which pictures need not be decoded at every visit?"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Hashable
from dataclasses import replace

from ldm.data.transforms import Shown


class Kept:
    """The pictures that this process has decoded and cut, by the bytes of their files.

    It takes all, so it is for data that fit into memory (see ldm.data.source). Equal bytes make
    equal pictures: nothing of a batch tells whether they came from here.
    """

    def __init__(self) -> None:
        self._shown: dict[tuple[bytes, Hashable], Shown] = {}

    def __len__(self) -> int:
        return len(self._shown)

    def get(self, data: bytes, how: Hashable, make: Callable[[], Shown]) -> Shown:
        """What `make` makes of the file `data`; how: whatever else it depends on. What it raises
        is raised at every visit."""
        name = (hashlib.blake2b(data, digest_size=16).digest(), how)
        found = self._shown.get(name)
        if found is None:
            made = make()
            pixels = made.pixels.copy()  # not the larger picture that it is a view of
            pixels.flags.writeable = False
            found = self._shown[name] = replace(made, pixels=pixels)
        return found
