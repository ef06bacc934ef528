"""What does a configuration build? The composition root: one function a script."""

from __future__ import annotations

import logging
import signal
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from hydra.errors import InstantiationException
from rich.console import Console

from ldm import rng
from ldm.check import missing_values, target_problems, unknown_keys
from ldm.cli import ConfigError
from ldm.gallery import progress_bar
from ldm.parts import (
    DTYPES,
    build,
    build_objective,
    check_drawing,
    check_train,
    fit_problems,
    raise_all,
    reason,
    run_settings,
)

log = logging.getLogger(__name__)
Config = dict[str, Any]
REQUEUE = 75


# -- training -----------------------------------------------------------------------------------


def train(cfg: Config) -> int:
    """Trains what the configuration says. Returns the exit code: 0, or 75 to be started again."""
    raise_all(check_train(cfg))
    from ldm.training import run_folder

    run_dir = Path(cfg["run_dir"])
    try:
        start = run_folder.find_start(run_dir, cfg["resume"], cfg["init_from"])
        job = _build_job(cfg)
        if start.checkpoint is not None:
            raise_all(run_folder.resume_problems(job.card, start.checkpoint))
    except (ValueError, FileNotFoundError, InstantiationException) as error:
        raise ConfigError(reason(error)) from error
    if start.samples >= job.plan.total_samples:
        log.info("%s is finished: %d samples seen", run_dir, start.samples)
        return 0
    job.card["run_id"] = run_folder.run_id(cfg["name"], start.checkpoint)
    text = describe_plan(cfg, job, start.samples)
    if run_folder.is_main_process():
        Console(stderr=True).print(text, highlight=False)
        run_folder.write_folder(run_dir, job.card, yaml.safe_dump(cfg, sort_keys=False), text)
        job.save_frozen(run_dir / "frozen")
    return _fit(cfg, job, start, text)


@dataclass(frozen=True)
class Job:
    """The parts of a run, built."""

    module: Any
    data: Any
    plan: Any
    card: Config
    encoders: Any | None
    defaults: Any

    def save_frozen(self, folder: Path) -> None:
        """Keeps the frozen encoders in the run folder, once."""
        if self.encoders is not None:
            from ldm.io.frozen import save_frozen

            save_frozen(folder, self.encoders.codec, self.encoders.text)


def _build_job(cfg: Config) -> Job:
    from ldm.data.source import open_data
    from ldm.training.plan import make_plan

    with torch.random.fork_rng():
        torch.manual_seed(rng.fold(cfg["seed"], "init"))
        data = open_data(build(cfg["data"]), seed=cfg["seed"])
        settings = run_settings(cfg)
        world = build(cfg["training"]["trainer"]).world_size
        plan = make_plan(
            settings, train_size=data.train_size, val_size=data.val_size, world_size=world
        )
        builder = {"diffusion": _diffusion, "vae": _vae, "clip": _clip}[cfg["task"]]
        job = builder(cfg, data, plan, settings)
        job.card["total_samples"] = plan.total_samples
        return job


def _diffusion(cfg: Config, data: Any, plan: Any, settings: Any) -> Job:
    from ldm.io.frozen import frozen_codec, load_vae_weights, plain, vae_card
    from ldm.models.unet import UNet
    from ldm.pipeline import SamplingDefaults
    from ldm.training.encoders import FrozenEncoders
    from ldm.training.module import DiffusionModule

    unet_config, vae_config = build(cfg["models"]["unet"]), build(cfg["models"]["vae"])
    text = build(cfg["models"]["text"])
    vae = load_vae_weights(vae_config, cfg["models"]["vae_weights"])
    codec = frozen_codec(vae, DTYPES[cfg["models"]["vae_dtype"]])
    raise_all(fit_problems(unet_config, codec, text))
    spec = text.spec()
    if spec.get("source") == "scratch":
        log.warning("models.text.source=scratch: the frozen text encoder has random weights")
    size = cfg["sampling"]["size"] or [data.size, data.size]
    defaults = SamplingDefaults(**{**cfg["sampling"], "size": tuple(size)})
    objective = build_objective(cfg["diffusion"])
    card = _card(cfg, data) | {
        "unet": plain(asdict(unet_config)),
        "vae": vae_card(codec, cfg["models"]["vae_weights"]),
        "text": spec,
        "objective": objective.spec(),
        "null": spec["null"],
        "sampling": plain(asdict(defaults)),
        "frozen": {"vae": "frozen/vae.safetensors", "text": "frozen/text"},
        "frozen_at": None,
    }
    unet = UNet(unet_config)
    if cfg["init_from"]:
        card["parent"] = _initialise(unet, cfg["init_from"], cfg["weights"])
    encoders = FrozenEncoders(
        codec,
        text,
        seed=cfg["seed"],
        cache_captions=settings.cache_captions,
        cache_latents=settings.cache_latents,
    )
    module = DiffusionModule(
        unet,
        encoders,
        objective,
        caption_dropout=settings.caption_dropout,
        card=card,
        **_common(cfg, plan),
        channels_last=settings.channels_last,
        compile=settings.compile,
    )
    return Job(module, data, plan, card, encoders, defaults)


