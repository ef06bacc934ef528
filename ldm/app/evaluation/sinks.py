"""How do the numbers of an evaluation reach TensorBoard or wandb?"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from ldm.app.evaluation.comparing import Found
from ldm.images import read_picture
from ldm.training.loggers import LoggerSettings, build_loggers, close_loggers, log_images

SHOWN = 16  # pictures of each entry


def log_entries(kind: str, out: Path, found: Sequence[Found], captions: Sequence[str]) -> None:
    """Every metric as `eval/…` at the samples its model has seen; several entries of equal samples
    seen go under their ids."""
    settings = LoggerSettings(tensorboard=kind == "tensorboard", wandb=kind == "wandb")
    loggers = build_loggers(
        settings, out / "logs", name=out.name, run_id=f"evaluation-{out.name}", resume_from=0
    )
    steps = Counter(entry.facts["samples_seen"] for entry in found)
    one_curve = max(steps.values()) == 1
    for entry in sorted(found, key=lambda part: part.facts["samples_seen"] or 0):
        step = entry.facts["samples_seen"] or 0
        prefix = "eval" if one_curve else f"eval/{entry.id}"
        row = {f"{prefix}/{name}": value.value for name, value in entry.metrics.items()}
        for logger in loggers:
            logger.log_metrics({"samples_seen": float(step), **row}, step=step)
        paths = sorted((out / "pictures" / entry.id).glob("*.png"))[:SHOWN]
        images = [read_picture(path) for path in paths]
        log_images(loggers, f"{prefix}/pictures", images, list(captions[: len(images)]), step)
    for logger in loggers:
        logger.finalize("success")
    close_loggers(loggers)
