"""What does `train` do: check, start or resume, plan, fit?"""

from __future__ import annotations

import logging
import signal
from pathlib import Path
from typing import Any

import yaml
from hydra.errors import InstantiationException
from rich.console import Console

from ldm.app.adapting import trained_problems
from ldm.app.beginning import beginning_problems
from ldm.app.evaluation.request import evaluation_problems
from ldm.app.job import Job, build_job, describe_plan
from ldm.app.prior import draw_class_pictures, prior_problems
from ldm.app.startup import without_sweeps
from ldm.app.support import supported
from ldm.cli import ConfigError
from ldm.parts import build, check_train, raise_all, reason

log = logging.getLogger(__name__)
Config = dict[str, Any]
REQUEUE = 75


def train(cfg: Config) -> int:
    """Trains what the configuration says. Returns the exit code: 0, or 75 to be started again."""
    with without_sweeps():  # the check builds every part, and so imports what they need
        problems = (
            check_train(cfg)
            + beginning_problems(cfg)
            + trained_problems(cfg)
            + prior_problems(cfg)
            + evaluation_problems(cfg)
        )
    raise_all(problems)
    from ldm.training import run_folder, run_lock

    cfg, fallbacks = supported(cfg)
    run_dir = Path(cfg["run_dir"])
    try:
        start = run_folder.find_start(run_dir, cfg["resume"], cfg["init_from"])
        draw_class_pictures(cfg)
        job = build_job(cfg, start.checkpoint)
        if start.checkpoint is not None:
            raise_all(run_folder.resume_problems(job.card, cfg, start.checkpoint))
    except (ValueError, FileNotFoundError, InstantiationException) as error:
        raise ConfigError(reason(error)) from error
    if start.samples >= job.plan.total_samples:
        log.info("%s is finished: %d samples seen", run_dir, start.samples)
        _tidy(run_dir, start.checkpoint)
        return 0
    if fallbacks:
        job.card["fallbacks"] = [fallback.plain() for fallback in fallbacks]
    job.card["run_id"] = run_folder.run_id(cfg["name"], start.checkpoint)
    text = describe_plan(cfg, job, start.samples)
    if not run_folder.is_main_process():
        return _fit_and_part(cfg, job, start, text)
    try:
        run_lock.acquire(run_dir)  # before anything in the folder is touched
    except run_lock.RunLockedError as error:
        raise ConfigError(str(error)) from error
    try:
        Console(stderr=True).print(text, highlight=False)
        run_folder.write_folder(run_dir, job.card, yaml.safe_dump(cfg, sort_keys=False), text)
        job.save_frozen(run_dir / "frozen")
        return _fit_and_part(cfg, job, start, text)
    finally:
        run_lock.release(run_dir)


def _tidy(run_dir: Path, checkpoint: Path) -> None:
    """What a process that was killed right after its last checkpoint has left to do."""
    from ldm.io import checkpoint as files
    from ldm.training import run_folder, run_lock

    folder, newest = run_dir / "checkpoints", checkpoint.resolve()
    pointed = (folder / "last.ckpt").resolve()
    others = files.list_checkpoints(folder.resolve())[-1:] != [newest]
    if others or pointed == newest or not run_folder.is_main_process():
        return
    try:
        run_lock.acquire(run_dir)
    except run_lock.RunLockedError as error:
        raise ConfigError(str(error)) from error
    files.clean_stale(folder)
    files.point_last(folder / newest.name)
    run_lock.release(run_dir)


def _fit_and_part(cfg: Config, job: Job, start: Any, plan_text: str) -> int:
    from ldm.training.launch import part

    code = _fit(cfg, job, start, plan_text)
    part()  # here, where the trainer is no more
    return code


def _fit(cfg: Config, job: Job, start: Any, plan_text: str) -> int:
    from ldm.training.callbacks.checkpointing import RunCheckpoint
    from ldm.training.callbacks.curves import Curves
    from ldm.training.callbacks.metrics import Metrics
    from ldm.training.callbacks.progress import SamplesProgress
    from ldm.training.callbacks.validation import Validation
    from ldm.training.datamodule import DataModule
    from ldm.training.loggers import build_loggers, close_loggers, log_texts
    from ldm.training.trainer import build_trainer

    training, run_dir = cfg["training"], Path(cfg["run_dir"])
    loggers = build_loggers(
        build(training["logger"]),
        run_dir,
        name=cfg["name"],
        run_id=job.card["run_id"],
        resume_from=start.samples,
    )
    checkpoints = RunCheckpoint(run_dir / "checkpoints", keep=training["keep_checkpoints"])
    callbacks: list[Any] = [
        Metrics(job.data.quarantine(run_dir)),
        SamplesProgress(),
        Curves(run_dir),
    ]
    callbacks.append(Validation(build(training["callbacks"]["validation"]), job.data))
    if job.encoders is not None and job.plan.sample_every:
        callbacks.append(sample_grid(cfg, job, run_dir, loggers))
    if job.encoders is not None and training["callbacks"]["evaluation"]["every"] is not None:
        from ldm.app.evaluation.training import evaluation_callback

        callbacks.append(evaluation_callback(cfg, job.data, pipeline_of(job), checkpoints))
    callbacks.append(checkpoints)
    trainer = build_trainer(
        build(training["trainer"]), job.plan, callbacks=callbacks, loggers=loggers, run_dir=run_dir
    )
    log_texts(loggers, cfg, plan_text)
    try:
        trainer.fit(job.module, DataModule(job.data), ckpt_path=start.checkpoint)
    except BaseException:
        if trainer.is_global_zero and trainer.world_size > 1 and trainer.strategy.launcher:
            trainer.strategy.launcher.kill(signal.SIGKILL)  # a hanging child would stay an orphan
        raise
    close_loggers(loggers)
    return REQUEUE if checkpoints.preempted else 0


def sample_grid(cfg: Config, job: Job, run_dir: Path, loggers: list[Any]) -> Any:
    from functools import partial

    from ldm.training.callbacks.inpainting import InpaintGrid
    from ldm.training.callbacks.sampling import SampleGrid
    from ldm.training.loggers import log_images

    settings = build(cfg["training"]["callbacks"]["samples"])
    sink = partial(log_images, loggers)
    pipeline, folder = pipeline_of(job), run_dir / "samples"
    if job.encoders.inpainting is not None and job.data.val_size:
        return InpaintGrid(pipeline, folder, settings, data=job.data, seed=cfg["seed"], sink=sink)
    return SampleGrid(pipeline, folder, settings, sink=sink)


def pipeline_of(job: Job) -> Any:
    """What draws with the network as it is now."""
    from ldm.pipeline import Pipeline

    assert job.encoders is not None
    return Pipeline(
        job.module.unet,
        job.encoders.codec,
        job.encoders.text,
        job.module.objective,
        defaults=job.defaults,
        null=job.card["null"],
    )
