"""How much memory does a training step need beside diffusers', and how many FLOPs is it?

    python benchmarks/memory.py [--quick] [--threads 1] [--out FILE.json]

Needs no GPU. SD 1.5: the steps of sd15_step.py, derived from the networks on meta tensors under
autocast and fused attention as on a GPU (ldm/training/estimate_trace.py), with AdamW's and the
average's own tensors; what CUDA and its libraries take and what fragments are left out, and the
rows of torch.compile, which plans memory by itself. The small networks: the same steps in full, on
a CPU, every allocation counted (peak_memory.py).
"""

from __future__ import annotations

import argparse
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import reporting
import torch
from doc_tables import Table, figure
from flops import FACTOR, NETWORKS, PUBLISHED, SIZES_PX, TOKENS, counts
from networks import OURS, REFERENCE, reference, shape
from sd15_contender import STOCK, Case
from sd15_step import Running
from torch import Tensor, nn

from ldm.models.unet import UNet
from ldm.training.estimate_trace import Trace, on_meta, trace_forward, trace_step

GIB = 2**30
WORK = ((256, 4), (256, 128), (512, 32))  # px, images a step
SMALL = (("tiny", 64, 32), ("mini", 128, 4))  # network, px, images a step
NAMES = {OURS: "ours", REFERENCE: STOCK}
FP32 = 4  # bytes


@dataclass(frozen=True, kw_only=True)
class Derived:
    """Bytes of one step of SD 1.5 by phase, `held` in each: weights, moments of AdamW, average.

    forward: at its end, with gradients that are still there; backward: the most while gradients
    come and activations go; update: gradients and what AdamW computes in.
    """

    px: int
    batch: int
    contender: str
    held: int
    forward: int
    backward: int
    update: int

    @property
    def peak(self) -> int:
        return self.held + max(self.forward, self.backward, self.update)


@dataclass(frozen=True, kw_only=True)
class Counted:
    """One step on a CPU."""

    size: str
    px: int
    batch: int
    contender: str
    peak_mib: float


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="of the small networks tiny alone")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads; 0: torch's default")
    parser.add_argument("--out", type=Path, default=Path("reports/bench/memory.json"))
    args = parser.parse_args()
    small = [
        counted(Case(size, px, batch, "cpu", args.threads, "wall"), whose)
        for size, px, batch in SMALL[: 1 if args.quick else None]
        for whose in NAMES
    ]
    made = reporting.new(
        "memory",
        device="cpu",
        threads=args.threads,
        settings={"bf16": True, "ema": True, "tokens": TOKENS},
        rows=derived_rows(),
        counted=[asdict(row) for row in small],
        flops=flop_rows(),
    )
    reporting.finish(made, tables(made), args.out)


# -- derived --------------------------------------------------------------------------------------


def derived_rows() -> list[Derived]:
    return [derived(px, batch, whose) for px, batch in WORK for whose in NAMES]


def derived(px: int, batch: int, whose: str, size: str = "sd15") -> Derived:
    """The step of one contender on a GPU."""
    parameters, trace = traced(px, batch, whose, size)
    gradients = FP32 * parameters
    return Derived(
        px=px,
        batch=batch,
        contender=NAMES[whose],
        held=4 * FP32 * parameters,
        forward=trace.saved,
        backward=trace.peak,
        update=gradients + (adamw_bytes(whose, size) if whose == REFERENCE else 0),
    )


@cache
def traced(px: int, batch: int, whose: str, size: str) -> tuple[int, Trace]:
    """Parameters, and forward and backward in which gradients stay once they are there."""
    network = on_meta_network(size, whose)
    config, side = shape(size), px // FACTOR
    assert config.cross_attention_dim is not None
    with on_meta():
        x, t = torch.empty(batch, config.in_channels, side, side), torch.empty(batch)
        context = torch.empty(batch, TOKENS, config.cross_attention_dim)

    def call() -> Tensor:
        prediction: Tensor = network(x, t, context) if whose == OURS else network(x, t, context)[0]
        return prediction

    # of a module without parameters: trace_step drops the gradients of those that it is given
    trace = trace_step(nn.Identity(), call, dtype=torch.bfloat16)
    return sum(p.numel() for p in network.parameters()), trace


