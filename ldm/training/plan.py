"""What will this run do, in samples, and does it fit together?"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

Samples = int | float | str | None
POLICIES = ("raise", "skip")  # what becomes of a step whose gradient is not finite
_EPOCHS = re.compile(r"(\d+(?:\.\d+)?)\s*ep(?:ochs?)?")


@dataclass(frozen=True, kw_only=True)
class RunSettings:
    """The `training` keys of the configuration. Every amount is in samples or epochs (`2ep`)."""

    max_samples: Samples
    batch_size: int
    micro_batch: int | None = None
    log_every: Samples = 1000
    val_every: Samples = 10_000
    sample_every: Samples = 10_000
    save_every: Samples = 10_000
    keep_checkpoints: int = 2
    caption_dropout: float = 0.1
    train: list[str] | None = None
    compile: bool = False
    channels_last: bool = False
    gradient_clip: float | None = 1.0
    cache_captions: int = 0
    cache_latents: int = 0
    nonfinite: str = "raise"
    max_skipped: int = 10

    def problems(self) -> list[str]:
        """Everything wrong with the values, each with what is allowed."""
        found = []
        for name in ("batch_size", "keep_checkpoints", "max_skipped"):
            if getattr(self, name) < 1:
                found.append(f"training.{name}={getattr(self, name)}; it must be 1 or more")
        if self.micro_batch is not None and self.micro_batch < 1:
            found.append(f"training.micro_batch={self.micro_batch}; it must be 1 or more")
        for name in ("cache_captions", "cache_latents"):
            if getattr(self, name) < 0:
                found.append(f"training.{name}={getattr(self, name)}; it must be 0 or more")
        if not 0 <= self.caption_dropout <= 1:
            found.append(f"training.caption_dropout={self.caption_dropout}; allowed: 0 to 1")
        if self.gradient_clip is not None and self.gradient_clip <= 0:
            found.append(f"training.gradient_clip={self.gradient_clip}; above 0, or null for none")
        if self.nonfinite not in POLICIES:
            allowed = ", ".join(POLICIES)
            found.append(f"training.nonfinite={self.nonfinite!r}; allowed: {allowed}")
        if self.max_samples is None:
            found.append("training.max_samples=null; give samples (20000, 1e6) or epochs (2ep)")
        for name in ("max_samples", "log_every", "val_every", "sample_every", "save_every"):
            try:
                to_samples(getattr(self, name), train_size=1000, key=f"training.{name}")
            except ValueError as error:
                found.append(str(error))
        return found


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The run in numbers. Intervals are samples; 0 = never. micro_batch is per device."""

    train_size: int
    val_size: int
    total_samples: int
    batch_size: int
    micro_batch: int
    world_size: int
    accumulate: int
    log_every: int
    val_every: int
    sample_every: int
    save_every: int
    nonfinite: str = "raise"
    max_skipped: int = 10

    @property
    def steps(self) -> int:
        """Optimiser steps of the whole run."""
        return math.ceil(self.total_samples / self.batch_size)

    @property
    def micro_global(self) -> int:
        """Samples that all devices together read at once."""
        return self.micro_batch * self.world_size

    @property
    def epochs(self) -> float:
        return self.total_samples / self.train_size


def make_plan(
    settings: RunSettings, *, train_size: int, val_size: int, world_size: int, resumed: bool = False
) -> Plan:
    """Resolves amounts to samples. Raises ValueError with every inconsistency at once."""
    problems = settings.problems()
    micro = settings.micro_batch or max(settings.batch_size // world_size, 1)
    if settings.batch_size % (micro * world_size):
        problems.append(
            f"training.batch_size={settings.batch_size} is not devices x micro_batch x "
            f"accumulation with {world_size} device(s) and micro_batch={micro}: "
            f"{_advice(settings.batch_size, world_size)}"
        )
    if train_size < 1:
        problems.append("the training shards hold no usable sample; see data.train.shards, filter")
    if problems:
        raise ValueError("\n".join(problems))

    def amount(name: str) -> int:
        value = to_samples(getattr(settings, name), train_size=train_size, key=f"training.{name}")
        return 0 if value is None else value

    return Plan(
        train_size=train_size,
        val_size=val_size,
        total_samples=amount("max_samples"),
        batch_size=settings.batch_size,
        micro_batch=micro,
        world_size=world_size,
        accumulate=settings.batch_size // (micro * world_size),
        log_every=amount("log_every"),
        val_every=amount("val_every"),
        sample_every=amount("sample_every"),
        save_every=amount("save_every"),
        nonfinite=settings.nonfinite,
        max_skipped=settings.max_skipped,
    )


def to_samples(amount: Samples, *, train_size: int, key: str) -> int | None:
    """`1000`, `1e6` or `2ep` in samples; None (never) stays None. Raises ValueError otherwise."""
    if amount is None:
        return None
    if isinstance(amount, str):
        match = _EPOCHS.fullmatch(amount.strip())
        if match:
            return max(round(float(match.group(1)) * train_size), 1)
    try:
        number = float(amount)
    except ValueError:
        number = math.nan
    if not (number >= 1 and number.is_integer()):  # inf and nan are no integers
        raise ValueError(f"{key}={amount!r}; give samples (20000, 1e6) or epochs (2ep)")
    return int(number)


def crossed(every: int, before: int, after: int) -> bool:
    """Whether a multiple of `every` samples lies in (before, after]; 0 = never."""
    return every > 0 and after // every > before // every


def _advice(batch_size: int, world_size: int) -> str:
    if batch_size % world_size:
        near = max(round(batch_size / world_size), 1) * world_size
        return f"use a batch_size that {world_size} divides, {near} for example"
    share = batch_size // world_size
    fits = [n for n in range(1, share + 1) if share % n == 0]
    return f"micro_batch may be one of {fits}"


def describe(plan: Plan, *, parameters: int, lr: str, head: dict[str, str]) -> str:
    """The plan as text: what, how long, at which intervals, and what it takes on disk."""
    document = 4 * 4 * parameters  # weights, two Adam moments and EMA, fp32
    rows = {
        **{key: value for key, value in head.items() if value},
        "trained parameters": f"{parameters:,}",
        "data": f"{plan.train_size:,} samples to train on, {plan.val_size:,} to validate on",
        "length": f"{plan.total_samples:,} samples = {plan.steps:,} steps"
        f" = {plan.epochs:.2f} epochs",
        "batch": f"{plan.batch_size} = {plan.world_size} device(s) x micro_batch {plan.micro_batch}"
        f" x accumulation {plan.accumulate}",
        "learning rate": lr,
        "log every": _every(plan.log_every, plan),
        "validate every": _every(plan.val_every, plan),
        "sample every": _every(plan.sample_every, plan),
        "save every": _every(plan.save_every, plan),
        "disk": f"{document / 2**20:,.0f} MiB a checkpoint",
    }
    width = max(map(len, rows))
    return "\n".join(f"{key:<{width}}  {value}" for key, value in rows.items())


def _every(samples: int, plan: Plan) -> str:
    if not samples:
        return "never"
    return f"{samples:,} samples = {samples / plan.train_size:.2f} epochs"
