"""How fast and how large is a LoRA here beside PEFT's, on the same UNet with the same weights?

    python benchmarks/lora.py [--sizes tiny mini] [--rank 16] [--device auto] [--seconds 60]
                              [--out FILE.json]

Both adapt the same layers of one UNet (ours) and train them with the same AdamW; the contenders
take turns, one step each. Time is the process's CPU time (on a GPU the wall clock after a
synchronise). `saved` is what the forward keeps for the backward, exact; `state` is parameters,
gradients and optimiser state of what is trained.
"""

from __future__ import annotations

import argparse
import statistics
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import reporting
import torch
import torch.nn.functional as F
from doc_tables import Table, spread
from networks import shape
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from ldm.adapters.attach import attach
from ldm.adapters.lora import DEFAULT_TARGETS_PEFT, LoRA, LoRAConfig
from ldm.models.unet import UNet

BATCH = {"tiny": 32, "mini": 4}
TOKENS = 8
PEFT_TARGETS = ["to_q", "to_k", "to_v", "to_out.0"]  # the same layers as DEFAULT_TARGETS_PEFT
MIB = 2**20


@dataclass(frozen=True)
class Row:
    """One line of the table. speed: PEFT / ours, round by round."""

    size: str
    rank: int
    modules: int
    ours_ms: float
    peft_ms: float
    speed: float
    speed_quartiles: tuple[float, float]
    ours_saved_mib: float
    peft_saved_mib: float
    ours_state_mib: float
    peft_state_mib: float
    steps: int


class Contender:
    """A UNet with its LoRA, an optimiser and a batch."""

    def __init__(self, size: str, rank: int, device: torch.device, *, peft: bool) -> None:
        config = shape(size)
        torch.manual_seed(0)
        unet = UNet(config)
        with torch.no_grad():
            for value in unet.parameters():
                value.add_(0.01 * torch.randn_like(value))
        unet.requires_grad_(False)
        self.device = device
        self.unet = unet.to(device).train()
        self.trained = _peft(unet, rank) if peft else _ours(unet, rank)
        for parameter in self.trained:  # zeros would make products cheap, and orders differ
            nn.init.constant_(parameter, 0.01)
        self.optimizer = torch.optim.AdamW(self.trained, lr=1e-4, fused=True)
        draw = torch.Generator().manual_seed(1)
        latents = (BATCH[size], config.in_channels, config.sample_size, config.sample_size)
        self.x, self.target = (torch.randn(latents, generator=draw).to(device) for _ in range(2))
        assert config.cross_attention_dim is not None
        context = torch.randn(latents[0], TOKENS, config.cross_attention_dim, generator=draw)
        self.context = context.to(device)
        self.t = torch.linspace(0.0, 999.0, latents[0]).round().to(device)

    def predict(self) -> Tensor:
        return self.unet(self.x, self.t, self.context)

    def timed_step(self) -> float:
        begin = self._now()
        F.mse_loss(self.predict(), self.target).backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return self._now() - begin

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize()
            return time.perf_counter()
        return time.process_time()

    def saved_mib(self) -> float:
        weights = {p.untyped_storage().data_ptr() for p in self.unet.parameters()}
        weights |= {p.untyped_storage().data_ptr() for p in self.trained}
        kept: dict[int, Tensor] = {}

        def keep(tensor: Tensor) -> Tensor:
            if tensor.untyped_storage().data_ptr() not in weights:
                kept[tensor.untyped_storage().data_ptr()] = tensor
            return tensor

        with saved_tensors_hooks(keep, lambda tensor: tensor):
            self.predict()
        return sum(tensor.untyped_storage().nbytes() for tensor in kept.values()) / MIB

    def state_mib(self) -> float:
        return 4 * sum(p.numel() * p.element_size() for p in self.trained) / MIB


