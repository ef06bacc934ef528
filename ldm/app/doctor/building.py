"""Is the configuration right, and can all that it names be built?"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from typing import Any

from hydra.errors import InstantiationException

from ldm.app.adapting import trained_problems
from ldm.app.beginning import Beginning, beginning_problems
from ldm.app.doctor.findings import Chapter
from ldm.app.doctor.settings import DoctorSettings
from ldm.app.job import Job, build_job
from ldm.app.prior import class_folder
from ldm.app.support import supported
from ldm.parts import build, check_train, reason

Config = dict[str, Any]
# what is wrong with the user's input, of files, of networks and of too little memory
FAULTS = (ValueError, OSError, InstantiationException, ImportError, RuntimeError)


def configuration(cfg: Config) -> Chapter:
    """Everything that is wrong with the keys, at once."""
    chapter = Chapter("Configuration")
    for problem in check_train(cfg) + beginning_problems(cfg) + trained_problems(cfg):
        chapter.error(problem)
    if not chapter.findings:
        chapter.ok("every key is known and has a value that is allowed")
    return chapter


def parts(cfg: Config, checkpoint: Path | None, *, here: bool = True) -> tuple[Job | None, Chapter]:
    """What train.py builds before its first step; what it would log as a warning is a finding.

    here: the run is for this machine, so what its device does not do is told, too.
    Where that fails each part is tried by itself, so that one fault does not hide another.
    """
    chapter = Chapter("Parts")
    job = None
    with warnings_of(chapter):
        try:
            if here:
                supported(cfg)
            job = build_job(for_here(cfg), checkpoint)
        except FAULTS as error:
            problems = [reason(error), *_one_by_one(cfg, checkpoint)]
            for problem in dict.fromkeys(problems):
                chapter.error(problem)
    if job is not None:
        trained = sum(p.numel() for p in job.module.parameters() if p.requires_grad)
        every = sum(p.numel() for p in job.module.parameters())
        chapter.ok(f"data, encoders and network are there; {trained:,} parameters are trained")
        chapter.facts = {"task": cfg["task"], "trained_parameters": trained, "parameters": every}
    return job, chapter


def elsewhere(cfg: Config, settings: DoctorSettings) -> Config:
    """The configuration as it is checked here: the GPU that it asks for may be somewhere else."""
    if settings.gpu is None and settings.processes is None:
        return cfg
    cfg = deepcopy(cfg)
    trainer = _trainer(cfg)
    if trainer.get("accelerator") == "gpu":
        trainer["accelerator"] = "auto"
    return cfg


def for_here(cfg: Config) -> Config:
    """The same run in one process without an average, which takes memory and says nothing.

    Class pictures that the run will draw at its start are left out while there are none.
    """
    cfg = deepcopy(cfg)
    prior = cfg["training"].get("prior") or {}
    if prior.get("prompts") is not None and not list(class_folder(cfg).glob("*.tar")):
        prior["prompts"] = None
    _trainer(cfg).update(accelerator="auto", devices=1, num_nodes=1)
    cfg["training"]["micro_batch"] = None
    cfg["training"]["ema"]["half_life"] = None
    return cfg


@contextmanager
def warnings_of(chapter: Chapter) -> Iterator[None]:
    """Warnings that the project logs inside become findings."""

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if record.name.startswith("ldm"):
                chapter.warning(record.getMessage())

    handler = Handler(logging.WARNING)
    logging.getLogger().addHandler(handler)
    try:
        yield
    finally:
        logging.getLogger().removeHandler(handler)


def _trainer(cfg: Config) -> Config:
    training = cfg.get("training")
    trainer = training.get("trainer") if isinstance(training, dict) else None
    return trainer if isinstance(trainer, dict) else {}


def _one_by_one(cfg: Config, checkpoint: Path | None) -> list[str]:
    from ldm.data.source import open_data
    from ldm.models.vae import ForeignVAEConfig

    begin = Beginning(cfg, checkpoint)
    batch_size = cfg["training"]["batch_size"]
    tries: list[Callable[[], Any]] = [
        lambda: open_data(build(cfg["data"]), seed=cfg["seed"], batch_size=batch_size)
    ]
    if cfg["task"] == "diffusion":
        tries.append(begin.text)
        if not isinstance(vae := build(cfg["models"]["vae"]), ForeignVAEConfig):
            tries.append(lambda: begin.codec(vae))
    problems = []
    for attempt in tries:
        try:
            attempt()
        except FAULTS as error:
            problems.append(reason(error))
    return problems
