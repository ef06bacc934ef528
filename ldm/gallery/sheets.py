"""How are several pictures shown at once, or one after the other?"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from ldm.gallery.folder import Place
from ldm.gallery.recipes import atomically, identity
from ldm.images import enlarged, grid, read_picture

log = logging.getLogger(__name__)
GRID = "grid.png"
MOST = 100  # pictures in a grid
FRAME_MS = 200


def write_grid(out: Path, places: Sequence[Place]) -> Path | None:
    """The pictures of a request that are there, each with prompt and seed; None for less than 2."""
    there = [place for place in places if place.path.is_file()]
    if len(there) < 2:
        return None
    if len(there) > MOST:
        log.info("%s shows the first %d of %d pictures", GRID, MOST, len(there))
    shown = there[:MOST]
    pictures = [read_picture(place.path) for place in shown]
    captions = [f"{place.recipe['prompt']} ({place.recipe['seed']})" for place in shown]
    sheet = grid(pictures, captions)
    atomically(out / GRID, lambda temporary: sheet.save(temporary, format="PNG"))
    return out / GRID


def interpolations(places: Sequence[Place]) -> list[list[Place]]:
    """The frames of each interpolation of which all are there, in their order."""
    found: dict[str, list[Place]] = {}
    for place in places:
        recipe = place.recipe
        if recipe["mode"] == "interpolate" and place.path.is_file():
            whole = identity({key: value for key, value in recipe.items() if key != "frame"})
            found.setdefault(whole, []).append(place)
    return [
        sorted(frames, key=lambda place: place.recipe["frame"])
        for frames in found.values()
        if len(frames) == frames[0].recipe["frames"]
    ]


def write_frames(frames: Sequence[Place]) -> None:
    """A strip and an animation, named as the frames are but for their number."""
    pictures = [read_picture(frame.path) for frame in frames]
    captions = [f"{i + 1} of {len(frames)}" for i in range(len(frames))]
    first = frames[0].path
    before, _, after = first.stem.rpartition("-f000")
    write_strip(first.with_name(f"{before}{after}-frames.png"), pictures, captions)
    write_animation(first.with_name(f"{before}{after}-frames.webp"), pictures)


def write_strip(path: Path, pictures: Sequence[Image.Image], captions: Sequence[str]) -> None:
    """All in one row."""
    sheet = grid(pictures, captions, columns=len(pictures))
    atomically(path, lambda temporary: sheet.save(temporary, format="PNG"))


def write_animation(path: Path, pictures: Sequence[Image.Image]) -> None:
    """A WebP without loss that shows one after the other, the last one for longer."""
    first, *others = [enlarged(picture) for picture in pictures]
    times = [FRAME_MS] * len(others) + [5 * FRAME_MS]
    atomically(
        path,
        lambda temporary: first.save(
            temporary,
            format="WEBP",
            save_all=True,
            append_images=others,
            duration=times,
            loop=0,
            lossless=True,
        ),
    )
