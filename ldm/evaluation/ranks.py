"""How do the features of all ranks come together?"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

from ldm.evaluation.statistics import Features, Moments, merged


def gathered(features: Features, *, device: torch.device | str) -> Features:
    """The rows of all ranks, on every rank, on the CPU; a collective: every rank enters it.

    device: one that the process group can send from. A rank without pictures gives 0 rows [0,D].
    """
    if not _many():
        return features
    index = _all_rows(features.index, device)
    return Features.of(torch.cat(index), torch.cat(_all_rows(features.values, device)))


def gathered_moments(moments: Moments, *, device: torch.device | str) -> Moments:
    """The moments of all ranks' pictures together, merged in the order of the ranks; a collective.

    For sets too large to keep their features. Equal up to summation order on any number of ranks.
    """
    if not _many():
        return moments
    counts = _all_rows(torch.tensor([moments.count]), device)
    means, scatters = (_all_rows(part, device) for part in (moments.mean, moments.scatter))
    return merged(
        Moments(int(count), mean, scatter)
        for count, mean, scatter in zip(counts, means, scatters, strict=True)
    )


def _many() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def _all_rows(rows: Tensor, device: torch.device | str) -> list[Tensor]:
    """Every rank's rows [N_r,…], on the CPU. Collectives want equal shapes: padded, then cut."""
    world = dist.get_world_size()
    counts = [torch.zeros(1, dtype=torch.int64, device=device) for _ in range(world)]
    dist.all_gather(counts, torch.tensor([len(rows)], device=device))
    longest = max(int(count) for count in counts)
    padded = torch.zeros((longest, *rows.shape[1:]), dtype=rows.dtype, device=device)
    padded[: len(rows)] = rows.to(device)
    found = [torch.empty_like(padded) for _ in range(world)]
    dist.all_gather(found, padded)
    return [part[: int(n)].cpu() for part, n in zip(found, counts, strict=True)]
