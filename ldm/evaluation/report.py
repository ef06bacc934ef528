"""How well does a model draw the shapes data, beside what the judge and the VAE allow?"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from PIL import Image
from rich.table import Table
from torch import Tensor

from ldm.data.shapes import EASY, render, scenes
from ldm.evaluation.shapes_judge import ShapesScore, judge_accuracy, score
from ldm.images import from_uint8, grid

RENDERS = 960
Progress = Callable[[int, int], None]


class Draws(Protocol):
    """A pipeline, as far as evaluation needs it."""

    def txt2img(
        self,
        prompts: Sequence[str],
        seeds: Sequence[int],
        *,
        steps: int | None,
        sampler: str | None,
        guidance: float | None,
        batch_size: int,
        progress: Progress | None,
    ) -> list[Image.Image]: ...


class Encodes(Protocol):
    """A codec, as far as evaluation needs it."""

    def moments(self, pixels: Tensor) -> Tensor: ...

    def latents(self, moments: Tensor, noise: Tensor) -> Tensor: ...

    def decode(self, x0: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class Request:
    """Every caption with `seeds` new seeds; draw: how, as keywords of txt2img."""

    seeds: int
    first_seed: int
    draw: Mapping[str, Any]

    @property
    def captions(self) -> list[str]:
        return [caption for caption in EASY.captions for _ in range(self.seeds)]

    @property
    def count(self) -> int:
        return len(self.captions)


@dataclass(frozen=True)
class Scored:
    """A model's pictures and what the judge says of them."""

    images: list[Image.Image]
    captions: list[str]
    score: ShapesScore


def score_model(pipe: Draws, request: Request, *, progress: Progress | None = None) -> Scored:
    """Draws the request and judges it. Raises ValueError when the numbers are out of range."""
    if request.seeds < 1:
        raise ValueError(f"seeds={request.seeds}; give 1 or more pictures a caption")
    captions = request.captions
    seeds = [request.first_seed + k for k in range(len(captions))]
    images = pipe.txt2img(captions, seeds, progress=progress, **request.draw)
    return Scored(images, captions, score(images, captions))


@torch.no_grad()
def reconstruction_score(
    codec: Encodes, *, count: int = RENDERS, seed: int = 7, device: torch.device | str = "cpu"
) -> ShapesScore:
    """The judge's score on renders that went through the VAE: no model of its latents is better."""
    drawn = scenes(EASY, seed=seed, index=range(count))
    pixels = from_uint8(torch.from_numpy(render(drawn, side_px=EASY.side_px)))
    moments = [codec.moments(part.to(device)) for part in pixels.split(96)]
    zeros = [torch.zeros_like(part.chunk(2, dim=1)[0]) for part in moments]
    back = [codec.decode(codec.latents(m, z)) for m, z in zip(moments, zeros, strict=True)]
    return score(torch.cat(back), [EASY.caption(scene) for scene in drawn])


def tables(
    codec: Encodes, scores: Mapping[str, Scored], *, run: Path, device: torch.device | str = "cpu"
) -> list[Table]:
    """Scores, and what the run's metrics.csv says of loss, time and speed."""
    table = Table("pictures of", "n", "colour", "shape", "size", "all", title="judged by program")
    _row(table, "true renders", judge_accuracy(RENDERS, 7))
    _row(table, "VAE reconstructions", reconstruction_score(codec, device=device))
    for name, scored in scores.items():
        _row(table, name, scored.score)
    curve = _curve(run / "metrics.csv")
    return [table] if curve is None else [table, curve]


def write(out: Path, scores: Mapping[str, Scored], shown: Sequence[Table]) -> Path:
    """scores.json and a captioned grid of the first model's pictures. Returns the grid's path."""
    out.mkdir(parents=True, exist_ok=True)
    numbers = {name: asdict(scored.score) for name, scored in scores.items()}
    (out / "scores.json").write_text(json.dumps(numbers, indent=1, ensure_ascii=False))
    first = next(iter(scores.values()))
    stride = max(len(first.captions) // 96, 1)
    images, captions = first.images[::stride], first.captions[::stride]
    grid(images, captions, columns=12).save(out / "grid.png")
    return out / "grid.png"


def _row(table: Table, name: str, score: ShapesScore) -> None:
    shares = (score.colour, score.shape, score.size, score.all)
    table.add_row(name, str(score.n), *(f"{100 * share:.1f} %" for share in shares))


def _curve(path: Path) -> Table | None:
    if not path.is_file():
        return None
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))

    def column(name: str) -> list[float]:
        return [float(row[name]) for row in rows if row.get(name)]

    table = Table("training", "first", "last")
    for name in ("train/loss", "val/loss_raw", "val/loss_ema", "images_per_s"):
        values = column(name)
        if values:
            table.add_row(name, f"{values[0]:.4g}", f"{values[-1]:.4g}")
    seen, rate = column("samples_seen"), column("images_per_s")
    if seen and rate:
        minutes = max(seen) / (sum(rate) / len(rate)) / 60
        table.add_row("samples seen", "", f"{max(seen):,.0f}")
        table.add_row("training time", "", f"{minutes:.1f} min")
    return table
