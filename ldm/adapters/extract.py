"""Which LoRA comes nearest to the difference of two networks?"""

from __future__ import annotations

import logging
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ldm.adapters.lora import DEFAULT_TARGETS_KOHYA, LoRA
from ldm.adapters.lora_layer import LoRAWeights, rank_limit, weight_shapes
from ldm.adapters.targets import find

log = logging.getLogger(__name__)


@torch.no_grad()
def extract(
    base: nn.Module,
    tuned: nn.Module,
    *,
    rank: int,
    targets: Sequence[str] = DEFAULT_TARGETS_KOHYA,
) -> LoRA:
    """The LoRA of this rank that, on `base`, is nearest to `tuned` in every target's weight.

    Eckart and Young 1936: the first singular triples of the difference. Layers that cannot have
    this rank get the highest they can. What differs outside the targets is not in it; the log says
    which share of the targets' squared difference was kept. Raises ValueError for networks of
    different shapes.
    """
    if rank < 1:
        raise ValueError(f"rank={rank}; give 1 or more")
    layers = find(base, targets)
    ours = {path: base.get_parameter(f"{path}.weight") for path in layers}
    theirs = {path: tuned.get_parameter(f"{path}.weight") for path in find(tuned, targets)}
    shapes = [{path: weight.shape for path, weight in found.items()} for found in (ours, theirs)]
    odd = [path for path in ours | theirs if shapes[0].get(path) != shapes[1].get(path)]
    if odd:
        raise ValueError(f"the two networks differ in the shape of {', '.join(odd)}")
    weights, kept, total = {}, 0.0, 0.0
    for path, layer in layers.items():
        dtype = torch.promote_types(ours[path].dtype, torch.float32)
        change = theirs[path].to(ours[path].device, dtype) - ours[path].to(dtype)
        weights[path], squares = _nearest(layer, change, min(rank, rank_limit(layer)))
        kept += squares[: weights[path].rank].sum().item()
        total += squares.sum().item()
    if not total:
        raise ValueError(
            f"the two networks are equal in all {len(weights)} layers that could have a LoRA"
        )
    log.info(
        "rank %d keeps %.1f %% of the squared difference of %d layers",
        rank, 100 * kept / total, len(weights),
    )  # fmt: skip
    return LoRA.from_weights(base, weights)


def _nearest(layer: nn.Module, change: Tensor, rank: int) -> tuple[LoRAWeights, Tensor]:
    """The nearest change of this rank, and the squared singular values of the whole change.

    alpha is the rank, and each factor carries the root of the singular values: neither is small
    enough to suffer in half precision.
    """
    u, s, vh = torch.linalg.svd(change.flatten(1), full_matrices=False)
    root = s[:rank].sqrt()
    down_shape, up_shape = weight_shapes(layer, rank)
    down = (root[:, None] * vh[:rank]).reshape(down_shape).contiguous()
    up = (u[:, :rank] * root).reshape(up_shape).contiguous()
    return LoRAWeights(down, up, alpha=float(rank)), s.square()
