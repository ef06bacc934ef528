"""What does one contender of train_step.py do? Run by it, with a name and a case as JSON."""

from __future__ import annotations

import ctypes
import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from networks import OURS, REFERENCE, network, shape
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from ldm.training.allocator import keep_freed_memory

BATCH = {"tiny": 32, "mini": 4}  # rows; 8 x 8 and 16 x 16 latents
TOKENS = 8
MIB = 2**20
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}


@dataclass(frozen=True, kw_only=True)
class Contender:
    """A network and its settings.

    fused: AdamW as one kernel, not torch's default; eager: attention as products and a softmax;
    kept: freed memory stays with the process (ours in training on a CPU).
    """

    name: str
    theirs: bool = False
    bf16: bool = False
    fused: bool = True
    eager: bool = False
    channels_last: bool = False
    kept: bool = False
    compile: bool = False


STOCK = "diffusers, stock"
CONTENDERS = (
    Contender(name="ours, bf16", bf16=True, kept=True),
    Contender(name="ours, bf16, cl", bf16=True, kept=True, channels_last=True),
    Contender(name="ours, bf16, compiled", bf16=True, kept=True, compile=True),
    Contender(
        name="ours, bf16, cl, compiled", bf16=True, kept=True, channels_last=True, compile=True
    ),
    Contender(name="ours, fp32", kept=True),
    Contender(name=STOCK, theirs=True, fused=False),
    Contender(name="diffusers, fp32, fused", theirs=True),
    Contender(name="diffusers, bf16", theirs=True, bf16=True),
    Contender(name="diffusers, bf16, eager", theirs=True, bf16=True, eager=True),
    Contender(
        name="diffusers, bf16, eager, cl", theirs=True, bf16=True, eager=True, channels_last=True
    ),
    Contender(name="diffusers, bf16, compiled", theirs=True, bf16=True, eager=True, compile=True),
)


@dataclass(frozen=True)
class Case:
    """What is measured. threads 0: torch's default."""

    size: str
    device: str
    threads: int
    clock: str


class Trainer:
    """One network with its optimiser and the batch that every contender sees."""

    def __init__(self, case: Case, contender: Contender) -> None:
        if case.threads:
            torch.set_num_threads(case.threads)
        if contender.kept and case.device == "cpu":
            keep_freed_memory()
        self.device = torch.device(case.device)
        self.bf16 = contender.bf16
        self.now = CLOCKS[case.clock]
        whose = REFERENCE if contender.theirs else OURS
        self.network, self.call = network(case.size, whose)
        self.network.to(self.device).train()
        if contender.channels_last:
            self.network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        if contender.eager:
            from diffusers.models.attention_processor import AttnProcessor

            self.network.set_attn_processor(AttnProcessor())  # type: ignore[operator]
        if contender.compile:
            self.network.compile()
        fused = True if contender.fused else None
        self.optimizer = torch.optim.AdamW(self.network.parameters(), lr=1e-4, fused=fused)
        config = shape(case.size)
        rng = torch.Generator().manual_seed(1)
        latents = (BATCH[case.size], config.in_channels, config.sample_size, config.sample_size)
        self.x, self.target = (torch.randn(latents, generator=rng).to(self.device) for _ in "xy")
        assert config.cross_attention_dim is not None
        context = torch.randn(latents[0], TOKENS, config.cross_attention_dim, generator=rng)
        self.context = context.to(self.device)
        self.t = torch.linspace(0.0, 999.0, latents[0]).round().to(self.device)

    def predict(self) -> Tensor:
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
            return self.call(self.x, self.t, self.context)

    def step(self) -> None:
        loss = F.mse_loss(self.predict().float(), self.target)
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def timed_step(self) -> float:
        """Seconds of one step."""
        self.wait()
        begin = self.now()
        self.step()
        self.wait()
        return self.now() - begin

    def wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def saved_bytes(self) -> int:
        """Memory that the forward keeps for the backward, weights left out, each storage once."""
        weights = {p.untyped_storage().data_ptr() for p in self.network.parameters()}
        kept: dict[int, Tensor] = {}

        def keep(tensor: Tensor) -> Tensor:
            place = tensor.untyped_storage().data_ptr()
            if place not in weights:
                kept[place] = tensor
            return tensor

        with saved_tensors_hooks(keep, lambda tensor: tensor):
            self.predict()
        return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


class Peak:
    """What steps need for a while above what is held between them."""

    def __init__(self, device: str) -> None:
        self.on_gpu = device == "cuda"
        if self.on_gpu:
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
            self.before = torch.cuda.memory_allocated() / MIB
            return
        ctypes.CDLL("libc.so.6").malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")  # Linux: the highest begins anew
        self.before = resident_mib("VmRSS")

    def mib(self) -> float:
        highest = torch.cuda.max_memory_allocated() / MIB if self.on_gpu else resident_mib("VmHWM")
        return highest - self.before


def resident_mib(field: str) -> float:
    """Memory of this process, now (VmRSS) or at its highest (VmHWM)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return float(line.split()[1]) / 1024  # kB
    raise SystemExit(f"/proc/self/status has no {field}; memory on a CPU is measured on Linux only")


def main() -> None:
    name, case = sys.argv[1], Case(**json.loads(sys.argv[2]))
    contender = next(contender for contender in CONTENDERS if contender.name == name)
    trainer = Trainer(case, contender)
    with torch.no_grad():
        answer = trainer.predict().float().flatten().tolist()
    saved = 0.0 if contender.compile else trainer.saved_bytes() / MIB  # compiled code has no hooks
    trainer.step()  # makes the optimiser's state, loads what torch loads on first use
    peak = Peak(case.device)
    for _ in range(3):
        trainer.step()
    print(json.dumps({"answer": answer, "saved_mib": saved}), flush=True)
    for line in sys.stdin:
        if line.strip() == "end":
            print(json.dumps(peak.mib()), flush=True)
            return
        print(json.dumps(trainer.timed_step()), flush=True)


if __name__ == "__main__":
    main()
