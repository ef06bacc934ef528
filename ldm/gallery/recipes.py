"""How does a picture carry the recipe that made it?

The recipe is a JSON object in the PNG's text chunk `ldm`.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from PIL import Image
from PIL.PngImagePlugin import PngInfo

FORMAT = "ldm-recipe/1"
CHUNK = "ldm"
# where things lay and what computed it, which is not what the picture is
CIRCUMSTANCES = ("checkpoint", "init_image", "mask", "made_with")
TEXTS = ("checkpoint", "weights", "dtype", "model", "init_image_hash", "mask_hash")


def write_picture(path: Path, image: Image.Image, recipe: Mapping[str, Any]) -> None:
    """A PNG with its recipe: whole or not at all."""
    info = PngInfo()
    info.add_itxt(CHUNK, json.dumps({"format": FORMAT, **recipe}, ensure_ascii=False))
    atomically(path, lambda temporary: image.save(temporary, format="PNG", pnginfo=info))


def read_recipe(path: Path) -> dict[str, Any] | None:
    """The recipe of a PNG, which anyone may have written; None where there is none to be read."""
    try:
        with Image.open(path, formats=("PNG",)) as image:
            recipe = json.loads(image.info[CHUNK])  # stands before the pixels: they are not decoded
    except (OSError, SyntaxError, ValueError, KeyError, TypeError, RecursionError):
        return None
    known = isinstance(recipe, dict) and recipe.get("format") == FORMAT
    if not known or not all(isinstance(recipe.get(key, ""), str) for key in TEXTS):
        return None
    return {key: value for key, value in recipe.items() if key != "format"}


def identity(recipe: Mapping[str, Any]) -> str:
    """A hash of what the picture is: equal recipes, equal pictures."""
    kept = {key: value for key, value in recipe.items() if key not in CIRCUMSTANCES}
    text = json.dumps(kept, sort_keys=True, ensure_ascii=True)
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def atomically(path: Path, write: Callable[[Path], object]) -> None:
    """`write` to a file beside path, which then takes its place."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{os.getpid()}-{path.name}.tmp")
    try:
        write(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
