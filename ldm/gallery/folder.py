"""Where in its folder does each picture go, and which ones are there already?"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ldm.gallery.recipes import atomically, identity, read_recipe
from ldm.images import safe_name

log = logging.getLogger(__name__)
MANIFEST = "manifest.jsonl"


@dataclass(frozen=True)
class Place:
    """One picture's file, and whether it needs no drawing."""

    path: Path
    recipe: dict[str, Any]
    done: bool

    def beside(self, ending: str) -> Path:
        """A file that belongs to this picture."""
        return self.path.with_name(f"{self.path.stem}-{ending}")


def plan(
    out: Path,
    recipes: Sequence[Mapping[str, Any]],
    *,
    overwrite: bool = False,
    endings: Sequence[str] = (),
) -> list[Place]:
    """A place for each recipe; one that was asked for twice has one place.

    A file is named after prompt and seed. Where that name holds a picture of another recipe, or one
    of this request has it, a hash of the recipe is added, so that nothing is lost; overwrite draws
    everything again, under the plain names. endings: files beside a picture that it is not finished
    without.
    """
    taken, names = set(), set()  # what recipes are, and the files they have
    places = []
    for recipe in recipes:
        own = identity(recipe)
        base = out / f"{_stem(recipe)}.png"
        hashed = base.with_name(f"{base.stem}-{own}.png")
        if own in taken:
            continue
        there = None if overwrite or not base.exists() else _identity(base)
        free = base not in names and (overwrite or not base.exists() or there == own)
        path = base if free else hashed
        taken.add(own)
        names.add(path)
        place = Place(path, dict(recipe), done=False)
        files = [path, *map(place.beside, endings)]
        done = not overwrite and _identity(path) == own and all(map(Path.is_file, files))
        places.append(Place(path, dict(recipe), done))
    if len(places) < len(recipes):
        log.info("%d pictures are asked for more than once", len(recipes) - len(places))
    return places


def write_manifest(out: Path, places: Sequence[Place]) -> Path:
    """One line a picture of the folder: file, hash of its bytes, recipe.

    Lines of earlier requests stay as long as their files do.
    """
    path = out / MANIFEST
    lines = {entry["file"]: entry for entry in _entries(path) if (out / entry["file"]).is_file()}
    for place in places:
        if place.path.is_file():
            digest = hashlib.blake2b(place.path.read_bytes(), digest_size=20).hexdigest()
            recipe = read_recipe(place.path)
            name = place.path.name
            lines[name] = {"file": name, "blake2b": digest, "recipe": recipe}
    text = "".join(json.dumps(entry, ensure_ascii=False) + "\n" for entry in lines.values())
    atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))
    return path


def _entries(path: Path) -> list[dict[str, Any]]:
    """The lines of a manifest; one that is none of ours is begun anew."""
    try:
        entries = [
            json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line
        ]
        names = [entry["file"] for entry in entries]
    except FileNotFoundError:
        return []
    except (ValueError, TypeError, KeyError, RecursionError):
        log.warning("%s is no manifest; it is written anew", path)
        return []
    plain = all(isinstance(name, str) and Path(name).name == name for name in names)
    return entries if plain else []


def _stem(recipe: Mapping[str, Any]) -> str:
    frame = "" if recipe.get("frame") is None else f"-f{recipe['frame']:03d}"
    return f"{safe_name(recipe['prompt'])}-{recipe['seed']}{frame}"


def _identity(path: Path) -> str | None:
    recipe = read_recipe(path)
    return None if recipe is None else identity(recipe)