@cache
def adamw_bytes(whose: str, size: str) -> int:
    """What AdamW makes for a while as it comes on a GPU, all tensors at once. Fused: nothing."""
    parameters = list(on_meta_network(size, whose).parameters())
    for parameter in parameters:
        parameter.grad = torch.empty_like(parameter)
    optimizer = torch.optim.AdamW(parameters, foreach=True)
    optimizer.step()  # makes the moments
    return trace_forward(optimizer.step).peak


def on_meta_network(size: str, whose: str) -> nn.Module:
    with on_meta():
        unet = UNet(replace(shape(size), upcast_attention=False))
        network: nn.Module = unet if whose == OURS else reference(unet)
    return network


# -- counted --------------------------------------------------------------------------------------


def counted(case: Case, whose: str) -> Counted:
    """Two steps of a contender in its process, after one that makes AdamW's state."""
    run = Running(case, NAMES[whose])
    try:
        run.ask("turn 1")
        peak_mib = run.ask("memory")
    finally:
        run.end()
    return Counted(
        size=case.size, px=case.px, batch=case.batch, contender=NAMES[whose], peak_mib=peak_mib
    )


def flop_rows() -> list[dict[str, Any]]:
    return [
        {"size": size, "px": px, **counts(size, px), "published": PUBLISHED.get((size, px))}
        for size in NETWORKS
        for px in SIZES_PX
    ]


# -- the page -------------------------------------------------------------------------------------


def tables(report: dict[str, Any]) -> dict[str, Table]:
    """SD 1.5 on a GPU derived, the small networks on a CPU counted, and FLOPs of an image."""
    return {
        "memory-sd15": _derived_table([Derived(**row) for row in report["rows"]]),
        "memory-cpu": _counted_table([Counted(**row) for row in report["counted"]]),
        "memory-flops": _flops_table(report["flops"]),
    }


def _derived_table(rows: list[Derived]) -> Table:
    theirs = {(r.px, r.batch): r.peak for r in rows if r.contender == STOCK}
    cells = []
    for r in rows:
        phases = (r.held, r.forward, r.backward, r.update, r.peak)
        cells.append(
            [
                f"{r.px} px, batch {r.batch}: {r.contender}",
                *(f"{value / GIB:.2f}" for value in phases),
                f"{r.peak / theirs[r.px, r.batch]:.2f}",
            ]
        )
    phases = ["held", "+ forward", "+ backward", "+ update"]
    return Table(["SD 1.5, GiB", *phases, "peak", "of diffusers'"], cells)


def _counted_table(rows: list[Counted]) -> Table:
    theirs = {r.size: r.peak_mib for r in rows if r.contender == STOCK}
    cells = [
        [
            f"{r.size}, {r.px} px, batch {r.batch}: {r.contender}",
            figure(r.peak_mib, 4),
            f"{r.peak_mib / theirs[r.size]:.2f}",
        ]
        for r in rows
    ]
    return Table(["on a CPU", "peak, MiB", "of diffusers'"], cells)


def _flops_table(rows: list[dict[str, Any]]) -> Table:
    cells = []
    for r in rows:
        numbers = [f"{r[name] / 1e12:.4f}" for name in ("forward", "training", "by_autograd")]
        published = "–" if r["published"] is None else f"{r['published'] / 1e12:.3g}"
        cells.append([f"{NETWORKS[r['size']]}, {r['px']} px", *numbers, published])
    return Table(
        ["TFLOP an image", "forward", "training", "counted in autograd", "published"], cells
    )


if __name__ == "__main__":
    main()
