"""Has a model learnt something new from a few pictures, and what has it forgotten?

    python docs/finetuning/few_pictures.py draw house data/house    # 12 pictures of a new object
    python docs/finetuning/few_pictures.py draw chalk data/chalk    # 96 pictures in a new style
    python docs/finetuning/few_pictures.py score house tiny runs/tiny_lora     # a table

The object is a house, which the shapes data does not have: a blue wall, a red roof, a yellow door.
The style is the shapes data in chalk: pale, soft, on cream; its captions do not say so. A drawn
picture counts as new when of 384 new and 768 old pictures that no model was trained on the nearest
(squared difference of pixels) is a new one. What is remembered of the old is the shapes judge's
share of right pictures over all captions of the shapes data, 4 seeds each.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw
from rich.console import Console
from rich.table import Table

import ldm
from ldm import rng
from ldm.data.shapes import EASY, render, scenes
from ldm.evaluation.shapes_judge import score as judge
from ldm.images import grid

SIDE, FINE = 32, 8  # px; houses are drawn FINE times larger, then averaged
WALL, ROOF, DOOR = (40, 90, 220), (220, 40, 40), (250, 200, 40)
COUNTS = {"house": 12, "chalk": 96}
UNSEEN = 1000  # pictures from this number on are no training pictures
NEW, OLD = 384, 768  # pictures that a drawn one is compared with


def house(number: int) -> Image.Image:
    """A house of its own size and place; a pure function of the number."""
    u = rng.uniform(7, "house", torch.tensor([3 * number, 3 * number + 1, 3 * number + 2]))
    radius = 0.24 + 0.14 * float(u[0])
    x, y = (0.5 + 0.12 * (float(v) - 0.5) for v in u[1:])
    side = SIDE * FINE
    image = Image.new("RGB", (side, side), "white")
    pen = ImageDraw.Draw(image)

    def at(dx: float, dy: float) -> tuple[float, float]:
        return side * (x + dx * radius), side * (y + dy * radius)

    pen.rectangle([at(-0.75, -0.1), at(0.75, 1.0)], fill=WALL)
    pen.polygon([at(-1.05, -0.1), at(1.05, -0.1), at(0.0, -1.05)], fill=ROOF)
    pen.rectangle([at(-0.22, 0.35), at(0.22, 1.0)], fill=DOOR)
    return image.resize((SIDE, SIDE), Image.Resampling.BOX)


def old(number: int, count: int) -> tuple[list[Image.Image], list[str]]:
    """Pictures of the shapes data with their captions, from this number on."""
    found = scenes(EASY, seed=99, index=range(number, number + count))
    pixels = render(found, side_px=SIDE)
    return [Image.fromarray(p) for p in pixels], [EASY.caption(scene) for scene in found]


def in_chalk(picture: Image.Image) -> Image.Image:
    """Pale colours and soft edges on a cream ground."""
    pixels = np.asarray(picture).astype(np.float64) / 255
    padded = np.pad(pixels, ((1, 1), (1, 1), (0, 0)), mode="edge")
    soft = sum(padded[y : y + SIDE, x : x + SIDE] for y in range(3) for x in range(3)) / 9
    pale = (0.45 + 0.55 * soft) * np.array([1.0, 0.97, 0.88])
    return Image.fromarray((pale.clip(0, 1) * 255).round().astype(np.uint8))


def new(what: str, number: int, count: int) -> tuple[list[Image.Image], list[str]]:
    if what == "house":
        return [house(number + i) for i in range(count)], ["a house"] * count
    pictures, captions = old(number, count)
    return [in_chalk(picture) for picture in pictures], captions


def write(what: str, folder: Path, count: int, caption: str | None) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for number, (picture, said) in enumerate(zip(*new(what, 0, count), strict=True)):
        picture.save(folder / f"{what}-{number:03d}.png")
        (folder / f"{what}-{number:03d}.txt").write_text((caption or said) + "\n")


def share_of_new(what: str, images: list[Image.Image]) -> float:
    """By the nearest neighbour among pictures that nobody was trained on."""
    bank = [*new(what, UNSEEN, NEW)[0], *old(UNSEEN, OLD)[0]]
    known, drawn = (
        torch.from_numpy(np.stack([np.asarray(i) for i in some])).flatten(1).float()
        for some in (bank, images)
    )
    return float((torch.cdist(drawn, known).argmin(1) < NEW).double().mean())


def score(
    what: str, models: list[str], adapters: list[str], prompt: str | None, count: int
) -> list[dict[str, Any]]:
    rows = []
    for place in models:
        pipe = ldm.load(place)
        for path in adapters:
            pipe.attach(path)
        captions = list(EASY.captions)
        prompts = [prompt or "a house"] * count if what == "house" else captions
        drawn = pipe.txt2img(prompts, seeds=range(len(prompts)))
        rows.append({"model": place, "new": share_of_new(what, drawn)})
        if what == "house":  # a style has changed the old captions' pictures, on purpose
            before = pipe.txt2img(captions * 4, seeds=range(4 * len(captions)))
            rows[-1]["old"] = judge(before, captions * 4).all
            drawn, prompts = (
                [*drawn[:8], *before[::9][:8]],
                [*prompts[:8], *(captions * 4)[::9][:8]],
            )
        grid(drawn[:16], prompts[:16], columns=8).save(f"{Path(place).name}-{what}.png")
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    verbs = parser.add_subparsers(dest="verb", required=True)
    drawing = verbs.add_parser("draw", help="writes training pictures")
    drawing.add_argument("what", choices=list(COUNTS))
    drawing.add_argument("folder", type=Path)
    drawing.add_argument("--count", type=int)
    drawing.add_argument("--caption", help="instead of the usual one")
    scoring = verbs.add_parser("score", help="prints a table and writes a sheet of each model")
    scoring.add_argument("what", choices=list(COUNTS))
    scoring.add_argument("models", nargs="+", help="as of checkpoint=")
    scoring.add_argument("--adapter", nargs="*", default=[])
    scoring.add_argument("--prompt", help="for the new object; a house")
    scoring.add_argument("--count", type=int, default=64, help="pictures of the new object")
    scoring.add_argument("--json", type=Path)
    args = parser.parse_args()
    if args.verb == "draw":
        write(args.what, args.folder, args.count or COUNTS[args.what], args.caption)
        return
    rows = score(args.what, args.models, args.adapter, args.prompt, args.count)
    table = Table("model", f"{args.what}: new", "old captions right")
    for row in rows:
        kept = f"{row['old']:.1%}" if "old" in row else "–"
        table.add_row(row["model"], f"{row['new']:.1%}", kept)
    Console().print(table)
    if args.json:
        args.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
