"""How are the pictures of an entry drawn, once, by any number of processes?

Picture i of the folder shows prompt i with seed i; its file holds the recipe that made it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
from PIL import Image

from ldm import gallery
from ldm.app.evaluation.request import Settings
from ldm.app.recipes import DTYPE_NAMES
from ldm.gallery.recipes import identity
from ldm.images import read_picture
from ldm.pipeline import Picture, Pipeline
from ldm.pipeline.batches import MOST
from ldm.training.launch import Processes

CPU_BATCH = 32
STRIP_STEPS = 8
Config = dict[str, Any]


@dataclass(frozen=True)
class Prompt:
    """number: of the sample of the true data it comes from."""

    number: int
    caption: str
    seed: int


@dataclass(frozen=True, kw_only=True)
class Drawing:
    """All pictures of one entry. folder: of the pictures; size: (height, width) px; model: its
    fingerprint, so that pictures of other weights are told apart."""

    folder: Path
    prompts: Sequence[Prompt]
    settings: Settings
    size: tuple[int, int]
    batch_size: int
    model: str

    def path(self, index: int) -> Path:
        return self.folder / f"{index:06d}.png"

    def strip(self, number: int) -> Path:
        return self.folder.parent.parent / "strips" / self.folder.name / f"{number}.png"


def batch_size_of(pipe: Pipeline, size: tuple[int, int], asked: int | None) -> int:
    """The same on any number of devices: a picture's last bits may depend on it."""
    if asked is not None:
        return asked
    if pipe.device.type == "cpu":
        return CPU_BATCH
    return pipe.batch_size("auto", size=size, count=MOST)


def settled(pipe: Pipeline, settings: Settings) -> Config:
    """Every choice made, for a recipe."""
    chosen = settings.options().settled(pipe.defaults).options()
    return {key: value for key, value in asdict(chosen).items() if value is not None}


def draw(
    pipe: Pipeline,
    drawing: Drawing,
    processes: Processes,
    advance: Callable[[int], None],
) -> int:
    """Draws this process's part of what is not there yet; enters no collective.

    advance: is told of every picture drawn. Gives how many files were there but unreadable, which
    are drawn anew.
    """
    common = {
        **settled(pipe, drawing.settings),
        "mode": "txt2img",
        "height": drawing.size[0],
        "width": drawing.size[1],
        "weights": pipe.weights,
        "dtype": DTYPE_NAMES[next(pipe.unet.parameters()).dtype],
        "model": drawing.model,
    }
    recipes = [{**common, "prompt": p.caption, "seed": p.seed} for p in drawing.prompts]
    mine = processes.share(range(len(recipes)))  # the same part, whatever is there already
    there = {index: _state(drawing.path(index), recipes[index]) for index in mine}
    missing = [index for index in mine if there[index] != "done"]
    for start in range(0, len(missing), drawing.batch_size):
        part = missing[start : start + drawing.batch_size]
        _draw_batch(pipe, drawing, recipes, part)
        advance(len(part))
    return sum(state == "broken" for state in there.values())


def draw_strips(pipe: Pipeline, drawing: Drawing, count: int) -> list[Path]:
    """What the model believed the first pictures would become, step by step; by one process.

    In a batch of their own, so that their pictures may differ in the last bits.
    """
    count = min(count, len(drawing.prompts))
    paths = [drawing.strip(number) for number in range(count)]
    prompts = drawing.prompts[:count]
    said = {**settled(pipe, drawing.settings), "model": drawing.model, "size": drawing.size}
    own = [identity({**said, "prompt": p.caption, "seed": p.seed}) for p in prompts]
    if all(_mark(path) == mark for path, mark in zip(paths, own, strict=True)):
        return paths
    drawn = pipe.draw(
        [Picture(prompt=p.caption, seed=p.seed) for p in prompts],
        size=drawing.size,
        options=drawing.settings.options(),
        batch_size=max(count, 1),
        watch=STRIP_STEPS,
    )
    for picture in drawn if count else ():
        names = [f"{i + 1} of {len(picture.steps)}" for i in range(len(picture.steps))]
        path = paths[picture.index]
        gallery.write_strip(path, picture.steps, names)
        path.with_suffix(".id").write_text(own[picture.index], encoding="utf-8")
    return paths


def read_drawn(drawing: Drawing, indices: Sequence[int]) -> list[Image.Image]:
    """Pictures of the folder. Raises FileNotFoundError, ValueError."""
    return [read_picture(drawing.path(index)) for index in indices]


def seconds_of(drawing: Drawing, indices: Sequence[int]) -> list[float]:
    """How long each picture took: its batch's time by the pictures in it."""
    found = []
    for index in indices:
        recipe = gallery.read_recipe(drawing.path(index)) or {}
        made_with = recipe.get("made_with")
        value = made_with.get("seconds") if isinstance(made_with, dict) else None
        if isinstance(value, float) and value >= 0:
            found.append(value)
    return found


def middle(values: Sequence[float]) -> float | None:
    """The median: the first batch on a device takes longer."""
    return median(values) if values else None


def _draw_batch(
    pipe: Pipeline, drawing: Drawing, recipes: Sequence[Config], part: Sequence[int]
) -> None:
    started = time.perf_counter()
    prompts = [drawing.prompts[index] for index in part]
    drawn = list(
        pipe.draw(
            [Picture(prompt=p.caption, seed=p.seed) for p in prompts],
            size=drawing.size,
            options=drawing.settings.options(),
            batch_size=drawing.batch_size,
        )
    )
    # a batch is filled up, so a short one takes as long as a full one
    seconds = (time.perf_counter() - started) / drawing.batch_size
    made_with = {
        "device": pipe.device.type,
        "threads": torch.get_num_threads(),
        "batch_size": drawing.batch_size,
        "seconds": seconds,
    }
    for picture in drawn:
        index = part[picture.index]
        recipe = {**recipes[index], "made_with": made_with}
        gallery.write_picture(drawing.path(index), picture.image, recipe)


def _state(path: Path, recipe: Config) -> str:
    """done, other (or not there) or broken; a picture is decoded, a damaged one is drawn again."""
    found = gallery.read_recipe(path)
    if found is None or identity(found) != identity(recipe):
        return "broken" if found is None and path.exists() else "other"
    try:
        read_picture(path)
    except (OSError, ValueError):
        return "broken"
    return "done"


def _mark(path: Path) -> str | None:
    mark = path.with_suffix(".id")
    both = path.is_file() and mark.is_file()
    return mark.read_text(encoding="utf-8") if both else None
