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
import json
import statistics
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
import yaml
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from ldm.adapters.attach import attach
from ldm.adapters.lora import DEFAULT_TARGETS_PEFT, LoRA, LoRAConfig
from ldm.models.unet import UNet, UNetConfig

CONF = Path(__file__).parents[1] / "conf" / "models" / "unet"
BATCH = {"tiny": 32, "mini": 4}
TOKENS = 8
PEFT_TARGETS = ["to_q", "to_k", "to_v", "to_out.0"]  # the same layers as DEFAULT_TARGETS_PEFT
MIB = 2**20


@dataclass(frozen=True)
class Row:
    """One line of the table; ratios are ours/PEFT's, below 1 is better."""

    size: str
    rank: int
    modules: int
    ours_ms: float
    peft_ms: float
    time_ratio: float
    time_quartiles: tuple[float, float]
    ours_saved_mib: float
    peft_saved_mib: float
    saved_ratio: float
    ours_state_mib: float
    peft_state_mib: float
    steps: int


class Contender:
    """A UNet with its LoRA, an optimiser and a batch."""

    def __init__(self, size: str, rank: int, device: torch.device, *, peft: bool) -> None:
        node = yaml.safe_load((CONF / f"{size}.yaml").read_text())
        del node["_target_"]
        config = UNetConfig(**node)
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
        shape = (BATCH[size], config.in_channels, config.sample_size, config.sample_size)
        self.x, self.target = (torch.randn(shape, generator=draw).to(device) for _ in range(2))
        assert config.cross_attention_dim is not None
        context = torch.randn(shape[0], TOKENS, config.cross_attention_dim, generator=draw)
        self.context = context.to(device)
        self.t = torch.linspace(0.0, 999.0, shape[0]).round().to(device)

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
    low, middle, high = statistics.quantiles([one / other for one, other in times], n=4)
    saved = (ours.saved_mib(), theirs.saved_mib())
    return Row(
        size=size,
        rank=rank,
        modules=len(ours.trained) // 2,
        ours_ms=1e3 * statistics.median(one for one, _ in times),
        peft_ms=1e3 * statistics.median(other for _, other in times),
        time_ratio=middle,
        time_quartiles=(low, high),
        ours_saved_mib=saved[0],
        peft_saved_mib=saved[1],
        saved_ratio=saved[0] / saved[1],
        ours_state_mib=ours.state_mib(),
        peft_state_mib=theirs.state_mib(),
        steps=len(times),
    )


def table(rows: list[Row]) -> str:
    lines = [
        "| UNet | rank | layers | ours, ms | PEFT, ms | time | saved, MiB | saved | trained state |"
    ]
    lines += ["|---|---|---|---|---|---|---|---|---|"]
    for row in rows:
        low, high = row.time_quartiles
        lines.append(
            f"| {row.size} | {row.rank} | {row.modules} | {row.ours_ms:.0f} | {row.peft_ms:.0f} "
            f"| **{row.time_ratio:.2f}** ({low:.2f}–{high:.2f}) "
            f"| {row.ours_saved_mib:.0f} / {row.peft_saved_mib:.0f} | **{row.saved_ratio:.2f}** "
            f"| {row.ours_state_mib:.1f} / {row.peft_state_mib:.1f} MiB |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", nargs="+", default=list(BATCH), choices=list(BATCH))
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda"])
    parser.add_argument("--seconds", type=float, default=60.0, help="at most, a size")
    parser.add_argument("--steps", type=int, default=60, help="at most, a contender")
    parser.add_argument("--out", type=Path, default=Path("reports/lora.json"))
    args = parser.parse_args()
    name = args.device
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    rows = [
        measure(size, args.rank, torch.device(name), args.seconds, args.steps)
        for size in args.sizes
    ]
    print(table(rows))
    args.out.parent.mkdir(parents=True, exist_ok=True)
    report = {
        "device": name,
        "threads": torch.get_num_threads(),
        "torch": str(torch.__version__),
        "command": " ".join(sys.argv),
        "rows": [asdict(row) for row in rows],
    }
    args.out.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
