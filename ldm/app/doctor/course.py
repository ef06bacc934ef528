"""How long is the run, how does the learning rate go, and does it fit on the disk?"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from ldm.app.doctor.findings import Chapter
from ldm.page import Facts, Plot, Series
from ldm.parts import build
from ldm.training.optim import lr_factor
from ldm.training.plan import Plan

Config = dict[str, Any]
POINTS = 200
PNG = 0.6  # of the bytes of a picture's pixels
FEW_STEPS = 100


def course(cfg: Config, plan: Plan, job: Any) -> Chapter:
    """Steps, learning rate, average, intervals and disk."""
    chapter = Chapter("Plan")
    optim, ema = build(cfg["training"]["optim"]), build(cfg["training"]["ema"])
    factor = lr_factor(optim, plan.total_samples)
    seen = [round(plan.total_samples * i / POINTS) for i in range(1, POINTS + 1)]
    rates = [optim.lr * factor(samples) for samples in seen]
    facts: dict[str, Any] = {
        "steps": plan.steps,
        "samples": plan.total_samples,
        "epochs": round(plan.epochs, 3),
        "learning rate": optim.summary(),
        "half-life of the EMA": _half_life(ema.half_life, plan),
    }
    for name in ("log", "val", "sample", "save"):
        facts[f"{name}_every"] = _interval(getattr(plan, f"{name}_every"), plan)
    _course_findings(chapter, cfg, plan, optim, ema)
    _disk(chapter, cfg, plan, job, facts)
    chapter.facts |= facts
    chapter.elements += [
        Facts(facts),
        Plot(
            title="Learning rate",
            x_label="samples seen",
            y_label="learning rate",
            series=[Series("lr", [0, *seen], [optim.lr * factor(0), *rates])],
        ),
    ]
    if not chapter.findings:
        chapter.ok(f"{plan.steps:,} steps, {plan.epochs:.2f} epochs")
    return chapter


def _course_findings(chapter: Chapter, cfg: Config, plan: Plan, optim: Any, ema: Any) -> None:
    total = plan.total_samples
    if optim.warmup >= total:
        chapter.warning(
            f"the warm-up takes {optim.warmup:,} samples, the whole run {total:,}",
            "lower training.optim.warmup",
        )
    if ema.half_life is not None and ema.half_life > total / 4:
        chapter.warning(
            f"half of the averaged weights is {ema.half_life:,.0f} samples old, in a run of "
            f"{total:,}",
            f"training.ema.half_life={max(total // 20, 1)} is a twentieth of the run",
        )
    if plan.steps < FEW_STEPS:
        chapter.warning(f"the run has {plan.steps} steps", "raise training.max_samples")
    for name, what in (("val", "validation"), ("sample", "grid of pictures")):
        if getattr(plan, f"{name}_every") > total:
            chapter.warning(
                f"training.{name}_every={getattr(plan, f'{name}_every')} is longer than the run: "
                f"the only {what} is at its end",
                "lower it",
            )


def _disk(chapter: Chapter, cfg: Config, plan: Plan, job: Any, facts: dict[str, Any]) -> None:
    """Checkpoints (one more than are kept: the new one is written first), frozen parts, grids."""
    run_dir = Path(cfg["run_dir"]).absolute()
    folder = next(path for path in (run_dir, *run_dir.parents) if path.exists())
    trained = sum(p.numel() for p in job.module.parameters() if p.requires_grad)
    copies = 3 + (cfg["training"]["ema"]["half_life"] is not None)  # weights, two moments, average
    document = 4 * copies * trained
    frozen = 0
    if job.encoders is not None:
        modules = (job.encoders.codec.vae, job.encoders.text.module)
        frozen = sum(p.numel() * p.element_size() for m in modules for p in m.parameters())
        frozen += 4 * sum(p.numel() for p in job.module.parameters() if not p.requires_grad)
    grids = plan.total_samples // plan.sample_every + 1 if plan.sample_every else 0
    pictures = len(cfg["training"]["callbacks"]["samples"]["prompts"])
    drawn = int(grids * pictures * 3 * PNG * cfg["data"]["size"] ** 2) if job.encoders else 0
    needed = document * (cfg["training"]["keep_checkpoints"] + 1) + frozen + drawn
    free = shutil.disk_usage(folder).free
    facts |= {
        "a checkpoint": _megabytes(document),
        "checkpoints kept": cfg["training"]["keep_checkpoints"],
        "frozen parts": _megabytes(frozen),
        "pictures": f"{_megabytes(drawn)} in {grids} grids",
        "disk needed": _megabytes(needed),
        "disk free": f"{_megabytes(free)} at {folder}",
    }
    chapter.facts |= {"disk_needed_bytes": needed, "disk_free_bytes": free}
    advice = "free some, lower training.keep_checkpoints, or take another run_dir"
    if needed > free:
        chapter.error(
            f"the run needs {_megabytes(needed)}, {folder} has {_megabytes(free)}", advice
        )
    elif needed > 0.8 * free:
        chapter.warning(f"the run takes {needed / free:.0%} of what {folder} has free", advice)


def _half_life(half_life: float | None, plan: Plan) -> str:
    if half_life is None:
        return "no average"
    steps, share = half_life / plan.batch_size, half_life / plan.train_size
    return f"{half_life:,.0f} samples = {steps:,.0f} steps = {share:.2f} epochs"


def _interval(every: int, plan: Plan) -> str:
    return f"{every:,} samples, {plan.total_samples // every} times" if every else "never"


def _megabytes(count: float) -> str:
    return f"{count / 1e9:,.1f} GB" if count >= 1e9 else f"{count / 1e6:,.1f} MB"
