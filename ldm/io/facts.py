"""What is said about a model, by whom, and do they agree?

Weights do not say everything: what the network predicts, on which schedule, how latents are
scaled. Several places may (a file's metadata, its buffers, a config beside it, the user).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ldm.diffusion.schedules import Cosine, Discrete, Linear, ScaledLinear, schedule_from_spec

PREDICTIONS = {  # other people's words: ours
    "epsilon": "eps",
    "eps": "eps",
    "v_prediction": "v",
    "v": "v",
    "sample": "x0",
    "x0": "x0",
}


@dataclass
class Facts:
    """Facts by name; the first to say one is believed, a different second is a problem."""

    about: str
    said: dict[str, tuple[Any, str]] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    def say(self, name: str, value: Any, where: str) -> None:
        """`where` states that `name` is `value`; None says nothing."""
        if value is None:
            return
        before = self.said.setdefault(name, (value, where))
        if not _same(before[0], value):
            self.problems.append(
                f"{name}: {before[1]} says {_short(before[0])}, {where} says {_short(value)}"
            )

    def get(self, name: str, default: Any = None) -> Any:
        return self.said[name][0] if name in self.said else default

    def stated(self) -> dict[str, Any]:
        """Specs of prediction and schedule, as far as somebody said them."""
        found = {k: self.said[k][0] for k in ("prediction", "schedule") if k in self.said}
        if "prediction" in found:
            found["prediction"] = {"name": found["prediction"]}
        return found

    def check(self) -> None:
        """Raises ValueError naming both sides of every contradiction."""
        if self.problems:
            raise ValueError(f"{self.about} is contradicted:\n  " + "\n  ".join(self.problems))


def prediction_named(word: str, where: str) -> str:
    """Our name of what a network predicts. Raises ValueError listing the known words."""
    if word not in PREDICTIONS:
        raise ValueError(
            f"{where}: prediction {word!r} is unknown; known: {', '.join(PREDICTIONS)}"
        )
    return PREDICTIONS[word]


def schedule_of(alphas_cumprod: Tensor, where: str) -> dict[str, Any]:
    """The spec of the schedule with these values [T]. Raises ValueError when none has them."""
    given = alphas_cumprod.double()
    tolerance = 2e-4 + torch.finfo(alphas_cumprod.dtype).eps  # some files have them in fp16
    steps = len(given)
    first, last = float(1 - given[0]), float(1 - given[-1] / given[-2])
    candidates: list[Discrete] = [
        ScaledLinear(num_train_steps=steps),
        ScaledLinear(num_train_steps=steps, zero_terminal_snr=True),
        Cosine(num_train_steps=steps),
    ]
    if 0 < first <= last < 1:
        known = {"num_train_steps": steps, "beta_start": first, "beta_end": last}
        for kind in (Linear, ScaledLinear):
            candidates.append(kind(**{**known, **_rounded(known)}))
    for candidate in candidates:
        if torch.allclose(candidate.alphas_cumprod(), given, rtol=tolerance, atol=1e-7):
            return candidate.spec()
    raise ValueError(
        f"{where}: its alphas_cumprod (first {given[0]:.6g}, last {given[-1]:.6g}) belong to no "
        "known schedule; give schedule=… (scaled_linear, linear, cosine or ztsnr)"
    )


def schedule_named(name: str) -> dict[str, Any]:
    """The spec of a schedule by the name of its file in conf/diffusion/schedules."""
    if name == "ztsnr":
        return ScaledLinear(zero_terminal_snr=True).spec()
    return schedule_from_spec({"name": name}).spec()


def objective_spec(prediction: str, schedule: Mapping[str, Any]) -> dict[str, Any]:
    """The objective as a card has it; how it was weighted in training nobody knows."""
    return {
        "schedule": dict(schedule),
        "prediction": {"name": prediction},
        "weighting": {"name": "uniform"},
        "times": {"name": "uniform"},
        "offset_noise": 0.0,
        "input_perturbation": 0.0,
    }


def _rounded(known: Mapping[str, Any]) -> dict[str, float]:
    """Betas were stored in float32: 0.00085000 rather than 0.00084999."""
    return {k: float(f"{v:.4g}") for k, v in known.items() if k.startswith("beta")}


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        return one.keys() == other.keys() and all(_same(one[k], other[k]) for k in one)
    if isinstance(one, float) or isinstance(other, float):
        return math.isclose(one, other, rel_tol=1e-4)
    return bool(one == other)


def _short(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{k}={v}" for k, v in value.items())
    return repr(value)
