"""What does everything that is trained here share? Counting, EMA, learning rate, documents."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.core.optimizer import LightningOptimizer
from torch import Tensor, nn

from ldm import rng
from ldm.io.checkpoint import check_card
from ldm.training import nonfinite
from ldm.training.ema import EMA
from ldm.training.groups import freeze
from ldm.training.launch import Processes
from ldm.training.optim import OptimSettings, build_optimizer, lr_factor, resumed
from ldm.training.plan import Plan
from ldm.training.run_folder import write_card
from ldm.training.support import Fallback, agreed
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
        self.strict_loading = False  # on_load_checkpoint compares the names, of kept_parts alone
        self.plan = plan
        self.optim = optim
        self.seed = seed
        self.card = card
        self.samples_seen = 0
        self.grad_norm = torch.zeros(())
        self.paused_s = 0.0
        self.last_metrics: dict[str, float] = {}
        self.skips = nonfinite.Skips(plan.max_skipped if plan.nonfinite == "skip" else 0)
        self._ema: EMA | None = None
        self._gradient_clip = gradient_clip
        self._has_dropout = has_dropout
        self._rows: list[nonfinite.Rows] = []
        self._step_sums: dict[str, Tensor] = {}
        self._step: nonfinite.Step | None = None
        self._sums: dict[str, Tensor] = {}
        self._sum_count = 0
        self._means: dict[str, float] = {}
        self._reports = 0

    def start_ema(self, half_life: float | None) -> None:
        """Begins averaging whatever is trainable, less what a group freezes; None: no average."""
        freeze(self.optim.groups, self.named_parameters())
        if half_life is not None:
            self._ema = EMA(self.named_parameters(), half_life=half_life)

    @property
    def kept_parts(self) -> tuple[str, ...]:
        """The submodules that the document holds, whole: those of which anything is trained.

        The others' weights are the same at every step, and the run folder has them in frozen/.
        """
        return tuple(
            name
            for name, part in self.named_children()
            if any(parameter.requires_grad for parameter in part.parameters())
        )

    @property
    def ema(self) -> EMA | None:
        """The averaged weights, with the last step in them; every rank must ask. A sync point."""
        self.settle()
        return self._ema

    @property
    def validation_names(self) -> tuple[str, ...]:
        """What `Validation` averages; `loss/t3` means the rows of `loss` in time bin 3."""
        return ("loss",)

    def extra_metrics(self) -> dict[str, float]:
        """More numbers for the log; may raise when something has gone wrong. A sync point."""
        return {"skipped_steps": float(self.skips.total)}

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
        _add(self._step_sums, {name: value.detach() for name, value in losses.items()})
        return losses["loss"]

    def note(self, batch: Batch, **values: Tensor | None) -> None:
        """Keeps a few numbers a sample until the step is known to be good: see `rows_of`."""
        if self.training:
            self._rows.append(nonfinite.rows_of(batch, **values))

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clips by the global norm, keeps it for the log, and drops a step that is not finite."""
        self.settle()  # the weights change next, and the EMA wants those of the step before
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        norms, self.grad_norm = nonfinite.gradient_norms(parameters)
        if self._gradient_clip is not None and not _surely_within(
            self.grad_norm, self._gradient_clip
        ):
            nn.utils.clip_grads_with_norm_(parameters, self._gradient_clip, self.grad_norm)
        bad = ~torch.isfinite(self.grad_norm)
        if optimizer.defaults["fused"]:  # a GradScaler finds out by itself
            optimizer.found_inf = bad.float()  # type: ignore[attr-defined]
        self._step = nonfinite.Step(
            nonfinite.Flag(bad),
            self.samples_seen,
            tuple(p for p in parameters if p.grad is not None),
            norms,
            self.grad_norm,
            tuple(self._rows),
            self._step_sums,
            self.plan.accumulate,
        )
        self._rows, self._step_sums = [], {}

    def optimizer_step(
        self,
        epoch: int,
        batch_idx: int,
        optimizer: torch.optim.Optimizer | LightningOptimizer,
        optimizer_closure: Callable[[], Any] | None = None,
    ) -> None:
        """As Lightning's, which keeps the gradients in memory through the next forward."""
        super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
        optimizer.zero_grad(set_to_none=True)

    def optimizer_zero_grad(self, *_: Any) -> None:
        """Nothing is left of the last step: see `optimizer_step`."""

    def settle(self) -> None:
        """Judges the last step: the EMA and the means take it up, or it is reported and dropped.

        Every rank calls it at the same places; all come to the same end. A sync point only right
        after the step: one backward pass later the answer is there. Raises NonFiniteError.
        """
        step, self._step = self._step, None
        if step is None:
            return
        dropped = step.bad.read()
        self.skips.add(dropped)
        if dropped:
            self._report(step)
            return
        if self._ema is not None:  # follows the optimiser, never the micro-batch (LitEma's d^k)
            self._ema.update(self.plan.batch_size)
        _add(self._sums, step.sums)
        self._sum_count += step.micro_batches

    def _report(self, step: nonfinite.Step) -> None:
        """Of a dropped step: a file on every rank, a line on the first, the end when it is enough.

        A GradScaler drops steps to find its scale; with a finite loss that alone is no fault.
        """
        scaled = self.trainer.precision == "16-mixed"
        if scaled:
            self.skips.limit = self.plan.max_skipped
        over, what = self.skips.too_many, nonfinite.complaint(step)
        if scaled and step.finite_loss and not over:
            return
        rank = self.trainer.global_rank
        name = f"nonfinite-s{step.samples_seen:09d}-rank{rank}.json"
        path = Path(self.trainer.default_root_dir) / "reports" / name
        if over or self._reports < nonfinite.MAX_REPORTS:
            self._reports += 1
            nonfinite.write_report(
                step,
                dict(self.named_parameters()),
                path,
                batch_size=self.plan.batch_size,
                rank=rank,
                world_size=self.trainer.world_size,
                seed=self.seed,
                policy=self.plan.nonfinite,
                skipped_steps=self.skips.total,
                skipped_in_a_row=self.skips.in_a_row,
            )
        if over:
            self.trainer.strategy.barrier("nonfinite")  # the first to raise ends the others
            raise nonfinite.NonFiniteError(
                f"{what}. Report: {path}. {self.skips.in_a_row} step(s) in a row were dropped; the "
                "weights and the last checkpoint are from before. training.nonfinite=skip leaves "
                f"out up to training.max_skipped={self.plan.max_skipped} such steps in a row"
            )
        if self.trainer.is_global_zero:
            log.warning("step dropped (%d so far): %s", self.skips.total, what)

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
        self._agree()
        if self._ema is not None:
            self._ema.to(self.device)

    # -- what runs instead of what was asked ----------------------------------------------------

    def _agree(self) -> None:
        """All processes run the same; see `agreed`. The start is the first time that they meet."""
        trainer = self.trainer
        here = Processes(trainer.global_rank, trainer.world_size, str(self.device))
        known = {fallback["key"] for fallback in self.fallbacks}
        for fallback in agreed(here.gather(self.fallbacks)):
            if fallback["key"] not in known:
                self.fall_back(Fallback(**fallback))

    @property
    def fallbacks(self) -> list[dict[str, Any]]:
        """What did not run as it was asked for, for the card and the checkpoints."""
        found: list[dict[str, Any]] = self.card.get("fallbacks", [])
        return found

    def fall_back(self, fallback: Fallback) -> None:
        """Notes it and says so once: the first process in a warning, the others in the log."""
        self.card["fallbacks"] = [*self.fallbacks, fallback.plain()]
        if self.trainer.is_global_zero:
            log.warning("%s", fallback)
            write_card(Path(self.trainer.default_root_dir), self.card)
        else:
            log.info("process %d: %s", self.trainer.global_rank, fallback)

    # -- logging --------------------------------------------------------------------------------

    def take_means(self) -> dict[str, float]:
        """Means of the logged losses since the last call, over all ranks. A sync point.

        Dropped steps are left out; when there was no other, the last means stand, nan at first.
        """
        self.settle()
        names = sorted(self._sums)
        if not names:
            return self._means or {"loss": math.nan}
        sums = torch.stack(
            [self._sums[n].double() for n in names] + [_scalar(self._sum_count, self)]
        )
        sums = self.trainer.strategy.reduce(sums, reduce_op="sum")
        self._sums, self._sum_count = {}, 0
        self._means = {n: float(s) / float(sums[-1]) for n, s in zip(names, sums[:-1], strict=True)}
        return self._means

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
        self.settle()
        state, kept = checkpoint["state_dict"], self.kept_parts
        checkpoint["state_dict"] = {k: v for k, v in state.items() if k.split(".")[0] in kept}
        checkpoint["samples_seen"] = self.samples_seen
        checkpoint["card"] = {**self.card, "samples_seen": self.samples_seen}
        checkpoint["ema"] = None if self._ema is None else self._ema.state_dict()
        checkpoint["batch_size"] = self.plan.batch_size
        checkpoint["skips"] = self.skips.state_dict()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        check_card(checkpoint.get("card"), "checkpoint")
        own = {name for name in self.state_dict() if name.split(".")[0] in self.kept_parts}
        odd = sorted(own ^ checkpoint["state_dict"].keys())
        if odd:
            raise ValueError(
                f"the checkpoint holds weights of other parts: {len(odd)} names differ, {odd[:3]}"
            )
        self.samples_seen = checkpoint["samples_seen"]
        fresh = build_optimizer(self.optim, self.named_parameters(), fused=False)
        factor = lr_factor(self.optim, self.plan.total_samples)
        resumed(checkpoint, fresh, factor(self.samples_seen + self.plan.batch_size))
        if self._ema is not None and checkpoint["ema"] is not None:
            self._ema.load_state_dict(checkpoint["ema"])
        if "skips" in checkpoint:  # older documents have none
            self.skips.load_state_dict(checkpoint["skips"])
        steps = checkpoint["global_step"]
        left = max(self.plan.total_samples - self.samples_seen, 0)  # perhaps of another batch size
        self.trainer.fit_loop.epoch_loop.max_steps = steps + -(-left // self.plan.batch_size)
        progress = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]
        done = steps * self.plan.accumulate  # micro-batches of *this* run (integration rule 2.3)
        for part in ("total", "current"):
            progress[part].update(ready=done, started=done, processed=done, completed=done - 1)


def _surely_within(norm: Tensor, limit: float) -> bool:
    """Whether clipping would multiply every gradient by 1; on a GPU nobody knows without waiting.

    The factor is torch's: limit / (norm + 1e-6), 1 at most.
    """
    return norm.device.type == "cpu" and bool(limit / (norm + 1e-6) >= 1)


def _add(totals: dict[str, Tensor], values: dict[str, Tensor]) -> None:
    for name, value in values.items():
        totals[name] = totals[name] + value if name in totals else value


def _scalar(value: int, module: L.LightningModule) -> Tensor:
    return torch.tensor(float(value), dtype=torch.float64, device=module.device)
