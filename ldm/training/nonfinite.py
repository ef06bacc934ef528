"""What becomes of a step whose gradient is not finite, and what is written down about it?

The decision is made on the norm of the reduced gradient, which is the same on all ranks, and on
the device: the fused AdamW gets it as `found_inf` and leaves weights and moments as they were (a
GradScaler does the same by itself). The host reads it one step later, when the next backward pass
is queued already, so that the device never waits for the host.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ldm.io.checkpoint import write_text
from ldm.types import ImageBatch, LatentBatch

REPORT_FORMAT = "ldm-nonfinite/1"
MAX_REPORTS = 100  # of one process; a run that skips for weeks must not fill the disk


class NonFiniteError(RuntimeError):
    """Too many steps without a finite gradient; the weights are those before the first of them."""


@dataclass(frozen=True)
class Rows:
    """What is remembered of one micro-batch, for the report. values: [B] each, on the device."""

    keys: tuple[str, ...]
    captions: tuple[str, ...]
    index: Tensor
    values: dict[str, Tensor]


@torch.no_grad()
def rows_of(
    batch: ImageBatch | LatentBatch,
    *,
    losses: Tensor | None = None,
    t: Tensor | None = None,
    latents: Tensor | None = None,
    context: Tensor | None = None,
) -> Rows:
    """losses, t: [B]; latents: [B,C,h,w]; context: [B,L,D]. A few numbers a row, no sync point."""
    values = {name: v.detach() for name, v in (("loss", losses), ("t", t)) if v is not None}
    if latents is not None:
        flat = latents.detach().flatten(1).float()
        low, high = flat.aminmax(dim=1)
        std, mean = torch.std_mean(flat, dim=1)
        values |= {"latent_min": low, "latent_max": high, "latent_mean": mean, "latent_std": std}
    if context is not None:
        values["context_finite"] = torch.isfinite(context).flatten(1).all(dim=1)
    return Rows(batch.keys, batch.captions, batch.index, values)


class Flag:
    """A boolean on the device, on its way to the host since it was made."""

    def __init__(self, value: Tensor) -> None:
        self._host, self._arrived = value, None
        if value.is_cuda:
            self._host = torch.empty((), dtype=torch.bool, pin_memory=True)
            self._host.copy_(value, non_blocking=True)
            self._arrived = torch.cuda.Event()
            self._arrived.record()

    def read(self) -> bool:
        """Waits for what was queued before the flag was made, and for nothing after it."""
        if self._arrived is not None:
            self._arrived.synchronize()
        return bool(self._host)


@dataclass(frozen=True)
class Step:
    """An optimiser step that is queued and not yet judged.

    norms: [P], of the gradients of `parameters`, before clipping; sums: of the losses to be logged,
    over this rank's micro-batches.
    """

    bad: Flag
    samples_seen: int
    parameters: tuple[nn.Parameter, ...]
    norms: Tensor
    norm: Tensor
    rows: tuple[Rows, ...]
    sums: dict[str, Tensor]
    micro_batches: int

    @property
    def loss(self) -> float:
        """Mean over this rank's micro-batches. A sync point."""
        return float(self.sums["loss"]) / self.micro_batches

    @property
    def finite_loss(self) -> bool:
        return math.isfinite(self.loss)


def gradient_norms(parameters: Iterable[nn.Parameter]) -> tuple[Tensor, Tensor]:
    """Norm of each gradient [P] and of all together, in one pass; fp32."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    norms = torch.stack(torch._foreach_norm(gradients))
    return norms, torch.linalg.vector_norm(norms)


class Skips:
    """Counts the steps that were dropped and decides when it is enough.

    in_a_row: the most that may follow each other, 0 to allow none.
    """

    def __init__(self, in_a_row: int) -> None:
        self.limit = in_a_row
        self.total = 0
        self.in_a_row = 0

    def add(self, dropped: bool) -> None:
        """Takes up a step that has been judged."""
        self.total += dropped
        self.in_a_row = self.in_a_row + 1 if dropped else 0

    @property
    def too_many(self) -> bool:
        return self.in_a_row > self.limit

    def state_dict(self) -> dict[str, int]:
        return {"total": self.total, "in_a_row": self.in_a_row}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.total, self.in_a_row = state["total"], state["in_a_row"]


def complaint(step: Step) -> str:
    """What is not finite and what may help, for the user. A sync point."""
    what = "the gradient is not finite" if step.finite_loss else f"the loss is {step.loss}"
    advice = "lower training.optim.lr or check the data"
    latents = [rows.values["latent_mean"] for rows in step.rows if "latent_mean" in rows.values]
    if not all(torch.isfinite(mean).all() for mean in latents):
        advice = "its latents are not finite: run the VAE in fp32 or bf16 (models.vae_dtype)"
    return f"{what} after {step.samples_seen} samples (gradient norm {float(step.norm)}); {advice}"


def write_report(step: Step, weights: Mapping[str, nn.Parameter], path: Path, **facts: Any) -> None:
    """The report as strict JSON: nan and inf are strings. A sync point.

    The batch is `samples`, in the order of this rank's micro-batches: with the run's `seed` and the
    `i` of each sample, data and every draw of the step can be made again.
    """
    names = {id(parameter): name for name, parameter in weights.items()}
    broken = [name for name, value in weights.items() if not torch.isfinite(value).all()]
    report = {
        "format": REPORT_FORMAT,
        "samples_seen": step.samples_seen,
        **facts,
        "loss": _number(step.loss),
        "gradient_norm": _number(float(step.norm)),
        "gradient_norms": _by_block([names[id(p)] for p in step.parameters], step.norms.tolist()),
        "weights_finite": not broken,
        "weights_not_finite": broken,
        "samples": [s for number, rows in enumerate(step.rows) for s in _samples(rows, number)],
    }
    write_text(path, json.dumps(report, indent=1, ensure_ascii=False, allow_nan=False))


def block_of(name: str) -> str:
    """The top-level block of a parameter: unet.down_blocks.1.resnets.0.… -> unet.down_blocks.1."""
    parts = name.split(".")
    return ".".join(parts[: 3 if len(parts) > 2 and parts[2].isdigit() else 2])


def _by_block(names: Sequence[str], norms: Sequence[float]) -> dict[str, float | str]:
    squares: dict[str, float] = {}
    for name, norm in zip(names, norms, strict=True):
        squares[block_of(name)] = squares.get(block_of(name), 0.0) + norm * norm
    return {block: _number(math.sqrt(square)) for block, square in squares.items()}


def _samples(rows: Rows, micro_batch: int) -> list[dict[str, Any]]:
    columns = {name: value.tolist() for name, value in rows.values.items()}
    return [
        {
            "i": i,
            "key": rows.keys[row],
            "caption": rows.captions[row],
            "micro_batch": micro_batch,
            **{name: _number(column[row]) for name, column in columns.items()},
        }
        for row, i in enumerate(rows.index.tolist())
    ]


def _number(value: float) -> float | str:
    """JSON has no nan and no inf; float() reads these strings."""
    return value if math.isfinite(value) else str(value)
