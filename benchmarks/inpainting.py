"""How much better does a network that was trained to inpaint do it than one that was not?

    python benchmarks/inpainting.py --model runs/tiny_inpaint [--base tiny] [--count 384]
                                    [--pictures docs/images/inpainting.png]

Drawn shapes, of which a part is hidden, and the same masks, prompts and seeds for both: `--base`
keeps the rest at the noise level of each step (`sampling.edits.inpaint`), `--model` is told mask
and picture. The program that judges shapes says how many pictures show what the prompt says.

    replace   a box around the object is hidden, another shape in another colour is asked for
    complete  three quarters of the picture are hidden, the object's own caption is asked for

`error`: mean distance of the hidden pixels from the original's, of 255, where there is a right
answer (complete). Intervals: 95 %; the difference is paired, by picture.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from rich.console import Console
from rich.table import Table
from torch import Tensor

import ldm
from ldm.data.shapes import EASY, Scene, render, scenes
from ldm.evaluation.bootstrap import bootstrap_mean
from ldm.evaluation.shapes_judge import judge
from ldm.images import from_pil, grid
from ldm.pipeline import Pipeline

SIDE = EASY.side_px
SEED = 991  # of the scenes: no training picture has it
MARGIN = 1.15  # the box is so much wider than the object's nominal radius
SHOWN = 8  # pictures of each task
Z = 1.96


@dataclass(frozen=True)
class Job:
    """One picture with a hole. caption: what is asked for."""

    image: Image.Image
    mask: Image.Image
    caption: str


@dataclass(frozen=True)
class Result:
    """right [N]: 1 where the picture shows what was asked; error [N]: of the hidden pixels."""

    images: list[Image.Image]
    right: Tensor
    error: Tensor


def replace(scene: Scene, image: Image.Image, number: int) -> Job:
    """The object hidden, and another asked for."""
    reach, (x, y) = scene.radius * MARGIN * SIDE, (c * SIDE for c in scene.centre)
    box = (x - reach, y - reach, x + reach, y + reach)
    mask = _mask((math.floor(box[0]), math.floor(box[1]), math.ceil(box[2]), math.ceil(box[3])))
    shapes = [name for name in EASY.shapes if name != scene.shape]
    colours = [name for name in EASY.colours if name != scene.colour]
    shape, colour = shapes[number % len(shapes)], colours[number % len(colours)]
    return Job(image, mask, f"a {scene.size} {colour} {shape}")


def complete(scene: Scene, image: Image.Image, number: int) -> Job:
    """One quarter of the picture kept, in turn each of the four."""
    half = SIDE // 2
    left, top = half * (number % 2), half * (number // 2 % 2)
    mask = Image.new("L", (SIDE, SIDE), 255)
    mask.paste(0, (left, top, left + half, top + half))
    return Job(image, mask, EASY.caption(scene))


TASKS: dict[str, Callable[[Scene, Image.Image, int], Job]] = {
    "replace": replace,
    "complete": complete,
}


def jobs(task: str, count: int) -> list[Job]:
    """The same ones each time."""
    drawn = scenes(EASY, seed=SEED, index=range(count))
    images = [Image.fromarray(pixels) for pixels in render(drawn, side_px=SIDE)]
    return [TASKS[task](s, i, n) for n, (s, i) in enumerate(zip(drawn, images, strict=True))]


def run(pipe: Pipeline, asked: list[Job], batch_size: int) -> Result:
    """Paints the holes and judges."""
    captions = [job.caption for job in asked]
    originals, masks = [job.image for job in asked], [job.mask for job in asked]
    seeds = list(range(len(asked)))
    images = pipe.inpaint(captions, originals, masks, seeds=seeds, batch_size=batch_size)
    right = []
    for want, got in zip(map(EASY.parse, captions), judge(images), strict=True):
        seen = (got.shape, got.colour, got.size, got.ground)
        right.append(seen == (want.shape, want.colour, want.size, want.ground))
    hole = (from_pil(masks)[:, :1] > 0).float()
    distance = (from_pil(images) - from_pil(originals)).abs().mean(1, keepdim=True) * 127.5
    error = (distance * hole).sum((1, 2, 3)) / hole.sum((1, 2, 3))
    return Result(images, torch.tensor(right, dtype=torch.float64), error.double())


def wilson(right: Tensor) -> str:
    """A share with its Wilson score interval, in per cent."""
    n, share = len(right), float(right.mean())
    centre = (share + Z**2 / (2 * n)) / (1 + Z**2 / n)
    half = Z / (1 + Z**2 / n) * math.sqrt(share * (1 - share) / n + Z**2 / (4 * n**2))
    return f"{100 * share:.1f} % ({100 * (centre - half):.1f} … {100 * (centre + half):.1f})"


def difference(one: Tensor, other: Tensor, scale: float) -> str:
    """one - other, by picture."""
    paired = scale * (one - other)
    if not paired.any():
        return "0"
    found = bootstrap_mean(paired, seed=0, purpose="inpainting")
    return f"{found.value:+.1f} ({found.low:+.1f} … {found.high:+.1f})"


def sheet(asked: list[Job], results: list[Result]) -> tuple[list[Image.Image], list[str]]:
    """The first pictures with their holes, and what each made of them."""
    grey = Image.new("RGB", (SIDE, SIDE), (128, 128, 128))
    images, texts = [], []
    for i, job in enumerate(asked[:SHOWN]):
        images += [Image.composite(grey, job.image, job.mask)]
        images += [result.images[i] for result in results]
        texts += [job.caption, "training-free", "trained"]
    return images, texts


def _mask(box: tuple[int, int, int, int]) -> Image.Image:
    mask = Image.new("L", (SIDE, SIDE), 0)
    mask.paste(255, tuple(min(max(value, 0), SIDE) for value in box))
    return mask


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True, help="trained to inpaint: a run folder, a file")
    parser.add_argument("--base", default="tiny", help="what it was made from")
    parser.add_argument("--count", type=int, default=384, help="pictures a task")
    parser.add_argument("--batch-size", type=int, default=96)
    parser.add_argument("--tasks", nargs="+", choices=list(TASKS), default=list(TASKS))
    parser.add_argument("--pictures", type=Path, help="where some of them go, as one PNG")
    options = parser.parse_args()
    pipes = [ldm.load(path, device="cpu") for path in (options.base, options.model)]
    if pipes[1].parts.extra_channels == 0:
        parser.error(f"--model {options.model} takes no mask; train it with +training/inpainting")
    table = Table("task", "training-free", "trained", "difference", "error, free", "error, trained")
    images, texts = [], []
    for task in options.tasks:
        asked = jobs(task, options.count)
        free, trained = results = [run(pipe, asked, options.batch_size) for pipe in pipes]
        errors = [f"{r.error.mean():.1f}" if task == "complete" else "" for r in results]
        gain = difference(trained.right, free.right, 100)
        table.add_row(task, wilson(free.right), wilson(trained.right), gain, *errors)
        more = sheet(asked, results)
        images, texts = images + more[0], texts + more[1]
    Console(width=140).print(table)
    if options.pictures:
        grid(images, texts, columns=12).save(options.pictures, optimize=True)


if __name__ == "__main__":
    main()
