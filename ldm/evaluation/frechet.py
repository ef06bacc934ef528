"""How far apart are two sets of pictures, if their features were Gaussian (FID)?"""

from __future__ import annotations

import logging
from dataclasses import dataclass

import torch
from torch import Tensor

from ldm.evaluation.statistics import Moments

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Frechet:
    """value = mean_part + covariance_part. It falls with the number of samples: compare equal n."""

    value: float
    mean_part: float
    covariance_part: float
    n_reference: int
    n_samples: int
    dim: int

    def __str__(self) -> str:
        return f"FD {self.value:.4g} ({self.n_samples} samples, {self.n_reference} references)"


def frechet_distance(reference: Moments, samples: Moments) -> Frechet:
    """Heusel et al. 2017 (FID), after Dowson and Landau 1982, eq. 4, on any features.

    |m1 - m2|² + tr S1 + tr S2 - 2 tr (S1 S2)^½. The last trace is the sum of the singular values
    of S1^½ S2^½: exact to rounding also for singular S, where the eigenvalues of S1 S2 lose half
    of the digits. Raises ValueError for fewer than 2 pictures or features of two widths.
    """
    if reference.dim != samples.dim:
        raise ValueError(
            f"reference features are {reference.dim} wide, sampled ones {samples.dim}: "
            "measure both with one extractor"
        )
    first, second = reference.covariance(), samples.covariance()
    fewest = min(reference.count, samples.count)
    if fewest <= reference.dim:
        log.warning(
            "FD of %d features from %d pictures: their covariance is singular and the distance "
            "far too large; use more than %d pictures, or CMMD",
            reference.dim,
            fewest,
            reference.dim,
        )
    overlap = torch.linalg.svdvals(_root(first) @ _root(second)).sum()
    mean_part = float((reference.mean - samples.mean).square().sum())
    covariance_part = max(float(first.trace() + second.trace() - 2 * overlap), 0.0)
    return Frechet(
        value=mean_part + covariance_part,
        mean_part=mean_part,
        covariance_part=covariance_part,
        n_reference=reference.count,
        n_samples=samples.count,
        dim=reference.dim,
    )


def _root(covariance: Tensor) -> Tensor:
    """The symmetric root of a positive semidefinite matrix [D,D]."""
    values, vectors = torch.linalg.eigh(covariance)
    # rounding leaves ± D eps of the largest where there is 0, and the root would enlarge it to 1e-7
    noise = len(values) * torch.finfo(values.dtype).eps * values[-1].clamp(min=0)
    roots = torch.where(values > noise, values, 0.0).sqrt()
    root: Tensor = (vectors * roots) @ vectors.T
    return root
