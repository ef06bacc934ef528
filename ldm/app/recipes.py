"""Which pictures are asked for, and what is the whole recipe of each?"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from dataclasses import asdict, fields, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from ldm import gallery, pipeline
from ldm.gallery import Wish
from ldm.images import read_mask, read_picture
from ldm.models.dtypes import DTYPES
from ldm.parts import PICTURE, check_picture, raise_all
from ldm.pipeline import Pipeline, SamplingOptions
from ldm.pipeline.inputs import size_problems
from ldm.pipeline.tiles import is_tiled

Config = dict[str, Any]
DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}
OPTIONS = tuple(field.name for field in fields(SamplingOptions))
EXPECTED = (ValueError, OSError, MemoryError)  # the user's to mend: one line, no traceback


def read_wishes(cfg: Config) -> list[Wish]:
    """Every picture that is asked for. Opens all images, so what is wrong is said at once."""
    problems, found = [], []
    for request in gallery.asked(cfg, tuple(PICTURE)):
        wrong = check_picture(request.values)
        if not wrong:
            try:
                found += gallery.wishes(request.values)
            except ValueError as error:
                wrong = str(error).splitlines()
        problems += [f"{request.where}: {line}" if request.where else line for line in wrong]
    measure = lru_cache(maxsize=None)(_size)  # one image may serve for thousands of pictures
    sized = [_sized(wish, measure) for wish in found]
    problems += [problem for _, wrong in sized for problem in wrong]
    raise_all(list(dict.fromkeys(problems)))
    return [wish for wish, _ in sized]


def load_recipes(cfg: Config, wishes: list[Wish], device: str) -> tuple[Pipeline, list[Config]]:
    """The model, and the recipe of every picture. Raises ValueError with all problems."""
    kept = _kept(cfg)
    asked = {key: cfg[key] or kept.get(key) for key in ("checkpoint", "weights", "dtype")}
    checkpoint = asked["checkpoint"] or "tiny"
    pipe = pipeline.load(
        checkpoint, weights=asked["weights"] or "ema", device=device, dtype=asked["dtype"] or "auto"
    )
    adapters = asked_adapters(
        kept.get("adapters") or [] if cfg["adapter"] is None else cfg["adapter"]
    )
    for path, strength in adapters:
        pipe.attach(path, strength=strength, name=path)
    model = pipe.fingerprint()
    own = {
        "checkpoint": checkpoint,
        "weights": pipe.weights,
        "dtype": DTYPE_NAMES[next(pipe.unet.parameters()).dtype],
        "model": model,
        **(
            {"adapters": [f"{path}:{strength!r}" for path, strength in adapters]}
            if adapters
            else {}
        ),
    }
    digest = lru_cache(maxsize=None)(_hash)
    recipes = [{**_recipe(wish, pipe, digest), **own} for wish in wishes]
    problems = []
    for recipe in recipes:
        problems += size_problems((recipe["height"], recipe["width"]), pipe.codec.factor)
    own_model = all(cfg[key] is None for key in (*asked, "adapter"))
    if own_model and kept.get("model", model) != model:
        problems.append(
            f"{checkpoint} holds another model than the one that drew {cfg['recipe']}; give "
            "checkpoint=... of that one, or of this one to draw the recipe with it"
        )
    for key in gallery.FILES:
        said = kept.get(f"{key}_hash")
        if said is not None and cfg[key] is None and said != recipes[0].get(f"{key}_hash"):
            problems.append(
                f"{key}={recipes[0].get(key)} is not the file that {cfg['recipe']} was made from; "
                f"give {key}=... of that one, or of this one to draw the recipe with it"
            )
    if problems:
        raise ValueError("\n".join(dict.fromkeys(problems)))
    return pipe, recipes


def asked_adapters(given: str | list[str]) -> list[tuple[str, float]]:
    """`path` or `path:strength`, one or many. Raises ValueError with everything that is wrong."""
    found, problems = [], []
    for text in [given] if isinstance(given, str) else given:
        path, colon, number = text.rpartition(":")
        try:
            found.append((path, float(number)) if colon else (text, 1.0))
        except ValueError:
            found.append((text, 1.0))  # a path with a colon in it
    for path, strength in found:
        if not math.isfinite(strength):
            problems.append(f"adapter={path}:{strength}; give a finite strength, 1 as trained")
        if not Path(path).expanduser().exists():
            problems.append(f"adapter={path} does not exist; give path or path:strength")
    paths = [path for path, _ in found]
    problems += [f"adapter={path} is given twice" for path in set(paths) if paths.count(path) > 1]
    if problems:
        raise ValueError("\n".join(problems))
    return found


def _kept(cfg: Config) -> Config:
    """What a recipe says of the model and its files; nothing without a recipe."""
    return (gallery.read_recipe(Path(cfg["recipe"])) or {}) if cfg["recipe"] else {}


def asked_batch(cfg: Config) -> Any:
    """A recipe is drawn in a batch of the same size: then the bits are the same."""
    made_with = _kept(cfg).get("made_with")
    kept = made_with.get("batch_size") if isinstance(made_with, dict) else None
    return cfg["batch_size"] or kept or "auto"


def _recipe(wish: Wish, pipe: Pipeline, digest: Callable[[str], str]) -> Config:
    """All that makes the picture, with every default filled in."""
    given = asdict(wish)
    options = SamplingOptions(**{name: given[name] for name in OPTIONS})
    settled = asdict(options.settled(pipe.defaults).options())
    height, width = (
        given[key] or side
        for key, side in zip(("height", "width"), pipe.defaults.size, strict=True)
    )
    positions = height * width // pipe.codec.factor**2
    recipe = {
        **given,
        **settled,
        "height": height,
        "width": width,
        "tiled": is_tiled(positions, wish.tiled),
        **{f"{key}_hash": digest(given[key]) for key in gallery.FILES if given[key] is not None},
    }
    return {key: _typed(key, value) for key, value in recipe.items() if value is not None}


def _typed(key: str, value: Any) -> Any:
    """5 and 5.0 are one recipe."""
    return float(value) if PICTURE.get(key) == float | None else value


def _sized(wish: Wish, measure: Callable[[str, bool], tuple[int, int]]) -> tuple[Wish, list[str]]:
    """With the size of its image, where none is given; and what is wrong with its files."""
    problems: list[str] = []
    sizes: dict[str, tuple[int, int]] = {}
    for key in gallery.FILES:
        path = getattr(wish, key)
        try:
            sizes |= {} if path is None else {key: measure(path, key == "mask")}
        except EXPECTED as error:
            problems.append(f"{key}={error}")
    if "init_image" not in sizes:
        return wish, problems
    height, width = sizes["init_image"]
    mask_height, mask_width = sizes.get("mask", (height, width))
    if (mask_height, mask_width) != (height, width):
        problems.append(
            f"mask={wish.mask} is {mask_width}x{mask_height} px, init_image={wish.init_image} "
            f"{width}x{height}; give a mask of the image's size"
        )
    return replace(wish, height=wish.height or height, width=wish.width or width), problems


def _size(path: str, is_mask: bool) -> tuple[int, int]:
    picture = read_mask(path) if is_mask else read_picture(path)
    return picture.height, picture.width


def _hash(path: str) -> str:
    return hashlib.blake2b(Path(path).read_bytes(), digest_size=8).hexdigest()
