"""What did the command line, a file of prompts or a picture's recipe ask for?"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ldm.gallery.recipes import read_recipe

FILES = ("init_image", "mask")  # keys that name a file


@dataclass(frozen=True)
class Asked:
    """The keys of one request as they were written. where: what to call it in an error."""

    values: dict[str, Any]
    where: str = ""


def asked(given: Mapping[str, Any], keys: Sequence[str]) -> list[Asked]:
    """One request for `prompt` or `recipe`, one a line for `prompts`; None is what is not given.

    keys: those that say something of a picture. A line of a text file is a prompt, to the letter.
    A line of a .jsonl file is an object of such keys, which beat the command line's; its files are
    named as seen from its own folder. The command line's keys beat a recipe's.

    Raises ValueError, FileNotFoundError.
    """
    line = {key: given[key] for key in keys if given[key] is not None}
    sources = [name for name in ("prompt", "prompts", "recipe") if given[name] is not None]
    if sources not in (["prompt"], ["prompts"], ["recipe"], ["prompt", "recipe"]):
        raise ValueError(
            'give prompt="...", prompts=FILE or recipe=PICTURE (one of them; a prompt beside a '
            "recipe replaces the recipe's)"
        )
    if given["recipe"] is not None:
        recipe = _recipe(Path(given["recipe"]))
        return [Asked({**{k: v for k, v in recipe.items() if k in keys}, **line})]
    if given["prompts"] is None:
        return [Asked(line)]
    path = Path(given["prompts"])
    rows = _rows(path)
    if not rows:
        raise ValueError(f"prompts={path} holds no prompt; write one a line")
    return [Asked({**line, **row.values}, row.where) for row in rows]


def _recipe(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise FileNotFoundError(f"recipe={path} does not exist; give a PNG that sample.py wrote")
    recipe = read_recipe(path)
    if recipe is None:
        raise ValueError(
            f"recipe={path} holds no recipe; give a PNG that sample.py wrote, as it wrote it "
            "(editors and messengers drop what is beside the pixels)"
        )
    return recipe


def _rows(path: Path) -> list[Asked]:
    if not path.is_file():
        raise FileNotFoundError(f"prompts={path} does not exist; give a file of one prompt a line")
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"prompts={path} is not UTF-8 text (byte {error.start})") from None
    # not splitlines(), which also splits at characters that a prompt may hold
    lines = [line.removesuffix("\r") for line in text.split("\n")]
    numbered = [(i, line) for i, line in enumerate(lines, 1) if line.strip()]
    if path.suffix.lower() not in (".jsonl", ".ndjson", ".json"):
        return [Asked({"prompt": line}, f"{path.name}:{i}") for i, line in numbered]
    problems, rows = [], []
    for i, line in numbered:
        try:
            values = json.loads(line)
        except (ValueError, RecursionError) as error:
            problems.append(f"{path.name}:{i} is no JSON: {error}")
            continue
        if not isinstance(values, dict):
            problems.append(f'{path.name}:{i} is no object; write {{"prompt": "..."}}')
            continue
        given = {key: value for key, value in values.items() if value is not None}
        for key in FILES:
            if isinstance(given.get(key), str):
                given[key] = str(path.parent / given[key])
        rows.append(Asked(given, f"{path.name}:{i}"))
    if problems:
        raise ValueError("\n".join(problems))
    return rows
