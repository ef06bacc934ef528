"""How fast is our training step beside diffusers', with the same weights, batch and optimiser?

    python benchmarks/train_step.py [--quick] [--sizes tiny mini] [--dtypes fp32 bf16]
                                    [--device auto] [--threads N] [--out FILE.json]

The contenders take turns, one step each, in an order that rotates: what else the machine does
meets all of them. `ratio` is the median over rounds of ours/diffusers, below 1 is faster. `saved`
is what the forward keeps for the backward, exact; `peak` is what a step needs for a while
above weights and optimiser state: resident memory in a process of its own, on a GPU allocated.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import yaml
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from ldm.models.unet import UNet, UNetConfig

CONF = Path(__file__).parents[1] / "conf" / "models" / "unet"
BATCH = {"tiny": 32, "mini": 4}  # rows; 8 x 8 and 16 x 16 latents
TOKENS = 8
DTYPES = {"fp32": None, "bf16": torch.bfloat16}
REFERENCE = "diffusers"
CONTENDERS = ("ours", "ours, channels last", REFERENCE)
MIB = 2**20


@dataclass(frozen=True)
class Case:
    """What is measured. threads 0: torch's default."""

    size: str
    dtype: str
    device: str
    threads: int


@dataclass(frozen=True)
class Row:
    """One line of the table. Times are those of one training step."""

    size: str
    dtype: str
    contender: str
    median_ms: float
    quartiles_ms: tuple[float, float]
    ratio: float
    ratio_quartiles: tuple[float, float]
    saved_mib: float
    peak_mib: float
    steps: int


