"""How are averaged weights kept?"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True, kw_only=True)
class EMASettings:
    """half_life: samples after which a weight's past counts half; None trains without EMA."""

    half_life: float | None

    def problems(self) -> list[str]:
        if self.half_life is not None and self.half_life <= 0:
            return [f"training.ema.half_life={self.half_life}; above 0 samples, or null for none"]
        return []


class EMA:
    """fp32 shadows of whatever is trainable, averaged in units of samples.

    After a step of n samples: shadow += (1 - d)(weight - shadow) with d = 2^(-n / half_life);
    early on d is at most (1 + k)/(10 + k) after k steps, so that the start is forgotten.
    The caller steps it once per optimiser step, never per micro-batch.
    """

    def __init__(self, parameters: Iterable[tuple[str, nn.Parameter]], *, half_life: float) -> None:
        """parameters: (name, parameter) pairs; half_life: samples, > 0."""
        if half_life <= 0:
            raise ValueError(f"half_life={half_life} samples; it must be above 0")
        self.half_life = half_life
        self.steps = 0
        self._parameters = {name: p for name, p in parameters if p.requires_grad}
        self.shadows = {n: p.detach().clone().float() for n, p in self._parameters.items()}

    def decay(self, samples: int) -> float:
        """The decay of the next step when it has seen `samples` samples."""
        ramp = (1 + self.steps) / (10 + self.steps)
        return float(min(2.0 ** (-samples / self.half_life), ramp))

    @torch.no_grad()
    def update(self, samples: int) -> None:
        """Averages the present weights in, after an optimiser step over `samples` samples."""
        weight = 1.0 - self.decay(samples)
        # most are fp32 already: a view and a cast of each took a seventh of the time of all this
        present = [p if p.dtype == torch.float32 else p.float() for p in self._parameters.values()]
        torch._foreach_lerp_(list(self.shadows.values()), present, weight)
        self.steps += 1

    @contextmanager
    def swapped(self) -> Iterator[None]:
        """Inside, the parameters hold the averaged weights; storage is exchanged, not copied."""
        raw = {name: p.data for name, p in self._parameters.items()}
        try:
            for name, parameter in self._parameters.items():
                parameter.data = self.shadows[name].to(parameter.dtype)
            yield
        finally:
            for name, parameter in self._parameters.items():
                parameter.data = raw[name]

    def to(self, device: torch.device | str) -> None:
        """Moves the shadows to the device of the training."""
        self.shadows = {name: value.to(device) for name, value in self.shadows.items()}

    def state_dict(self) -> dict[str, int | float | dict[str, Tensor]]:
        return {"steps": self.steps, "half_life": self.half_life, "shadows": dict(self.shadows)}

    def load_state_dict(self, state: dict[str, object]) -> None:
        """Strict. Raises ValueError when the names differ."""
        shadows = state["shadows"]
        assert isinstance(shadows, dict)
        assert isinstance(state["steps"], int)
        if shadows.keys() != self.shadows.keys():
            odd = sorted(shadows.keys() ^ self.shadows.keys())
            raise ValueError(f"EMA of other weights: {len(odd)} names differ, first {odd[:3]}")
        for name, value in shadows.items():
            self.shadows[name].copy_(value)
        self.steps = state["steps"]