def _ours(unet: UNet, rank: int) -> list[nn.Parameter]:
    lora = LoRA(unet, LoRAConfig(rank=rank, alpha=rank, targets=DEFAULT_TARGETS_PEFT))
    attach(unet, lora)
    unet.lora_of_benchmark = [lora]  # type: ignore[assignment]  # kept alive, outside the tree
    return list(lora.parameters())


def _peft(unet: UNet, rank: int) -> list[nn.Parameter]:
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise SystemExit("peft is not installed: pip install -e '.[reference]'") from error
    config = LoraConfig(r=rank, lora_alpha=rank, target_modules=PEFT_TARGETS, bias="none")
    inject_adapter_in_model(config, unet)
    return [parameter for name, parameter in unet.named_parameters() if "lora_" in name]


def measure(size: str, rank: int, device: torch.device, seconds: float, steps: int) -> Row:
    ours, theirs = (Contender(size, rank, device, peft=peft) for peft in (False, True))
    with torch.no_grad():
        difference = (ours.predict() - theirs.predict()).abs().max()
        if difference > 1e-4 * ours.predict().abs().max():
            raise SystemExit(f"the two compute something else: {difference:.1e}")
    count = sum(p.numel() for p in ours.trained)
    if count != sum(p.numel() for p in theirs.trained):
        raise SystemExit("the two train another number of parameters")
    for contender in (ours, theirs):
        contender.timed_step()
    times: list[tuple[float, float]] = []
    end = time.monotonic() + seconds
    while len(times) < steps and (time.monotonic() < end or len(times) < 3):
        if len(times) % 2:
            times.append((ours.timed_step(), theirs.timed_step()))
        else:
            second, first = theirs.timed_step(), ours.timed_step()
            times.append((first, second))
    low, middle, high = statistics.quantiles([other / one for one, other in times], n=4)
    saved = (ours.saved_mib(), theirs.saved_mib())
    return Row(
        size=size,
        rank=rank,
        modules=len(ours.trained) // 2,
        ours_ms=1e3 * statistics.median(one for one, _ in times),
        peft_ms=1e3 * statistics.median(other for _, other in times),
        speed=middle,
        speed_quartiles=(low, high),
        ours_saved_mib=saved[0],
        peft_saved_mib=saved[1],
        ours_state_mib=ours.state_mib(),
        peft_state_mib=theirs.state_mib(),
        steps=len(times),
    )


def tables(report: dict[str, Any]) -> dict[str, Table]:
    """One line a network, for the page."""
    columns = ("network", "layers", "ours, ms", "PEFT, ms", "speed", "kept, MiB", "trained, MiB")
    lines = [
        (
            f"{row['size']}, rank {row['rank']}",
            str(row["modules"]),
            f"{row['ours_ms']:.0f}",
            f"{row['peft_ms']:.0f}",
            spread(row["speed"], row["speed_quartiles"], 2),
            f"{row['ours_saved_mib']:.0f} / {row['peft_saved_mib']:.0f}",
            f"{row['ours_state_mib']:.1f} / {row['peft_state_mib']:.1f}",
            str(row["steps"]),
        )
        for row in report["rows"]
    ]
    return {"lora": Table((*columns, "rounds"), lines)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", nargs="+", default=list(BATCH), choices=list(BATCH))
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda"])
    parser.add_argument("--seconds", type=float, default=60.0, help="at most, a size")
    parser.add_argument("--steps", type=int, default=60, help="at most, a contender")
    parser.add_argument("--out", type=Path, default=Path("reports/lora.json"))
    parser.add_argument("--quick", action="store_true", help="--seconds 8 --sizes tiny")
    args = parser.parse_args()
    if args.quick:
        args.seconds, args.sizes = 8.0, ["tiny"]
    name = args.device
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    rows = [
        measure(size, args.rank, torch.device(name), args.seconds, args.steps)
        for size in args.sizes
    ]
    settings = {"rank": args.rank, "seconds": args.seconds}
    made = reporting.new("lora", device=name, threads=0, settings=settings, rows=rows)
    reporting.finish(made, tables(made), args.out)


if __name__ == "__main__":
    main()