def main() -> None:
    args = parse()
    if args.memory_of is not None:
        case = Case(args.sizes[0], args.dtypes[0], args.device, args.threads)
        print(json.dumps(peak_memory(case, args.memory_of)))
        return
    rows: list[Row] = []
    for size in args.sizes:
        for dtype in args.dtypes:
            case = Case(size, dtype, args.device, args.threads)
            rows += measure(case, seconds=args.seconds, steps=args.steps)
            print(table(rows[-len(CONTENDERS) :], header=len(rows) == len(CONTENDERS)), flush=True)
    report = {"machine": machine(args.device, args.threads), "rows": [asdict(row) for row in rows]}
    Path(args.out).parent.mkdir(parents=True, exist_ok=True)
    Path(args.out).write_text(json.dumps(report, indent=1) + "\n")
    print(f"{report['machine']}\nwritten to {args.out}")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", nargs="+", default=list(BATCH), choices=list(BATCH))
    parser.add_argument("--dtypes", nargs="+", default=list(DTYPES), choices=list(DTYPES))
    parser.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda"])
    parser.add_argument("--threads", type=int, default=0, help="CPU threads; 0: torch's default")
    parser.add_argument("--seconds", type=float, default=60.0, help="at most, a size and dtype")
    parser.add_argument("--steps", type=int, default=100, help="at most, a contender")
    parser.add_argument("--quick", action="store_true", help="--seconds 10 --steps 12")
    parser.add_argument("--out", default="reports/train_step.json")
    parser.add_argument("--memory-of", choices=CONTENDERS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.device == "auto":
        args.device = "cuda" if torch.cuda.is_available() else "cpu"
    if args.quick:
        args.seconds, args.steps = 10.0, 12
    return args


# --- measuring -------------------------------------------------------------------------------


def measure(case: Case, *, seconds: float, steps: int) -> list[Row]:
    """Every contender on one case, after a check that they compute the same."""
    trainers = {name: Trainer(case, name) for name in CONTENDERS}
    agree(trainers)
    saved = {name: trainer.saved_bytes() / MIB for name, trainer in trainers.items()}
    for trainer in trainers.values():
        for _ in range(2):
            trainer.timed_step()
    times: dict[str, list[float]] = {name: [] for name in CONTENDERS}
    order, end = list(CONTENDERS), time.monotonic() + seconds
    while len(times[REFERENCE]) < steps and (time.monotonic() < end or len(times[REFERENCE]) < 3):
        for name in order:
            times[name].append(trainers[name].timed_step())
        order = order[1:] + order[:1]
    del trainers
    return [
        row(case, name, times[name], times[REFERENCE], saved[name], peak(case, name))
        for name in CONTENDERS
    ]


def row(
    case: Case, name: str, times: list[float], reference: list[float], saved: float, peak_mib: float
) -> Row:
    low, middle, high = statistics.quantiles([1e3 * t for t in times], n=4)
    ratios = [a / b for a, b in zip(times, reference, strict=True)]
    ratio_low, ratio, ratio_high = (
        statistics.quantiles(ratios, n=4) if name != REFERENCE else (1.0, 1.0, 1.0)
    )
    return Row(
        size=case.size,
        dtype=case.dtype,
        contender=name,
        median_ms=middle,
        quartiles_ms=(low, high),
        ratio=ratio,
        ratio_quartiles=(ratio_low, ratio_high),
        saved_mib=saved,
        peak_mib=peak_mib,
        steps=len(times),
    )


class Trainer:
    """One network with its optimiser and the batch that every contender sees."""

    def __init__(self, case: Case, contender: str) -> None:
        if case.threads:
            torch.set_num_threads(case.threads)
        self.device = torch.device(case.device)
        self.amp = DTYPES[case.dtype]
        self.network, self.call = network(case.size, contender)
        self.network.to(self.device).train()
        self.optimizer = torch.optim.AdamW(self.network.parameters(), lr=1e-4, fused=True)
        config = shape(case.size)
        rng = torch.Generator().manual_seed(1)
        latents = (BATCH[case.size], config.in_channels, config.sample_size, config.sample_size)
        self.x, self.target = (
            torch.randn(latents, generator=rng).to(self.device) for _ in range(2)
        )
        assert config.cross_attention_dim is not None
        context = torch.randn(latents[0], TOKENS, config.cross_attention_dim, generator=rng)
        self.context = context.to(self.device)
        self.t = torch.linspace(0.0, 999.0, latents[0]).round().to(self.device)

    def predict(self) -> Tensor:
        enabled = self.amp is not None
        with torch.autocast(self.device.type, self.amp or torch.bfloat16, enabled=enabled):
            return self.call(self.x, self.t, self.context)

    def step(self) -> None:
        loss = F.mse_loss(self.predict().float(), self.target)
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def timed_step(self) -> float:
        """Seconds of one step."""
        self.wait()
        begin = time.perf_counter()
        self.step()
        self.wait()
        return time.perf_counter() - begin

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


def network(size: str, contender: str) -> tuple[nn.Module, Callable[..., Tensor]]:
    """A contender and how it is called; all have the weights of one draw."""
    torch.manual_seed(0)
    unet = UNet(shape(size))
    with torch.no_grad():  # the zeros of a fresh network would make products trivially cheap
        for value in unet.parameters():
            value.add_(0.01 * torch.randn_like(value))
    if contender == REFERENCE:
        theirs = reference(unet)
        return theirs, lambda x, t, context: theirs(x, t, context, return_dict=False)[0]
    if contender == "ours, channels last":
        unet.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return unet, unet


def reference(unet: UNet) -> Any:
    try:
        from diffusers import UNet2DConditionModel
    except ImportError as error:
        raise SystemExit("diffusers is not installed: pip install -e '.[reference]'") from error
    fields = asdict(unet.config)
    fields["attention_head_dim"] = fields.pop("num_attention_heads")  # their name for it
    del fields["checkpointing"]
    theirs: Any = UNet2DConditionModel(**fields)
    theirs.load_state_dict(unet.state_dict())
    return theirs


def shape(size: str) -> UNetConfig:
    node = yaml.safe_load((CONF / f"{size}.yaml").read_text())
    del node["_target_"]
    return UNetConfig(**node)


def agree(trainers: dict[str, Trainer]) -> None:
    """The same answer before the first step, or the comparison means nothing."""
    with torch.no_grad():
        answers = {name: trainer.predict().float() for name, trainer in trainers.items()}
    expected = answers[REFERENCE]
    limit = (1e-4 if next(iter(trainers.values())).amp is None else 0.1) * expected.abs().max()
    for name, answer in answers.items():
        if (answer - expected).abs().max() > limit:
            raise SystemExit(f"{name} computes something else than {REFERENCE}")


# --- memory ----------------------------------------------------------------------------------


def peak(case: Case, contender: str) -> float:
    """peak_memory in a process of its own: freed memory does not go back to the system."""
    command = [sys.executable, str(Path(__file__).resolve()), "--memory-of", contender]
    command += ["--sizes", case.size, "--dtypes", case.dtype, "--device", case.device]
    command += ["--threads", str(case.threads)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"measuring the memory of {contender} failed:\n{done.stderr}")
    return float(done.stdout.strip().splitlines()[-1])


def peak_memory(case: Case, contender: str) -> float:
    """MiB that a step needs for a while above weights and optimiser state."""
    trainer = Trainer(case, contender)
    trainer.step()  # makes the optimiser's state, loads what torch loads on first use
    if case.device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        trainer.step()
        return (torch.cuda.max_memory_allocated() - before) / MIB
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # Linux: the highest begins anew
    resident = resident_mib("VmRSS")
    for _ in range(3):
        trainer.step()
    return resident_mib("VmHWM") - resident


def resident_mib(field: str) -> float:
    """Memory of this process, now (VmRSS) or at its highest (VmHWM)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return float(line.split()[1]) / 1024  # kB
    raise SystemExit(f"/proc/self/status has no {field}; memory on a CPU is measured on Linux only")


# --- printing --------------------------------------------------------------------------------


def table(rows: list[Row], *, header: bool) -> str:
    lines = []
    if header:
        lines.append(
            f"{'network':8}{'dtype':6}{'contender':21}{'step ms (quartiles)':>25}"
            f"{'ratio (quartiles)':>22}{'saved MiB':>11}{'peak MiB':>10}{'steps':>7}"
        )
    for r in rows:
        step = f"{r.median_ms:.1f} ({r.quartiles_ms[0]:.1f}-{r.quartiles_ms[1]:.1f})"
        ratio = f"{r.ratio:.3f} ({r.ratio_quartiles[0]:.3f}-{r.ratio_quartiles[1]:.3f})"
        lines.append(
            f"{r.size:8}{r.dtype:6}{r.contender:21}{step:>25}{ratio:>22}"
            f"{r.saved_mib:>11.1f}{r.peak_mib:>10.1f}{r.steps:>7}"
        )
    return "\n".join(lines)


def machine(device: str, threads: int) -> dict[str, Any]:
    if device == "cuda":
        name = torch.cuda.get_device_name()
    else:
        cpus = Path("/proc/cpuinfo")
        lines = cpus.read_text().splitlines() if cpus.exists() else []
        names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
        name = names[0] if names else platform.processor()
    return {
        "device": name,
        "threads": threads or torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


if __name__ == "__main__":
    main()
