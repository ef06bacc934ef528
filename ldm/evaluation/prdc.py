"""Are the samples like the references, and are all kinds of references among the samples?

Balls around pictures, as wide as to their k-th nearest neighbour of the same set, stand for where
a set of pictures is. N references, M samples, D feature width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ldm.evaluation.statistics import Features, check_pair

_PAIRS = 1 << 22  # distances at once: 32 MB


@dataclass(frozen=True)
class PrecisionRecall:
    """precision: share of samples among the references; recall: of references among samples."""

    precision: float
    recall: float
    neighbours: int
    n_reference: int
    n_samples: int

    def __str__(self) -> str:
        return (
            f"precision {self.precision:.3f}, recall {self.recall:.3f} (k={self.neighbours}; "
            f"{self.n_samples} samples, {self.n_reference} references)"
        )


@dataclass(frozen=True)
class DensityCoverage:
    """density: how many references' balls hold a sample, over k (may exceed 1); coverage: the
    share of references with a sample in their ball."""

    density: float
    coverage: float
    neighbours: int
    n_reference: int
    n_samples: int

    def __str__(self) -> str:
        return (
            f"density {self.density:.3f}, coverage {self.coverage:.3f} (k={self.neighbours}; "
            f"{self.n_samples} samples, {self.n_reference} references)"
        )


def precision_recall(
    reference: Features, samples: Features, *, neighbours: int = 3
) -> PrecisionRecall:
    """Kynkäänniemi et al. 2019, eq. 1 to 3; balls are closed (≤), k=3 as in their section 3."""
    _check(reference, samples, neighbours)
    first, second = reference.values.double(), samples.values.double()
    own, other = radii(first, neighbours), radii(second, neighbours)
    precise = torch.zeros(len(second), dtype=torch.bool, device=second.device)
    recalled = []
    for rows, radius in zip(_blocks(first, second), _blocks(own, second), strict=True):
        distance = _distances(rows, second)
        precise |= (distance <= radius[:, None]).any(0)
        recalled.append((distance <= other).any(1))
    precision, recall = _share(precise), _share(torch.cat(recalled))
    return PrecisionRecall(precision, recall, neighbours, reference.count, samples.count)


def density_coverage(
    reference: Features, samples: Features, *, neighbours: int = 5
) -> DensityCoverage:
    """Naeem et al. 2020, eq. 3 and 5; balls are open (<) as in their code, k=5 as in the paper."""
    _check(reference, samples, neighbours)
    first, second = reference.values.double(), samples.values.double()
    own = radii(first, neighbours)
    inside, covered = 0, []
    for rows, radius in zip(_blocks(first, second), _blocks(own, second), strict=True):
        held = (_distances(rows, second) < radius[:, None]).sum(1)
        inside += int(held.sum())
        covered.append(held > 0)
    density = inside / (neighbours * samples.count)
    coverage = _share(torch.cat(covered))
    return DensityCoverage(density, coverage, neighbours, reference.count, samples.count)


def radii(rows: Tensor, neighbours: int) -> Tensor:
    """The distance to the k-th nearest other row. [N,D] -> [N]."""
    nearest = [
        _distances(part, rows).topk(neighbours + 1, dim=1, largest=False).values[:, -1]
        for part in _blocks(rows, rows)
    ]
    return torch.cat(nearest)


def _distances(rows: Tensor, others: Tensor) -> Tensor:
    """[n,D], [m,D] -> [n,m]. Not by a matrix product: a copy of a picture is at distance 0, and two
    equal distances are equal, which decides who is on the edge of a ball."""
    return torch.cdist(rows, others, compute_mode="donot_use_mm_for_euclid_dist")


def _blocks(rows: Tensor, others: Tensor) -> tuple[Tensor, ...]:
    return torch.split(rows, max(1, _PAIRS // len(others)))


def _share(flags: Tensor) -> float:
    return float(flags.double().mean())


def _check(reference: Features, samples: Features, neighbours: int) -> None:
    if neighbours < 1:
        raise ValueError(f"neighbours={neighbours}: use 1 or more (3 and 5 are usual)")
    why = f"neighbours={neighbours}"
    check_pair(reference, samples, least=neighbours + 1, why=why)
    if bool((reference.values == reference.values[0]).all()):
        raise ValueError(
            f"all {reference.count} reference pictures have the same features, so their balls have "
            "no size; check the reference data and the extractor"
        )
