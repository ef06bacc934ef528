"""Which adapters does a pipeline draw with, and how strongly?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from ldm.adapters.attach import Adapter, attach, detach
from ldm.io.adapted import introduce, withdraw
from ldm.models.text.base import TextEncoder

TRAINED = "trained"  # the name of those that a run trained and that came with its model


@dataclass(frozen=True)
class Attached:
    """One file's adapters, by `unet` and `text`; source: its path."""

    parts: Mapping[str, Adapter]
    strength: float
    source: str


class Adapters:
    """What is attached to a pipeline's networks, by name; `attach` and `detach` keep count."""

    def __init__(
        self, unet: nn.Module, text: TextEncoder, trained: Mapping[str, Adapter] | None = None
    ) -> None:
        self._text = text
        self._bases = {"unet": unet, "text": text.module}
        self._attached: dict[str, Attached] = {}
        if trained:
            self._attached[TRAINED] = Attached(trained, 1.0, "")

    def __iter__(self) -> Any:
        return iter(self._attached)

    def __len__(self) -> int:
        return len(self._attached)

    def __getitem__(self, name: str) -> Attached:
        if name not in self._attached:
            known = ", ".join(self._attached) or "none"
            raise ValueError(f"no adapter {name!r} is attached; attached are: {known}")
        return self._attached[name]

    def attach(
        self, parts: Mapping[str, Adapter], *, name: str, strength: float, source: str
    ) -> None:
        """Raises ValueError where they do not fit; then nothing is attached."""
        if name in self._attached:
            raise ValueError(f"an adapter {name!r} is attached already; give another name=")
        done: list[str] = []
        try:
            for part, adapter in parts.items():
                introduce(adapter, self._text)
                try:
                    device = next(self._bases[part].parameters()).device
                    adapter.to(device).eval().requires_grad_(False)
                    attach(self._bases[part], adapter, strength=strength)
                except ValueError:
                    withdraw(adapter, self._text)
                    raise
                done.append(part)
        except ValueError:
            for part in done:
                self._take_off(part, parts[part])
            raise
        self._attached[name] = Attached(dict(parts), strength, source)

    def detach(self, name: str) -> None:
        for part, adapter in self[name].parts.items():
            self._take_off(part, adapter)
        del self._attached[name]

    def _take_off(self, part: str, adapter: Adapter) -> None:
        detach(self._bases[part], adapter)
        withdraw(adapter, self._text)

    def set_strength(self, name: str, strength: float) -> None:
        entry = self[name]
        for adapter in entry.parts.values():
            adapter.set_strength(strength)
        self._attached[name] = replace(entry, strength=float(strength))

    def modules(self) -> list[nn.Module]:
        """All of them, for a fingerprint."""
        return [part for entry in self._attached.values() for part in entry.parts.values()]

    def strengths(self) -> dict[str, float]:
        return {name: entry.strength for name, entry in self._attached.items()}
