"""What is a network's validation loss at every noise level, on the same images and noises?

n images, K times of each, C latent channels, h x w latent size.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from ldm import rng
from ldm.diffusion.prediction import Prediction, V, target
from ldm.evaluation.paired import LossTable
from ldm.evaluation.preset import BINS
from ldm.evaluation.statistics import Features
from ldm.images import from_pil
from ldm.pipeline import Pipeline, SamplingOptions
from ldm.pipeline.drawing import Request, concat
from ldm.sampling.denoiser import Denoiser
from ldm.types import Conditioning

EDGES = tuple(k / BINS for k in range(BINS + 1))  # shares of the time range
SEED = 0


@dataclass(frozen=True)
class Sample:
    """A true picture with its caption; number: in the data, which keys its times and noises."""

    number: int
    caption: str
    picture: Image.Image


def comparable(cards: Sequence[Mapping[str, Any]]) -> list[str]:
    """Why the losses of these models, of their cards, are not of one thing; [] when they are."""
    facts = {
        "the VAE": [(card["vae"].get("hash"), card["vae"].get("config")) for card in cards],
        "the schedule": [card["objective"]["schedule"] for card in cards],
    }
    return [name for name, values in facts.items() if any(v != values[0] for v in values)]


def quantity_of(pipes: Sequence[Prediction]) -> Prediction:
    """What the error is of: the networks' own output, or v where these differ, which is finite at
    all levels."""
    first = pipes[0]
    return first if all(other.spec() == first.spec() for other in pipes) else V()


@torch.inference_mode()
def losses(
    pipe: Pipeline,
    samples: Sequence[Sample],
    *,
    times: int,
    quantity: Prediction,
    batch_size: int,
    advance: Callable[[int], None],
) -> Features:
    """Mean squared errors [n,K] of these samples, of whatever is `quantity`, by number.

    The latents are the posterior's mean; time k lies in the k-th of K parts of the range; times and
    noises are keyed by the sample's number. Batches are full, so a row does not depend on others.
    """
    values = torch.zeros(len(samples), times, dtype=torch.float64)
    rows = [(row, k) for row in range(len(samples)) for k in range(times)]
    latents: dict[int, Tensor] = {}
    contexts: dict[int, Conditioning] = {}
    for start in range(0, len(rows), batch_size):
        part = rows[start : start + batch_size]
        for row in {row for row, _ in part} - set(latents):
            latents[row] = _latents(pipe, samples[row])
            contexts[row] = pipe.text.encode([samples[row].caption])
        filled = part + [part[-1]] * (batch_size - len(part))
        errors = _errors(
            pipe,
            torch.cat([latents[row] for row, _ in filled]),
            Conditioning.cat([contexts[row] for row, _ in filled]).to(pipe.device),
            torch.tensor([samples[row].number * times + k for row, k in filled]),
            times,
            quantity,
        )
        for (row, k), error in zip(part, errors[: len(part)].tolist(), strict=True):
            values[row, k] = error
        for row in [row for row in latents if row < part[-1][0]]:
            del latents[row], contexts[row]
        advance(len(part))
    return Features.of(torch.tensor([sample.number for sample in samples]), values)


def table_of(found: Features, quantity: Prediction) -> LossTable:
    """The losses of all images with their times, as shares of the range."""
    times = found.dim
    place = found.index[:, None] * times + torch.arange(times)  # [n,K]
    return LossTable.of(
        found.index.repeat_interleave(times),
        _fractions(place.flatten(), times),
        found.values.flatten().double(),
        noise=f"seed {SEED}, {times} times, error of {quantity.name}",
    )


def _fractions(place: Tensor, times: int) -> Tensor:
    """Shares of the time range [B] of places number * K + k: one in each K-th of it."""
    return (place % times + rng.uniform(SEED, "evaluation-time", place).double()) / times


def _latents(pipe: Pipeline, sample: Sample) -> Tensor:
    """[1,C,h,w], each alone: what a picture becomes does not depend on the others."""
    moments = pipe.codec.moments(from_pil([sample.picture]).to(pipe.device))
    return pipe.codec.latents(moments, torch.zeros_like(moments.chunk(2, dim=1)[0]))


def _errors(
    pipe: Pipeline,
    x0: Tensor,
    cond: Conditioning,
    place: Tensor,
    times: int,
    quantity: Prediction,
) -> Tensor:
    """[B] float32."""
    objective = pipe.objective
    fraction = _fractions(place, times).float().to(pipe.device)
    level = objective.schedule.at(objective.schedule.training_time(fraction))
    eps = rng.normal(SEED, "evaluation-noise", place.to(pipe.device), tuple(x0.shape[1:]))
    height, width = (side * pipe.codec.factor for side in x0.shape[-2:])
    settings = SamplingOptions().settled(pipe.defaults)
    drawn_anew = concat(pipe.parts, Request(settings=settings, size=(height, width)), len(x0))
    cond = Conditioning(cond.context, cond.mask, drawn_anew)
    x = objective.add_noise(x0, eps, level)
    believed = Denoiser(pipe.parts.model, objective)(x, level, cond)
    error = target(believed.x0 - x0, believed.eps - eps, level, quantity)  # it is linear
    return error.square().flatten(1).mean(1)
