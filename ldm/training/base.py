"""What does everything that is trained here share? Counting, EMA, learning rate, documents."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import lightning as L
import torch
from torch import Tensor

from ldm import rng
from ldm.io.checkpoint import check_card
from ldm.training.ema import EMA
from ldm.training.optim import OptimSettings, build_optimizer, lr_factor
from ldm.training.plan import Plan
from ldm.types import ImageBatch, LatentBatch

log = logging.getLogger(__name__)
Batch = ImageBatch | LatentBatch


class TrainedModule(L.LightningModule):
    """Base of the diffusion, VAE and CLIP modules: `samples_seen` is the only cursor.

    A subclass registers what it trains before calling `start_ema`, and gives `batch_loss`.
    """

    def __init__(
        self,
        *,
        plan: Plan,
        optim: OptimSettings,
        seed: int,
        card: dict[str, Any],
        gradient_clip: float | None,
        has_dropout: bool,
    ) -> None:
        super().__init__()
        self.plan = plan
        self.optim = optim
        self.seed = seed
        self.card = card
        self.samples_seen = 0
        self.ema: EMA | None = None
        self.grad_norm = torch.zeros(())
        self.paused_s = 0.0
        self.last_metrics: dict[str, float] = {}
        self._gradient_clip = gradient_clip
        self._has_dropout = has_dropout
        self._sums: dict[str, Tensor] = {}
        self._sum_count = 0

    def start_ema(self, half_life: float | None) -> None:
        """Begins averaging whatever is trainable; None trains without."""
        if half_life is not None:
            self.ema = EMA(self.named_parameters(), half_life=half_life)

    @property
    def validation_names(self) -> tuple[str, ...]:
        """What `Validation` averages; `loss/t3` means the rows of `loss` in time bin 3."""
        return ("loss",)

    def extra_metrics(self) -> dict[str, float]:
        """More numbers for the log; may raise when something has gone wrong. A sync point."""
        return {}

    # -- the step -------------------------------------------------------------------------------

    def batch_loss(self, batch: Batch, batch_number: int) -> dict[str, Tensor]:
        """`loss` and whatever else is to be logged, scalars; batch_number: of the global batch."""
        raise NotImplementedError

    def validation_losses(self, batch: Batch, total: int) -> dict[str, Tensor]:
        """Per-sample losses [B] by name; all draws are keyed by the index among `total`."""
        raise NotImplementedError

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        if self._has_dropout:  # dropout layers draw from the global generator
            torch.manual_seed(rng.fold(self.seed, "dropout-layers", int(batch.index[0])))
        batch_number = self.samples_seen // self.plan.batch_size
        losses = self.batch_loss(batch, batch_number)
        self.samples_seen += self.plan.micro_global
        for name, value in losses.items():
            total = self._sums.get(name)
            self._sums[name] = value.detach() if total is None else total + value.detach()
        self._sum_count += 1
        return losses["loss"]

    def optimizer_step(
        self,
        epoch: int,
        batch_idx: int,
        optimizer: Any,
        optimizer_closure: Callable[[], Any] | None = None,
    ) -> None:
        """EMA follows the optimiser, never the micro-batch (LitEma's d^k error)."""
        super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
        if self.ema is not None:
            self.ema.update(self.plan.batch_size)

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clips by the global norm and keeps the norm for the log, without a second pass."""
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        limit = float("inf") if self._gradient_clip is None else self._gradient_clip
        self.grad_norm = torch.nn.utils.clip_grad_norm_(parameters, limit).detach()

    def configure_optimizers(self) -> Any:
        # under a GradScaler the fused step unscales by itself, after our clipping
        fused = self.device.type in ("cuda", "cpu") and self.trainer.precision != "16-mixed"
        optimizer = build_optimizer(self.optim, self.named_parameters(), fused=fused)
        factor = lr_factor(self.optim, self.plan.total_samples)

        def of_next_step(_: int) -> float:  # a plain function: nothing of it enters the checkpoint
            return factor(self.samples_seen + self.plan.batch_size)

        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, of_next_step)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": scheduler, "interval": "step"},
        }

    def setup(self, stage: str) -> None:
        if self.ema is not None:
            self.ema.to(self.device)

    # -- logging --------------------------------------------------------------------------------

    def take_means(self) -> dict[str, float]:
        """Means of the logged losses since the last call, over all ranks. A sync point."""
        names = sorted(self._sums)
        if not names:
            return {}
        sums = torch.stack(
            [self._sums[n].double() for n in names] + [_scalar(self._sum_count, self)]
        )
        sums = self.trainer.strategy.reduce(sums, reduce_op="sum")
        self._sums, self._sum_count = {}, 0
        return {n: float(s) / float(sums[-1]) for n, s in zip(names, sums[:-1], strict=True)}

    def record(self, metrics: dict[str, float]) -> None:
        """Writes numbers to all loggers, at the present `samples_seen`."""
        row = {"samples_seen": float(self.samples_seen), **metrics}
        for logger in self.trainer.loggers:
            logger.log_metrics(row, step=self.samples_seen)

    @contextmanager
    def pausing(self) -> Iterator[None]:
        """Time spent inside does not count as training in images/s."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.paused_s += time.perf_counter() - start

    # -- the document ---------------------------------------------------------------------------

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["samples_seen"] = self.samples_seen
        checkpoint["card"] = {**self.card, "samples_seen": self.samples_seen}
        checkpoint["ema"] = None if self.ema is None else self.ema.state_dict()
        checkpoint["batch_size"] = self.plan.batch_size

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        check_card(checkpoint.get("card"), "checkpoint")
        self.samples_seen = checkpoint["samples_seen"]
        if self.ema is not None and checkpoint["ema"] is not None:
            self.ema.load_state_dict(checkpoint["ema"])
        steps = checkpoint["global_step"]
        left = max(self.plan.total_samples - self.samples_seen, 0)  # perhaps of another batch size
        self.trainer.fit_loop.epoch_loop.max_steps = steps + -(-left // self.plan.batch_size)
        progress = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]
        done = steps * self.plan.accumulate  # micro-batches of *this* run (integration rule 2.3)
        for part in ("total", "current"):
            progress[part].update(ready=done, started=done, processed=done, completed=done - 1)


def _scalar(value: int, module: L.LightningModule) -> Tensor:
    return torch.tensor(float(value), dtype=torch.float64, device=module.device)
