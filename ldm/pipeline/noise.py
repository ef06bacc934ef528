"""Which normals belong to a picture?

The start noise and the noise of every step are keyed by the picture's seed alone, so a picture is
the same in any batch, on any process.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ldm import rng
from ldm.pipeline.pictures import Between


@dataclass(frozen=True)
class Noise:
    """The normals of some pictures. shape: of one picture's latents, (C, h, w)."""

    seeds: Sequence[int | Between[int]]
    shape: tuple[int, ...]
    device: torch.device

    def start(self) -> Tensor:
        """[B,C,h,w]."""
        return self._draw(0, "start-noise")

    def step(self, key: int) -> Tensor:
        """[B,C,h,w]; key: the solver's own number of the draw."""
        return self._draw(key, "step-noise")

    def _draw(self, key: int, purpose: str) -> Tensor:
        first = [s.first if isinstance(s, Between) else s for s in self.seeds]
        noise = self._normals(key, purpose, first)
        if not any(isinstance(s, Between) for s in self.seeds):
            return noise
        last = [s.last if isinstance(s, Between) else s for s in self.seeds]
        weights = [s.weight if isinstance(s, Between) else 0.0 for s in self.seeds]
        return slerp(noise, self._normals(key, purpose, last), weights)

    def _normals(self, key: int, purpose: str, seeds: Sequence[int]) -> Tensor:
        index = [rng.fold(seed, "picture") for seed in seeds]
        return rng.normal(key, purpose, torch.tensor(index, device=self.device), self.shape)


def slerp(first: Tensor, last: Tensor, weights: Sequence[float]) -> Tensor:
    """Shoemake 1985: along the arc between two noises, so that the norm does not shrink.

    first, last: [B,...]; weights: one a row. Exactly first at 0 and last at 1, and where both are
    the same.
    """
    rows = [_on_arc(a, b, weight) for a, b, weight in zip(first, last, weights, strict=True)]
    return torch.stack(rows)


def _on_arc(first: Tensor, last: Tensor, weight: float) -> Tensor:
    if weight == 0 or torch.equal(first, last):
        return first
    if weight == 1:
        return last
    a, b = first.double(), last.double()
    cosine = (a * b).sum() / (a.norm() * b.norm())
    angle = cosine.clamp(-1, 1).arccos()
    parts = ((1 - weight) * angle).sin() * a, (weight * angle).sin() * b
    return torch.add(*parts).div(angle.sin()).to(first.dtype)