def _common(cfg: Config, plan: Any) -> Config:
    """What every trained module is given beside its own parts."""
    return {
        "plan": plan,
        "optim": build(cfg["training"]["optim"]),
        "seed": cfg["seed"],
        "gradient_clip": cfg["training"]["gradient_clip"],
        "ema_half_life": build(cfg["training"]["ema"]).half_life,
    }


def _vae(cfg: Config, data: Any, plan: Any, settings: Any) -> Job:
    from ldm.io.frozen import load_vae_weights, plain
    from ldm.models.vae import build_vae
    from ldm.training.vae_module import VAEModule

    config = build(cfg["models"]["vae"])
    source = cfg["init_from"] or cfg["models"]["vae_weights"]
    vae = load_vae_weights(config, source) if source else build_vae(config)
    card = _card(cfg, data) | {"vae": {"config": plain(asdict(config))}}
    module = VAEModule(
        vae,
        build(cfg["training"]["vae_loss"]),
        card=card,
        **_common(cfg, plan),
    )
    return Job(module, data, plan, card, None, None)


def _clip(cfg: Config, data: Any, plan: Any, settings: Any) -> Job:
    from ldm.training.clip_module import ClipModule

    pair = build(cfg["models"]["text"])
    card = _card(cfg, data) | {"clip": pair.spec()}
    module = ClipModule(
        pair,
        card=card,
        **_common(cfg, plan),
    )
    return Job(module, data, plan, card, None, None)


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
        callbacks.append(_sample_grid(cfg, job, run_dir, loggers))
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


def _sample_grid(cfg: Config, job: Job, run_dir: Path, loggers: list[Any]) -> Any:
    from functools import partial

    from ldm.pipeline import Pipeline
    from ldm.training.callbacks.sampling import SampleGrid
    from ldm.training.loggers import log_images

    pipeline = Pipeline(
        job.module.unet,
        job.encoders.codec,
        job.encoders.text,
        job.module.objective,
        defaults=job.defaults,
        null=job.card["null"],
    )
    settings = build(cfg["training"]["callbacks"]["samples"])
    return SampleGrid(pipeline, run_dir / "samples", settings, sink=partial(log_images, loggers))


# -- sampling and scores -------------------------------------------------------------------------


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


# -- data ---------------------------------------------------------------------------------------


def make_shards(cfg: Config) -> int:
    """Writes webdataset shards from a source of pictures and captions."""
    allowed = ["data", "out", "writer", "overwrite"]
    raise_all(unknown_keys(cfg, allowed, "") + target_problems(cfg, "") + missing_values(cfg, ""))
    try:
        build(cfg["writer"]).write(build(cfg["data"]))
    except (ValueError, FileNotFoundError, FileExistsError, InstantiationException) as error:
        raise ConfigError(reason(error)) from error
    return 0


def pack_tiny(cfg: Config) -> int:
    """Makes a part of the embedded stack from a finished run."""
    from ldm.data.source import open_data
    from ldm.training import pack

    allowed = ["data", "clip", "part", "input", "out", "vocab_size"]
    raise_all(unknown_keys(cfg, allowed, "") + target_problems(cfg, ""))
    part, out = cfg["part"], Path(cfg["out"])
    if part not in ("tokenizer", "clip", "vae", "unet"):
        raise ConfigError(f"part={part!r}; allowed: tokenizer, clip, vae, unet")
    if part == "clip":
        pack.pack_clip(build(cfg["clip"]), Path(cfg["input"]), out)
    elif part == "unet":
        pack.pack_unet(Path(cfg["input"]), out)
    else:
        data = open_data(build(cfg["data"]), seed=0)
        if part == "tokenizer":
            pack.pack_tokenizer(data, out, cfg["vocab_size"])
        else:
            pack.pack_vae(data, Path(cfg["input"]), out)
    return 0


# -- parts ----------------------------------------------------------------------------------------


def _initialise(unet: Any, source: str, weights: str) -> Config:
    """Weights of another model into `unet`. Returns the lineage for the card."""
    from ldm.io.frozen import load_into
    from ldm.io.load import initial_weights

    tensors, lineage = initial_weights(source, weights=weights)
    load_into(unet, {k: v.float() for k, v in tensors.items()}, source)
    log.info("init_from %s: %d tensors, %s weights", source, len(tensors), lineage["weights"])
    return lineage


def _card(cfg: Config, data: Any) -> Config:
    from ldm.io.checkpoint import CARD_FORMAT
    from ldm.training.run_folder import provenance

    return {
        "format": CARD_FORMAT,
        "task": cfg["task"],
        "name": cfg["name"],
        "seed": cfg["seed"],
        "batch_size": cfg["training"]["batch_size"],
        "data": data.spec(),
        "made_with": provenance(),
    }


def describe_plan(cfg: Config, job: Job, samples: int) -> str:
    """What the run will do, printed before the first step and kept as plan.txt."""
    from ldm.training.plan import describe

    optim = build(cfg["training"]["optim"])
    head = {
        "run folder": cfg["run_dir"],
        "going on after": f"{samples:,} samples" if samples else "",
    }
    trained = sum(p.numel() for p in job.module.parameters() if p.requires_grad)
    return describe(job.plan, parameters=trained, lr=optim.summary(), head=head)
