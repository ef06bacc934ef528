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
    """Draws what is asked for into a folder, on any number of devices."""
    raise_all(check_drawing(cfg, "sample"))
    from ldm.app.pictures import draw_wishes
    from ldm.app.recipes import EXPECTED, read_wishes
    from ldm.training.launch import launch

    try:
        wishes = read_wishes(cfg)
        with launch(cfg["devices"], cfg["device"]) as processes:
            try:
                draw_wishes(cfg, wishes, processes)
            except ConfigError:
                if processes.rank == 0:  # says it for all
                    raise
    except EXPECTED as error:
        raise ConfigError(str(error)) from error
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
