"""What does a small evaluation's folder look like? Written for the tests of its page."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ldm.data.shapes import EASY, render, scenes

Draw = Callable[[Sequence[str], Sequence[int], dict[str, Any]], list[Image.Image]]
METRICS = {
    "fid": ("lower", 3.0, None),
    "kid": ("lower", 0.012, 0.002),
    "clip_score": ("higher", 24.0, 0.7),
    "recall": ("higher", 0.61, None),
}
EDGES = [0.0, 0.25, 0.5, 0.75, 1.0]


def renders(
    captions: Sequence[str], seeds: Sequence[int], facts: dict[str, Any]
) -> list[Image.Image]:
    """Pictures without a model: true ones, with noise where the guidance is low."""
    drawn = render(scenes(EASY, seed=7, index=list(seeds)), side_px=32)
    noise = np.random.default_rng(0).normal(0, 60 / facts["guidance"], drawn.shape)
    return [Image.fromarray(p) for p in (drawn + noise).clip(0, 255).astype(np.uint8)]


def entry(name: str, **facts: Any) -> dict[str, Any]:
    """The facts of an entry that differs from the others in `facts`."""
    usual = {
        "weights": "ema",
        "samples_seen": 40_000,
        "sampler": "ddim",
        "steps": 25,
        "guidance": 5.0,
    }
    words = [name, *map(str, facts.values())]
    return {"id": "-".join(words), "checkpoint": f"runs/{name}", "name": name, **usual, **facts}


def write_example(
    folder: Path, entries: Sequence[dict[str, Any]], *, count: int = 16, draw: Draw = renders
) -> dict[str, Any]:
    """All files of an evaluation of these entries; returns metrics.json, to be changed."""
    captions = [EASY.caption(scene) for scene in scenes(EASY, seed=7, index=range(count))]
    for number, one in enumerate(entries):
        pictures = draw(captions, list(range(count)), one)
        one["metrics"] = {name: _metric(name, number) for name in METRICS}
        one["pictures"] = f"pictures/{one['id']}"
        one["strips"] = [f"strips/{one['id']}/{k}.png" for k in range(2)]
        _write_pictures(folder / one["pictures"], pictures, captions)
        for name, picture in zip(one["strips"], pictures, strict=False):
            _save(_strip(picture), folder / name)
        _write_training(folder / f"training/{one['id']}.csv", one["name"])
    document = {
        "format": "ldm-evaluation/1",
        "made": {"ldm": "0.1.0", "torch": "2.13.0", "device": "cpu"},
        "protocol": {
            "data": "shapes",
            "samples": count,
            "size": [32, 32],
            "extractor": "tiny",
            "seeds": [0, count - 1],
        },
        "entries": list(entries),
        "loss_by_time": {
            "edges": EDGES,
            "entries": {one["id"]: _losses(number) for number, one in enumerate(entries)},
        },
        "paired": _paired(entries),
        "sweep": None,
        "training": {one["id"]: f"training/{one['id']}.csv" for one in entries},
        "counts": {"corrupt": 0},
        "notes": [],
    }
    save(folder, document)
    return document


def save(folder: Path, document: dict[str, Any]) -> None:
    """metrics.json."""
    (folder / "metrics.json").write_text(json.dumps(document, ensure_ascii=False), encoding="utf-8")


def _metric(name: str, number: int) -> dict[str, Any]:
    """Each next entry is 30 % worse."""
    better, value, half = METRICS[name]
    value = value * (1.3**number if better == "lower" else 0.7**number)
    ends = (None, None) if half is None else (value - half, value + half)
    return {"value": value, "low": ends[0], "high": ends[1], "better": better, "samples": 16}


def _write_pictures(folder: Path, pictures: Sequence[Image.Image], captions: Sequence[str]) -> None:
    folder.mkdir(parents=True)
    lines = []
    for i, (picture, caption) in enumerate(zip(pictures, captions, strict=True)):
        picture.save(folder / f"{i:06d}.png")
        record = {"file": f"{i:06d}.png", "index": i, "caption": caption, "seed": i}
        judge = {"colour": "red", "shape": "star", "right": i % 5 > 0}
        lines.append(json.dumps({**record, "clip_score": 20 + (7 * i) % 16 / 2, "judge": judge}))
    (folder / "records.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


def _strip(picture: Image.Image) -> Image.Image:
    """Eight states from grey to the picture."""
    grey = Image.new("RGB", picture.size, "gray")
    strip = Image.new("RGB", (8 * picture.width, picture.height))
    for k in range(8):
        strip.paste(Image.blend(grey, picture, k / 7), (k * picture.width, 0))
    return strip


def _save(picture: Image.Image, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.save(path)


def _write_training(path: Path, name: str) -> None:
    """One curve a run."""
    number = len(name)
    path.parent.mkdir(exist_ok=True)
    rows = [f"{n},{0.1 + 1 / (n / 4000 + 1 + number):.5f}," for n in range(640, 40_001, 640)]
    rows[-1] += f"{0.2 + number / 50:.3f}"
    rows[len(rows) // 2] += f"{0.25 + number / 50:.3f}"
    path.write_text("\n".join(["samples_seen,train/loss,val/loss_ema", *rows]), encoding="utf-8")


def _losses(number: int) -> dict[str, list[float]]:
    mean = [0.9 + 0.05 * number, 0.4 + 0.02 * number, 0.12, 0.02]
    return {"mean": mean, "low": [0.93 * m for m in mean], "high": [1.07 * m for m in mean]}


def _paired(entries: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    return [
        {
            "a": entries[0]["id"],
            "b": other["id"],
            "quantity": "loss",
            "difference": 0.012,
            "low": 0.009,
            "high": 0.015,
            "text": f"{entries[0]['name']} has a lower loss than {other['name']} by 0.012 ± 0.003",
        }
        for other in entries[1:]
    ]
