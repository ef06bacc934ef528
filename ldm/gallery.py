"""Which pictures were asked for, and how are they kept with the recipe that made them?"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from PIL import Image
from PIL.PngImagePlugin import PngInfo
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from ldm.images import grid, safe_name


def requests(
    prompt: str | None, prompts: str | None, *, seed: int, seeds: list[int] | None, n: int
) -> tuple[list[str], list[int]]:
    """Prompts and seeds, one each a picture: every prompt with every seed.

    prompts: a text file with one prompt a line. Raises ValueError, FileNotFoundError.
    """
    if (prompt is None) == (prompts is None):
        raise ValueError('give prompt="..." or prompts=FILE (one of them)')
    texts = [prompt or ""]
    if prompts is not None:
        lines = Path(prompts).read_text(encoding="utf-8").splitlines()
        texts = [line.strip() for line in lines if line.strip()]
        if not texts:
            raise ValueError(f"prompts={prompts} holds no prompt; write one a line")
    if n < 1:
        raise ValueError(f"n={n}; give 1 or more pictures a prompt")
    chosen = seeds if seeds is not None else [seed + k for k in range(n)]
    if not chosen:
        raise ValueError("seeds=[] names no picture; give at least one seed")
    return [text for text in texts for _ in chosen], [s for _ in texts for s in chosen]


def save(
    out: Path,
    images: Sequence[Image.Image],
    prompts: Sequence[str],
    seeds: Sequence[int],
    recipe: Mapping[str, Any],
) -> list[Path]:
    """PNGs named after prompt and seed, the recipe in their metadata; a captioned grid as well."""
    out.mkdir(parents=True, exist_ok=True)
    paths = []
    for image, prompt, seed in zip(images, prompts, seeds, strict=True):
        info = PngInfo()
        info.add_itxt(
            "ldm", json.dumps({**recipe, "prompt": prompt, "seed": seed}, ensure_ascii=False)
        )
        paths.append(out / f"{safe_name(prompt)}-{seed}.png")
        image.save(paths[-1], pnginfo=info)
    if len(images) > 1:
        captions = [f"{prompt} ({seed})" for prompt, seed in zip(prompts, seeds, strict=True)]
        paths.append(out / "grid.png")
        grid(list(images), captions).save(paths[-1])
    return paths


@contextmanager
def progress_bar(name: str, total: int) -> Iterator[Callable[[int, int], None]]:
    """A rich bar; gives the function that moves it."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(name, total=total)
        yield lambda done, _: bar.update(task, completed=done)
