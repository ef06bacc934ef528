"""What of what was asked does this device do, and what runs instead?"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from ldm.models import dtypes
from ldm.training import capabilities

FP8 = "transformer-engine"
COMPILE = "training.compile"


@dataclass(frozen=True)
class Fallback:
    """An option that does not run here. key: of the configuration; runs: the value instead."""

    key: str
    asked: Any
    runs: Any
    reason: str

    def __str__(self) -> str:
        return (
            f"{self.key}={_said(self.asked)} does not run here: {self.reason}. "
            f"The run takes {self.key}={_said(self.runs)}"
        )

    def plain(self) -> dict[str, Any]:
        """For the card."""
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What a run asks of its device. device: cpu or cuda; dtypes: of the frozen parts, by key;
    fp16: whether its loss bears float16 with a GradScaler; network: whether the task trains the
    one that compile and channels_last are for."""

    device: str
    precision: str
    compile: bool
    channels_last: bool
    eight_bit: bool
    dtypes: Mapping[str, str]
    fp16: bool = True
    network: bool = True


def fallbacks(asked: Asked) -> list[Fallback]:
    """Everything that the device does not do, in the order of the options.

    What is missing is only looked for when it is asked for: trying the compiler takes seconds.
    """
    found = [*_precision(asked), *dtype_fallbacks(asked.device, asked.dtypes)]
    device = asked.device
    if asked.compile:
        reason = (
            capabilities.compile_problem(device)
            if asked.network
            else "only the network of task=diffusion is compiled"
        )
        found += [] if reason is None else [Fallback(COMPILE, True, False, reason)]
    if asked.channels_last and not asked.network:
        reason = "only the network of task=diffusion has a memory format"
        found.append(Fallback("training.channels_last", True, False, reason))
    if asked.eight_bit and (reason := capabilities.eight_bit_problem(device)):
        found.append(Fallback("training.optim.eight_bit", True, False, reason))
    return found


def _precision(asked: Asked) -> Iterator[Fallback]:
    """fp8 becomes bf16, bf16 fp16 (both 2 bytes), and where none of them runs it is fp32."""
    runs, reasons = asked.precision, []
    on_cpu = asked.device == "cpu"
    if runs == FP8:
        slow = on_cpu and not capabilities.cpu_has_bf16()
        runs = "32-true" if slow else "bf16-mixed"
        reasons.append(_no_fp8(asked.device))
    if runs == "bf16-mixed" and (reason := dtypes.bf16_problem(asked.device)):
        runs = "16-mixed" if asked.fp16 else "32-true"
        reasons.append(reason)
    if runs == "16-mixed" and on_cpu:
        runs = "32-true"
        reasons.append("float16 with scaled gradients is for GPUs")
    if runs != asked.precision:
        yield Fallback("training.trainer.precision", asked.precision, runs, "; ".join(reasons))


def _no_fp8(device: str) -> str:
    if device == "cpu":
        return "fp8 needs a GPU of compute capability 8.9 or higher, and this run is on a CPU"
    return (
        "Lightning's plugin for it keeps the weights themselves in 2 bytes and puts other layers "
        "into the network, where this project's EMA and checkpoints are of fp32 weights"
    )


def dtype_fallbacks(device: str, asked: Mapping[str, str]) -> Iterator[Fallback]:
    """Of frozen parts: float16 would overflow in the VAE, so fp32 it is. asked: dtypes by key."""
    reason = dtypes.bf16_problem(device)
    for key, dtype in asked.items():
        if dtype == "bf16" and reason is not None:
            yield Fallback(key, dtype, "fp32", reason)


def cpu_notes(device: str, precision: str) -> tuple[str | None, str | None]:
    """What there is to gain, and what to lose, by the precision on this CPU."""
    if device != "cpu" or precision not in ("32-true", "bf16-mixed"):
        return None, None
    has_bf16 = capabilities.cpu_has_bf16()
    if has_bf16 and precision == "32-true":
        return (
            "this CPU has bf16 instructions: training.trainer.precision=bf16-mixed makes a step "
            "about 1.4 times as fast"
        ), None
    if not has_bf16 and precision == "bf16-mixed":
        return None, (
            "training.trainer.precision=bf16-mixed: this CPU has no bf16 instructions, so they are "
            "emulated and a step is slower than with 32-true"
        )
    return None, None


def agreed(said: Sequence[Sequence[Mapping[str, Any]]]) -> list[dict[str, Any]]:
    """The fallbacks of all processes, by what each of them found on its own machine.

    Compilation begins after the processes have met, so what one cannot do none does; for the rest
    it is too late. Every process gets the same. Raises ValueError where they run different things.
    """
    found: dict[str, dict[str, Any]] = {}
    for one in said:
        for fallback in one:
            found.setdefault(fallback["key"], dict(fallback))
    for key, fallback in found.items():
        without = [
            rank
            for rank, one in enumerate(said)
            if (key, fallback["runs"]) not in {(f["key"], f["runs"]) for f in one}
        ]
        if without and key != COMPILE:
            raise ValueError(
                f"{key}={_said(fallback['asked'])} does not run in every process "
                f"({fallback['reason']}), but in process {without[0]} of {len(said)} it does; "
                f"give {key}={_said(fallback['runs'])} for all, or machines that are alike"
            )
    return list(found.values())


def in_short(found: Sequence[Mapping[str, Any]]) -> str:
    """One line for the plan, of a card's fallbacks."""
    return ", ".join(f"{one['key']}={_said(one['runs'])}" for one in found)


def _said(value: Any) -> str:
    """As it is typed."""
    return str(value).lower() if isinstance(value, bool) else str(value)
