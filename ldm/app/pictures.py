"""How are the pictures that were asked for drawn into one folder, by any number of processes?"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from ldm import gallery
from ldm.app.recipes import EXPECTED, OPTIONS, asked_batch, load_recipes
from ldm.app.together import together
from ldm.gallery import Place, Wish
from ldm.images import fitted, read_mask, read_picture
from ldm.parts import raise_all
from ldm.pipeline import Between, Drawn, Picture, Pipeline, SamplingOptions
from ldm.training.launch import Processes
from ldm.training.run_folder import provenance

log = logging.getLogger(__name__)
Config = dict[str, Any]
WATCHED = 8  # steps in a strip
STRIP, MOVING = "steps.png", "steps.webp"  # beside a picture, with steps_grid
AT_ONCE = 8  # batches whose images are in memory


def draw_wishes(cfg: Config, wishes: list[Wish], processes: Processes) -> None:
    """Draws what is not there yet; the first process writes grid and manifest at the end.

    Every process draws every world-th picture and writes it when its batch is done. An error of one
    process does not stop the others; all of them raise it in the end.
    """
    out = Path(cfg["out"])
    pipe, recipes = together(processes, lambda: load_recipes(cfg, wishes, processes.device))
    endings = (STRIP, MOVING) if cfg["steps_grid"] else ()
    planned = together(  # by the first, before anyone writes
        processes,
        lambda: (
            gallery.plan(out, recipes, overwrite=cfg["overwrite"], endings=endings)
            if processes.rank == 0
            else []
        ),
    )
    places = processes.agree(planned)
    problem = None
    try:
        _draw(cfg, pipe, places, processes)
    except EXPECTED as error:
        problem = str(error)
    problems = [text for text in processes.gather(problem) if text]
    if processes.rank == 0:
        _finish(out, places)
    raise_all(problems[:1])


def _draw(cfg: Config, pipe: Pipeline, places: list[Place], processes: Processes) -> None:
    groups = [
        (group, processes.share([p for p in group if not p.done])) for group in _groups(places)
    ]
    total, count = sum(len(mine) for _, mine in groups), 0
    shown = processes.rank == 0 and total > 0
    with gallery.progress_bar("sampling", total, shown=shown) as advance:
        for group, mine in groups:
            for place, drawn in _drawn(cfg, pipe, mine, -(-len(group) // processes.world)):
                _write(place, drawn, pipe)
                count += 1
                advance(count, total)


def _groups(places: list[Place]) -> list[list[Place]]:
    """Pictures that can be drawn in one batch: equal but for what each picture has of its own."""
    groups: dict[str, list[Place]] = {}
    shared = ("mode", "height", "width", "strength", "paste_back", *OPTIONS)
    for place in places:
        key = repr([place.recipe.get(name) for name in shared])
        groups.setdefault(key, []).append(place)
    return list(groups.values())


def _drawn(
    cfg: Config, pipe: Pipeline, places: list[Place], count: int
) -> Iterator[tuple[Place, Drawn]]:
    """count: the pictures like these that fall to one process, also those that are there."""
    if not places:
        return
    recipe = places[0].recipe
    options = SamplingOptions(**{name: recipe.get(name) for name in OPTIONS})
    size = (recipe["height"], recipe["width"])
    batch = pipe.batch_size(asked_batch(cfg), size=size, count=count)
    while places:
        part, places = places[: AT_ONCE * batch], places[AT_ONCE * batch :]
        for drawn in pipe.draw(
            _pictures(pipe, [place.recipe for place in part], options, batch),
            size=size,
            strength=recipe.get("strength", 1.0),
            paste_back=recipe.get("paste_back", True),
            options=options,
            batch_size=batch,
            watch=WATCHED if cfg["steps_grid"] else 0,
        ):
            batch = min(batch, drawn.batch_size)  # what did not fit will not fit next time
            yield part[drawn.index], drawn


def _pictures(
    pipe: Pipeline, recipes: list[Config], options: SamplingOptions, batch: int
) -> list[Picture]:
    """What is asked of each, images read and cut to size."""
    found = []
    for recipe in recipes:
        size = (recipe["height"], recipe["width"])
        image, mask = recipe.get("init_image"), recipe.get("mask")
        found.append(
            Picture(
                prompt=_on_the_way(recipe, "prompt"),
                seed=_on_the_way(recipe, "seed"),
                negative=recipe.get("negative_prompt"),
                image=None if image is None else fitted(read_picture(image), size),
                mask=None if mask is None else fitted(read_mask(mask), size),
            )
        )
    if recipes[0]["mode"] != "invert":
        return found
    images = [picture.image for picture in found if picture.image is not None]
    starts = pipe.invert(
        images, [recipe["prompt"] for recipe in recipes], options=options, batch_size=batch
    )
    return [
        replace(
            picture, prompt=recipe.get("to_prompt") or recipe["prompt"], image=None, start=start
        )
        for picture, recipe, start in zip(found, recipes, starts, strict=True)
    ]


def _on_the_way(recipe: Config, key: str) -> Any:
    """Prompt or seed; of a frame, its place between the first and the last."""
    if recipe["mode"] != "interpolate":
        return recipe[key]
    weight = recipe["frame"] / (recipe["frames"] - 1)
    return Between(recipe[key], recipe.get(f"to_{key}", recipe[key]), weight)


def _write(place: Place, drawn: Drawn, pipe: Pipeline) -> None:
    """The picture last: what stands beside it is whole when it is there."""
    if drawn.steps:
        captions = [f"{i + 1} of {len(drawn.steps)}" for i in range(len(drawn.steps))]
        gallery.write_strip(place.beside(STRIP), drawn.steps, captions)
        gallery.write_animation(place.beside(MOVING), [*drawn.steps, drawn.image])
    made_with = {
        **_versions(),
        "device": pipe.device.type,
        "threads": torch.get_num_threads(),
        "batch_size": drawn.batch_size,
    }
    gallery.write_picture(place.path, drawn.image, {**place.recipe, "made_with": made_with})


@lru_cache(maxsize=1)
def _versions() -> dict[str, str | None]:
    return provenance()


def _finish(out: Path, places: list[Place]) -> None:
    """Grid, manifest and the strips of interpolations, of all that is there."""
    there = [place for place in places if place.path.is_file()]
    if not there:
        return
    for frames in gallery.interpolations(there):
        gallery.write_frames(frames)
    sheet = gallery.write_grid(out, there)
    gallery.write_manifest(out, there)
    known = sum(place.done for place in places)
    log.info(
        "%s: %d new, %d from before%s",
        out,
        len(there) - known,
        known,
        "" if sheet is None else f"; all in {sheet}",
    )
