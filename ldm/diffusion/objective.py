"""What is learnt: from x0 and noise to the loss, and from the network's output back to x0."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ldm.diffusion import prediction as predictions
from ldm.diffusion.prediction import Edm, Prediction, determinant, prediction_from_spec
from ldm.diffusion.schedules import EDM, Schedule, schedule_from_spec
from ldm.diffusion.times import Times, times_from_spec
from ldm.diffusion.times import Uniform as UniformTimes
from ldm.diffusion.weighting import Uniform as UniformWeighting
from ldm.diffusion.weighting import Weighting, weighting_from_spec
from ldm.types import Denoised, Level


@dataclass(frozen=True, kw_only=True)
class Objective:
    """One model: x = alpha x0 + sigma eps, F = a x0 + b eps, a weight and a density of levels.

    offset_noise: strength of the noise shared by all pixels of a channel (0: off).
    input_perturbation: Ning et al. 2023, strength of the extra noise that only x carries (0: off).
    """

    schedule: Schedule
    prediction: Prediction
    weighting: Weighting = field(default_factory=UniformWeighting)
    times: Times = field(default_factory=UniformTimes)
    offset_noise: float = 0.0
    input_perturbation: float = 0.0

    def __post_init__(self) -> None:
        problems = _problems(self)
        if problems:
            raise ValueError("the objective does not fit together:\n  " + "\n  ".join(problems))

    def level(self, u: Tensor, place: Tensor, batch_size: int) -> Level:
        """The levels [B] to train on; u: uniforms [B], place: in the global batch, int64 [B]."""
        return self.schedule.at(self.times.sample(u, place, batch_size, self.schedule))

    def add_noise(self, x0: Tensor, eps: Tensor, level: Level) -> Tensor:
        """x = alpha x0 + sigma eps, [B,C,h,w]."""
        level = level.expand(x0)
        return level.alpha * x0 + level.sigma * eps

    def shaped_noise(self, eps: Tensor, offset: Tensor) -> Tensor:
        """Offset noise, which the target has too. offset: normals [B,C,1,1]."""
        return eps + self.offset_noise * offset if self.offset_noise else eps

    def perturbed(self, eps: Tensor, extra: Tensor) -> Tensor:
        """The noise to build x with; the target keeps eps. extra: normals [B,C,h,w]."""
        return eps + self.input_perturbation * extra if self.input_perturbation else eps

    def net_input(self, x: Tensor, level: Level) -> Tensor:
        """x as the network is fed it, [B,C,h,w]."""
        return self.prediction.scaled_input(x, level.expand(x))

    def net_time(self, level: Level) -> Tensor:
        """t as the network is fed it, [B]."""
        return self.schedule.net_time(level.t)

    def target(self, x0: Tensor, eps: Tensor, level: Level) -> Tensor:
        """What the network should have given, [B,C,h,w]."""
        return predictions.target(x0, eps, level, self.prediction)

    def recover(self, x: Tensor, out: Tensor, level: Level) -> Denoised:
        """x0 and eps from the network's output at x."""
        return predictions.recover(x, out, level, self.prediction)

    def loss(self, out: Tensor, x0: Tensor, eps: Tensor, level: Level) -> Tensor:
        """Weighted squared error of every row, [B] float32 (mean over C,h,w)."""
        # the target is float32, so a half-precision `out` is widened before the difference is taken
        error = (out - self.target(x0, eps, level)).square().flatten(1).mean(1)
        return self.weighting.on_output(level, self.prediction) * error

    def spec(self) -> dict[str, Any]:
        """Everything as plain values, for a card."""
        return {
            "schedule": self.schedule.spec(),
            "prediction": self.prediction.spec(),
            "weighting": self.weighting.spec(),
            "times": self.times.spec(),
            "offset_noise": self.offset_noise,
            "input_perturbation": self.input_perturbation,
        }


def objective_from_spec(spec: Mapping[str, Any]) -> Objective:
    """The objective whose `spec()` this is; only schedule and prediction are required."""
    known = {"schedule", "prediction", "weighting", "times", "offset_noise", "input_perturbation"}
    missing, unknown = {"schedule", "prediction"} - set(spec), set(spec) - known
    if missing or unknown:
        raise ValueError(
            f"objective with missing {sorted(missing)} and unknown {sorted(unknown)} entries; "
            f"allowed: {', '.join(sorted(known))}"
        )
    return Objective(
        schedule=schedule_from_spec(spec["schedule"]),
        prediction=prediction_from_spec(spec["prediction"]),
        weighting=weighting_from_spec(spec.get("weighting", {"name": "uniform"})),
        times=times_from_spec(spec.get("times", {"name": "uniform"})),
        offset_noise=spec.get("offset_noise", 0.0),
        input_perturbation=spec.get("input_perturbation", 0.0),
    )


def _problems(objective: Objective) -> list[str]:
    schedule, prediction = objective.schedule, objective.prediction
    most_noise = schedule.at(torch.tensor(schedule.time_range[1], dtype=torch.float64))
    problems = []
    if determinant(most_noise, prediction) == 0:
        problems.append(
            f"{prediction.name} prediction says nothing of x0 where alpha = 0, which this schedule "
            "reaches; use v (flow on the flow schedule)"
        )
    if isinstance(schedule, EDM) != isinstance(prediction, Edm):
        problems.append(
            f"{prediction.name} prediction on the {schedule.spec()['name']} schedule; the edm "
            "schedule needs the edm prediction (which scales the network's input) and the reverse"
        )
    for name, value in (
        ("offset_noise", objective.offset_noise),
        ("input_perturbation", objective.input_perturbation),
    ):
        if not 0 <= value < float("inf"):
            problems.append(f"{name}={value}; use 0 (off) or a positive strength, 0.1 is usual")
    return problems
