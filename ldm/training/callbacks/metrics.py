"""What is logged while training, and what stops it when it is no longer finite?"""

from __future__ import annotations

import logging
import math
import time

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback

from ldm.data.quarantine import Quarantine
from ldm.training.base import Batch, TrainedModule
from ldm.training.plan import crossed

log = logging.getLogger(__name__)


class Metrics(Callback):
    """Loss, learning rate, gradient norm and images/s every `plan.log_every` samples.

    The only place of the loop that waits for the device. A number that is not finite is left out of
    the row: the gradient norm of a dropped step, the loss as long as every step was dropped.
    Unusable samples are counted and listed here, and end the run above the configured ratio.
    """

    def __init__(self, quarantine: Quarantine) -> None:
        self.quarantine = quarantine
        self._since = 0.0
        self._seen = 0

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert isinstance(pl_module, TrainedModule)
        self._restart(pl_module)

    def on_train_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: object,
        batch: Batch,
        batch_idx: int,
    ) -> None:
        assert isinstance(pl_module, TrainedModule)
        if batch.skipped:
            self.quarantine.add(batch.skipped)
        if trainer.fit_loop._should_accumulate():
            return
        seen, plan = pl_module.samples_seen, pl_module.plan
        at_end = trainer.global_step >= plan.steps
        if at_end or crossed(plan.log_every, seen - plan.batch_size, seen):
            self._log(trainer, pl_module)

    def _log(self, trainer: L.Trainer, module: TrainedModule) -> None:
        means = module.take_means()  # sync point
        self.quarantine.check(module.samples_seen // module.plan.world_size)
        seconds = time.perf_counter() - self._since - module.paused_s
        metrics = {f"train/{name}": value for name, value in means.items()}
        diverged = not math.isfinite(means["loss"]) and not module.skips.in_a_row
        metrics["lr"] = trainer.optimizers[0].param_groups[0]["lr"]
        metrics["grad_norm"] = float(module.grad_norm)
        metrics["images_per_s"] = (module.samples_seen - self._seen) / max(seconds, 1e-9)
        metrics["epoch"] = module.samples_seen / module.plan.train_size
        metrics["skipped"] = float(self.quarantine.count)
        metrics |= module.extra_metrics()
        if module.device.type == "cuda":
            metrics["memory_gib"] = torch.cuda.max_memory_allocated(module.device) / 2**30
        known = {name: value for name, value in metrics.items() if math.isfinite(value)}
        module.record(known)
        if "train/loss" in known:  # not when every step so far was dropped
            module.last_metrics = known
        self._restart(module)
        if diverged:
            raise RuntimeError(
                f"the loss is {means['loss']} after {module.samples_seen} samples "
                f"(gradient norm {metrics['grad_norm']}); lower training.optim.lr or check the "
                "data; the last checkpoint is from before"
            )

    def _restart(self, module: TrainedModule) -> None:
        self._since = time.perf_counter()
        self._seen = module.samples_seen
        module.paused_s = 0.0
