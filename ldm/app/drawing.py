"""What do `sample` and `evaluate` do with a model?"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from rich.console import Console

from ldm.cli import ConfigError
from ldm.gallery import progress_bar
from ldm.parts import check_drawing, raise_all

log = logging.getLogger(__name__)
Config = dict[str, Any]


def sample(cfg: Config) -> int:
    """Draws pictures for one prompt or a file of prompts, with a captioned grid."""
    raise_all(check_drawing(cfg, "sample"))
    from ldm import gallery, pipeline

    try:
        prompts, seeds = gallery.requests(
            cfg["prompt"], cfg["prompts"], seed=cfg["seed"], seeds=cfg["seeds"], n=cfg["n"]
        )
        pipe = pipeline.load(
            cfg["checkpoint"], weights=cfg["weights"], device=cfg["device"], dtype=cfg["dtype"]
        )
        recipe = {
            "steps": cfg["steps"] or pipe.defaults.steps,
            "sampler": cfg["sampler"] or pipe.defaults.sampler,
            "guidance": pipe.defaults.guidance if cfg["guidance"] is None else cfg["guidance"],
            "negative_prompts": cfg["negative_prompt"],
            "size": (
                cfg["height"] or pipe.defaults.size[0],
                cfg["width"] or pipe.defaults.size[1],
            ),
        }
        with progress_bar("sampling", len(prompts)) as advance:
            images = pipe.txt2img(
                prompts, seeds, **recipe, batch_size=cfg["batch_size"], progress=advance
            )
    except (ValueError, FileNotFoundError) as error:
        raise ConfigError(str(error)) from error
    recipe |= {"checkpoint": cfg["checkpoint"], "weights": pipe.weights}
    for path in gallery.save(Path(cfg["out"]), images, prompts, seeds, recipe):
        log.info("%s", path)
    return 0


def evaluate(cfg: Config) -> int:
    """Draws every caption of the shapes data with new seeds and lets the judge score them."""
    raise_all(check_drawing(cfg, "evaluate"))
    from ldm import pipeline
    from ldm.evaluation import report

    names = [cfg["checkpoint"], *([cfg["compare"]] if cfg["compare"] else [])]
    request = report.Request(
        seeds=cfg["seeds"],
        first_seed=cfg["first_seed"],
        draw={key: cfg[key] for key in ("steps", "sampler", "guidance", "batch_size")},
    )
    scores: dict[str, report.Scored] = {}
    try:
        for name in names:
            pipe = pipeline.load(name, weights=cfg["weights"], device=cfg["device"])
            with progress_bar(f"sampling {name}", request.count) as advance:
                scores[name] = report.score_model(pipe, request, progress=advance)
        tables = report.tables(pipe.codec, scores, run=Path(cfg["checkpoint"]), device=pipe.device)
    except (ValueError, FileNotFoundError) as error:
        raise ConfigError(str(error)) from error
    console = Console()
    for table in tables:
        console.print(table)
    path = report.write(Path(cfg["out"]), scores, tables)
    console.print(f"sample grid: {path}", highlight=False, soft_wrap=True)
    return 0
