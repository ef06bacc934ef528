"""Does the score table say what the pictures show?"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from rich.console import Console
from torch import Tensor

from ldm.data.shapes import EASY, render, scenes
from ldm.evaluation.report import Request, reconstruction_score, score_model, tables, write
from ldm.images import from_uint8, to_pil


class Renderer:
    """A "model" that draws what it is asked for, or always the same picture."""

    def __init__(self, *, right: bool) -> None:
        self.right = right
        self.seeds: list[int] = []

    def txt2img(self, prompts: Any, seeds: Any, **_: Any) -> list[Image.Image]:
        self.seeds = list(seeds)
        drawn = {EASY.caption(s): s for s in scenes(EASY, seed=3, index=range(len(EASY.captions)))}
        chosen = [drawn[prompt if self.right else prompts[0]] for prompt in prompts]
        return to_pil(from_uint8(torch.from_numpy(render(chosen, side_px=32))))


class PixelCodec:
    """Latents are pixels, darkened by `lost`."""

    def __init__(self, lost: float = 0.0) -> None:
        self.lost = lost

    def moments(self, pixels: Tensor) -> Tensor:
        return torch.cat([pixels, torch.full_like(pixels, -30)], dim=1)

    def latents(self, moments: Tensor, noise: Tensor) -> Tensor:
        return moments.chunk(2, dim=1)[0]

    def decode(self, x0: Tensor) -> Tensor:
        return x0 * (1 - self.lost)


def request() -> Request:
    return Request(seeds=1, first_seed=1000, draw={"steps": 1, "batch_size": 4})


def test_a_perfect_renderer_scores_full_marks_and_a_constant_one_does_not() -> None:
    perfect = score_model(Renderer(right=True), request())
    assert (perfect.score.n, perfect.score.all) == (96, 1.0)
    constant = score_model(Renderer(right=False), request())
    assert constant.score.shape == 1 / 6
    assert constant.score.colour == 1 / 8


def test_every_picture_has_a_seed_of_its_own() -> None:
    renderer = Renderer(right=True)
    score_model(renderer, Request(seeds=2, first_seed=1000, draw={}))
    assert renderer.seeds == list(range(1000, 1192))


def test_reconstructions_count_what_the_vae_loses() -> None:
    assert reconstruction_score(PixelCodec(), count=96).all == 1.0
    assert reconstruction_score(PixelCodec(lost=1.0), count=96).all == 0.0


def test_the_report_names_scores_loss_and_time(tmp_path: Path) -> None:
    (tmp_path / "metrics.csv").write_text(
        "samples_seen,train/loss,val/loss_ema,images_per_s\n"
        "0,,0.9,\n600,0.5,,100\n1200,0.25,,100\n1200,,0.3,\n"
    )
    scores = {"mine": score_model(Renderer(right=True), request())}
    shown = tables(PixelCodec(), scores, run=tmp_path)
    console = Console(record=True, width=120)
    for table in shown:
        console.print(table)
    text = console.export_text()
    for expected in ("true renders", "VAE reconstructions", "mine", "0.5", "0.25", "0.2 min"):
        assert expected in text
    grid = write(tmp_path / "out", scores, shown)
    with Image.open(grid) as picture:
        assert picture.width > 12 * 128
    assert json.loads((grid.parent / "scores.json").read_text())["mine"]["colour"] == 1.0
