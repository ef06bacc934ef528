"""How good are raw and averaged weights on a fixed set of (image, t, noise)?"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from ldm.data.source import Data
from ldm.training.base import TrainedModule
from ldm.training.plan import crossed


@dataclass(frozen=True, kw_only=True)
class ValidationSettings:
    """max_samples: of the validation set (None: all); batch_size: at once, per device."""

    max_samples: int | None = 512
    batch_size: int = 64

    def problems(self) -> list[str]:
        if self.batch_size < 1 or (self.max_samples is not None and self.max_samples < 1):
            return [f"training.callbacks.validation: {self}; numbers from 1 (max_samples: or null)"]
        return []


class Validation(Callback):
    """Runs at the start, every `plan.val_every` samples and at the end, on all ranks.

    Lightning's own loop counts micro-batches, so its interval changes with the number of devices.
    """

    def __init__(self, settings: ValidationSettings, data: Data) -> None:
        self.settings = settings
        self.data = data
        self.total = min(settings.max_samples or data.val_size, data.val_size)
        self.last: dict[str, float] = {}

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        module = _trained(pl_module)
        if self.total and module.plan.val_every and module.samples_seen == 0:
            self.run(trainer, module)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, *_: object
    ) -> None:
        module = _trained(pl_module)
        if not self.total or trainer.fit_loop._should_accumulate():
            return
        seen, plan = module.samples_seen, module.plan
        at_end = trainer.global_step >= plan.steps and plan.val_every > 0
        if at_end or crossed(plan.val_every, seen - plan.batch_size, seen):
            self.run(trainer, module)

    def run(self, trainer: L.Trainer, module: TrainedModule) -> dict[str, float]:
        """Evaluates, reduces over ranks in float64 and records."""
        with module.pausing():
            metrics = self._measure(trainer, module, "raw", nullcontext())
            if module.ema is not None:
                metrics |= self._measure(trainer, module, "ema", module.ema.swapped())
        self.last = metrics
        module.record(metrics)
        return metrics

    def _measure(
        self,
        trainer: L.Trainer,
        module: TrainedModule,
        weights: str,
        ready: AbstractContextManager[None],
    ) -> dict[str, float]:
        names = module.validation_names
        sums = torch.zeros(len(names), 2, dtype=torch.float64, device=module.device)
        precision = trainer.strategy.precision_plugin
        was_training = module.training
        module.eval()
        batches = self.data.val_loader(
            batch_size=self.settings.batch_size,
            limit=self.total,
            rank=trainer.global_rank,
            world=trainer.world_size,
        )
        with ready, torch.no_grad(), precision.forward_context():
            for batch in batches:
                batch = batch.to(module.device)
                losses = module.validation_losses(batch, self.total)
                sums += _sums(losses, names, batch.index < self.total)
        module.train(was_training)
        sums = trainer.strategy.reduce(sums, reduce_op="sum")
        means = (sums[:, 0] / sums[:, 1]).tolist()
        return {
            f"val/{name}_{weights}": value
            for name, value in zip(names, means, strict=True)
            if value == value  # a bin that no sample fell into
        }


def _sums(losses: dict[str, Tensor], names: tuple[str, ...], valid: Tensor) -> Tensor:
    """(sum, count) of each name [N,2]; `loss/t3` is the loss of the rows in time bin 3.

    valid: [B], False where a row only fills up the last batch of this rank.
    """
    rows = []
    for name in names:
        base, _, number = name.partition("/t")
        value = losses[base].double()
        keep = valid & (losses["bin"] == int(number)) if number else valid
        rows.append(torch.stack([value[keep].sum(), keep.sum().double()]))
    return torch.stack(rows)


def _trained(module: L.LightningModule) -> TrainedModule:
    assert isinstance(module, TrainedModule)
    return module
