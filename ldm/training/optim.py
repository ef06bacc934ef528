"""Which optimiser, with which learning rate after how many samples?"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from ldm.training.eight_bit import eight_bit_adamw
from ldm.training.groups import parameter_groups, problems_of, rules_of

SHAPES = ("constant", "cosine", "linear")


@dataclass(frozen=True, kw_only=True)
class OptimSettings:
    """AdamW (Loshchilov & Hutter 2019) and the course of its learning rate, in samples.

    decay_start: the fraction of the run after which `linear` and `cosine` begin to fall (0: right
    after the warm-up); final: the fraction of lr that they reach at the end; groups: what some
    parameters do otherwise, by glob (groups.py); eight_bit: moments of 8 bits (eight_bit.py).
    """

    lr: float
    warmup: int = 0
    shape: str = "constant"
    decay_start: float = 0.0
    final: float = 0.0
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.01
    groups: Mapping[str, Any] = field(default_factory=dict)
    eight_bit: bool = False

    def problems(self) -> list[str]:
        """Everything wrong with the values, each with what is allowed."""
        found = []
        if self.lr <= 0:
            found.append(f"training.optim.lr={self.lr}; it must be above 0")
        if self.shape not in SHAPES:
            found.append(f"training.optim.shape={self.shape!r}; known: {', '.join(SHAPES)}")
        for name in ("decay_start", "final"):
            if not 0 <= getattr(self, name) <= 1:
                found.append(f"training.optim.{name}={getattr(self, name)}; allowed: 0 to 1")
        if self.warmup < 0:
            found.append(f"training.optim.warmup={self.warmup}; samples, 0 or more")
        return found + problems_of(self.groups, "training.optim.groups")

    def summary(self) -> str:
        """The course of the learning rate in words, and who learns otherwise."""
        text = f"warm-up over {self.warmup:,} samples, " if self.warmup else ""
        text += f"{self.lr:g}"
        if self.shape != "constant":
            end = f"{self.final * self.lr:g} from {self.decay_start:.0%} on"
            text += f", {self.shape} to {end}"
        parts = [text, *(f"{glob}: {rule}" for glob, rule in rules_of(self.groups).items())]
        return "; ".join(parts + ["8-bit moments"] * self.eight_bit)


def build_optimizer(
    settings: OptimSettings, parameters: Iterable[tuple[str, nn.Parameter]], *, fused: bool
) -> torch.optim.Optimizer:
    """AdamW over what is trainable, in the groups of groups.py."""
    groups = parameter_groups(
        settings.groups, parameters, lr=settings.lr, weight_decay=settings.weight_decay
    )
    kind = eight_bit_adamw() if settings.eight_bit else torch.optim.AdamW
    return kind(groups, lr=settings.lr, betas=settings.betas, eps=settings.eps, fused=fused)


def lr_factor(settings: OptimSettings, total_samples: int) -> Callable[[int], float]:
    """The learning rate after n samples, as a fraction of `lr`; the horizon is in samples."""
    start = max(settings.warmup, settings.decay_start * total_samples)

    def factor(samples: int) -> float:
        if samples < settings.warmup:
            return samples / settings.warmup
        if settings.shape == "constant" or samples <= start:
            return 1.0
        done = min((samples - start) / max(total_samples - start, 1), 1.0)
        left = 1 - done if settings.shape == "linear" else 0.5 * (1 + math.cos(math.pi * done))
        return settings.final + (1 - settings.final) * left

    return factor


def resumed(checkpoint: dict[str, Any], optimizer: torch.optim.Optimizer, factor: float) -> None:
    """Gives the state that is about to be restored this configuration's rates: torch would put the
    old ones back, in silence.

    optimizer: a fresh one; factor: that of the next step. Raises ValueError for other groups.
    """
    (state,), (schedule,) = checkpoint["optimizer_states"], checkpoint["lr_schedulers"]
    old, new = state["param_groups"], optimizer.param_groups
    sizes = [[len(group["params"]) for group in groups] for groups in (old, new)]
    if sizes[0] != sizes[1]:
        raise ValueError(
            f"the checkpoint's optimiser has groups of {sizes[0]} tensors, this configuration "
            f"{sizes[1]}: training.optim.groups or what is trained has changed; put it back, or "
            "init_from=… starts a new run from the weights"
        )
    for before, now in zip(old, new, strict=True):
        before.update({key: now[key] for key in ("betas", "eps", "weight_decay")})
        before.update(initial_lr=now["lr"], lr=now["lr"] * factor)
    schedule["base_lrs"] = [group["lr"] for group in new]
