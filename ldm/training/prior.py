"""How do class pictures keep a model from forgetting what its few new pictures do not show?

DreamBooth (Ruiz et al. 2022, eq. 2): beside the pictures of one instance ("a photo of sks dog")
the model is trained on pictures that it drew of the class ("a photo of a dog") before.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ldm.data.interleave import Interleaved, Turns
from ldm.data.reader import Reader
from ldm.data.settings import DataConfig, WeightedSource
from ldm.data.source import Data


@dataclass(frozen=True, kw_only=True)
class PriorSettings:
    """The node `training.prior`; prompts None: no class pictures, plain training.

    prompts: what class pictures show, or a text file with one prompt a line. guidance, steps: of
    drawing them; None: as the model that is trained on draws by itself.
    """

    prompts: Sequence[str] | str | None = None
    folder: str | None = None
    count: int = 200
    share: float = 0.5
    weight: float = 1.0
    guidance: float | None = None
    steps: int | None = None

    @property
    def used(self) -> bool:
        return self.prompts is not None

    def problems(self) -> list[str]:
        """Everything wrong with the values, each with what is allowed."""
        found = []
        if self.prompts is not None and not isinstance(self.prompts, str):
            words = [p for p in self.prompts if isinstance(p, str) and p.strip()]
            if not words or len(words) < len(self.prompts):
                found.append(
                    f"training.prior.prompts={list(self.prompts)!r}; give one text or more, as "
                    '["a photo of a dog"], a file with one a line, or null for no class pictures'
                )
        if self.count < 2:
            found.append(f"training.prior.count={self.count}; it must be 2 or more")
        if not 0.001 <= self.share <= 0.999:
            found.append(f"training.prior.share={self.share}; allowed: 0.001 to 0.999")
        if not 0 < self.weight < math.inf:
            found.append(f"training.prior.weight={self.weight}; give a positive number")
        if self.guidance is not None and not math.isfinite(self.guidance):
            found.append(f"training.prior.guidance={self.guidance}; give a finite number, or null")
        if self.steps is not None and self.steps < 1:
            found.append(f"training.prior.steps={self.steps}; it must be 1 or more, or null")
        return found


class PriorLoss:
    """mean over instance rows + weight x mean over class rows (the paper's eq. 2).

    The means are over the shares of the mixture, so that every row has a fixed factor: 1/(1-share)
    or weight/share. However a batch is cut into micro-batches and ranks, the gradient is the same.
    """

    def __init__(self, order: Interleaved, *, weight: float) -> None:
        """order: of a mixture whose last source holds the class pictures."""
        quotas = order.turns.quotas
        self.turns = order.turns
        self.last = len(quotas) - 1
        self.share = float(quotas[-1] / quotas.sum())
        self.weight = weight

    def __call__(
        self, losses: Tensor, index: Tensor, *, batch_number: int, batch_size: int
    ) -> dict[str, Tensor]:
        """losses: [B] fp32 of the rows at positions index [B] of global batch `batch_number`."""
        is_class = self.class_rows(batch_number, batch_size).to(index.device)[index % batch_size]
        instance = losses.masked_fill(is_class, 0.0).mean() / (1 - self.share)
        prior = losses.masked_fill(~is_class, 0.0).mean() / self.share
        loss = instance + self.weight * prior
        return {"loss": loss, "loss_instance": instance, "loss_prior": prior}

    def class_rows(self, batch_number: int, batch_size: int) -> Tensor:
        """Which positions of a global batch hold class pictures, by the order alone. [B] bool"""
        first = batch_number * batch_size
        return torch.tensor([self.turns.at(first + j)[0] == self.last for j in range(batch_size)])


def with_prior(config: DataConfig, folder: str, share: float) -> DataConfig:
    """The same data with the class pictures as the last source of a mixture."""
    sources = config.sources()
    weight = sum(source.weight for source in sources) * share / (1 - share)
    return replace(config, train=[*sources, WeightedSource(shards=folder, weight=weight)])


def in_short_runs(data: Data) -> Data:
    """A mixture in the shortest runs of turns that keep its ratio: 1 to 1 is a run of two.

    Every batch that is a multiple of the run then holds both in that ratio exactly.
    """
    assert isinstance(data.train, Reader)
    assert isinstance(data.train.order, Interleaved)
    order = data.train.order
    quotas = order.turns.quotas
    turns = Turns(
        (quotas // math.gcd(*quotas.tolist())).tolist(),
        seed=order.turns.seed,
        purpose=order.turns.purpose,
    )
    short = Interleaved(
        order.lines, turns, first_shard=order.first_shard, length=len(order), block=order.block
    )
    spec = {**data.order_spec, **short.spec()}
    return replace(data, train=replace(data.train, order=short), order_spec=spec)


def usable_class_pictures(data: Data) -> int:
    """Those in the index, trained on or kept out for validation."""
    assert isinstance(data.train, Reader)
    assert isinstance(data.train.order, Interleaved)
    index, first = data.train.index, data.train.order.first_shard[-1]
    count = sum(index.sizes[first:])
    if data.config.val.shards is None and data.val is not None:
        ours = set(index.shards[first:])
        held = zip(data.val.index.shards, data.val.index.sizes, strict=True)
        count += sum(size for shard, size in held if shard in ours)
    return count
