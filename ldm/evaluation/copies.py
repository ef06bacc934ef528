"""Which pictures of a set are copies of one another, and which are most like each one?

By small latents of a VAE (what copies have in common) and by a perceptual hash. N pictures, D
numbers each, M neighbours.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ldm import rng
from ldm.data.alike import Looks, alike

NEIGHBOURS = 8
_PAIRS = 10_000  # random ones that tell the usual distance
_BLOCK = 1 << 24  # distances at once: bounds the memory to some 100 MB


@dataclass(frozen=True, eq=False)
class Neighbours:
    """rows, distance [N,M]: the nearest others, the nearest first; distances are shares of the
    usual distance between two pictures of the set."""

    rows: Tensor
    distance: Tensor


@dataclass(frozen=True)
class Copies:
    """rows: of the pictures, the first ones first; distance: the largest from its first."""

    rows: tuple[int, ...]
    distance: float


def usual_distance(latents: Tensor) -> float:
    """The median distance between two pictures of the set. latents: [N,D], N of 2 or more."""
    one = rng.integers(0, "usual-distance", torch.arange(_PAIRS), len(latents))
    step = 1 + rng.integers(0, "usual-step", torch.arange(_PAIRS), len(latents) - 1)
    other = (one + step) % len(latents)
    return float((latents[one] - latents[other]).norm(dim=1).median())


def find_neighbours(
    latents: Tensor, *, count: int = NEIGHBOURS, device: torch.device | str = "cpu"
) -> Neighbours:
    """The nearest pictures of each, in N² D operations on `device`. latents: [N,D] float32."""
    count = min(count, len(latents) - 1)
    usual = usual_distance(latents) or 1.0  # all alike
    there = latents.to(device)
    found = []
    for start in range(0, len(there), size := max(1, _BLOCK // len(there))):
        part = there[start : start + size]
        # as differences: a copy is at distance 0, which a matrix product would round away
        distance = torch.cdist(part, there, compute_mode="donot_use_mm_for_euclid_dist")
        itself = torch.arange(len(part), device=device)
        distance[itself, itself + start] = torch.inf
        nearest = distance.topk(count, largest=False)
        found.append((nearest.indices.cpu(), nearest.values.cpu() / usual))
    rows, distances = (torch.cat(parts) for parts in zip(*found, strict=True))
    return Neighbours(rows, distances)


def find_copies(
    latents: Tensor, looks: Looks, neighbours: Neighbours, *, near: float
) -> list[Copies]:
    """Groups of pictures nearer than `near` shares of the usual distance, or twice that where the
    hashes also say that they look alike."""
    usual = usual_distance(latents) or 1.0
    close = (neighbours.distance <= near).nonzero().tolist()
    pairs = [(row, int(neighbours.rows[row, place])) for row, place in close]
    for first, *others in alike(looks):
        pairs += [(first, o) for o in others if _apart(latents, first, o) <= 2 * near * usual]
    groups: dict[int, set[int]] = {}
    for one, other in pairs:
        whole = groups.get(one, {one}) | groups.get(other, {other})
        groups.update(dict.fromkeys(whole, whole))
    unique = sorted({tuple(sorted(group)) for group in groups.values()})
    return [
        Copies(rows, max(_apart(latents, rows[0], other) for other in rows[1:]) / usual)
        for rows in unique
    ]


def _apart(latents: Tensor, one: int, other: int) -> float:
    return float((latents[one] - latents[other]).norm())
