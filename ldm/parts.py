"""What does one node of a configuration build, and do the nodes of a training run fit together?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

import torch
from hydra.utils import instantiate

from ldm.check import field_problems, group_problems, nearest, target_problems, unknown_keys
from ldm.cli import ConfigError

Config = dict[str, Any]
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
TASKS = ("diffusion", "vae", "clip")
GROUPS = [
    "data",
    "models.unet",
    "models.vae",
    "models.text",
    "diffusion.schedules",
    "diffusion.prediction",
    "diffusion.weighting",
    "diffusion.times",
    "sampling",
    "training.trainer",
    "training.optim",
    "training.ema",
    "training.callbacks",
    "training.logger",
]
TOP = [
    "data",
    "models",
    "diffusion",
    "sampling",
    "training",
    "task",
    "name",
    "run_dir",
    "seed",
    "resume",
    "init_from",
    "weights",
]


def build(node: Mapping[str, Any]) -> Any:
    """The object of a node with a `_target_`; app.check has compared it with the signature."""
    return instantiate(dict(node), _convert_="all")


def build_objective(node: Mapping[str, Any]) -> Any:
    """Schedule, prediction, weighting and times as one Objective."""
    from ldm.diffusion.objective import Objective

    return Objective(
        schedule=build(node["schedules"]),
        prediction=build(node["prediction"]),
        weighting=build(node["weighting"]),
        times=build(node["times"]),
        offset_noise=node["offset_noise"],
        input_perturbation=node["input_perturbation"],
    )


def run_settings(cfg: Config) -> Any:
    """The `training` keys that are not groups."""
    from ldm.training.plan import RunSettings

    names = {f.name for f in fields(RunSettings)}
    return RunSettings(**{k: v for k, v in cfg["training"].items() if k in names})


def raise_all(problems: list[str]) -> None:
    """One error with every problem."""
    if problems:
        raise ConfigError(
            "\n  ".join(["the configuration has problems:", *problems])
            if len(problems) > 1
            else problems[0]
        )


def check_train(cfg: Config) -> list[str]:
    """Every problem of the configuration that can be found without opening data or weights."""
    from ldm.training.plan import RunSettings

    problems = unknown_keys(cfg, TOP, "")
    problems += group_problems(cfg, GROUPS)
    for part in ("data", "models", "diffusion", "training"):
        problems += target_problems(cfg.get(part), part)
    if problems:
        return problems
    groups = ["trainer", "optim", "ema", "callbacks", "logger", "vae_loss"]
    problems += field_problems(cfg["training"], RunSettings, "training", extra=groups)
    problems += _sampling_problems(cfg["sampling"])
    for path, allowed in (
        ("models", ["unet", "vae", "text", "vae_weights", "vae_dtype"]),
        (
            "diffusion",
            [
                *(g.split(".")[1] for g in GROUPS if g.startswith("diffusion")),
                "offset_noise",
                "input_perturbation",
            ],
        ),
        ("training.callbacks", ["samples", "validation"]),
    ):
        node = cfg
        for key in path.split("."):
            node = node[key]
        problems += unknown_keys(node, allowed, path)
    choices = {"task": TASKS, "weights": ("ema", "raw"), "models.vae_dtype": tuple(DTYPES)}
    values = {**cfg, "models.vae_dtype": cfg["models"]["vae_dtype"]}
    for key, allowed in choices.items():
        if values[key] not in allowed:
            problems.append(f"{key}={values[key]!r}; allowed: {', '.join(allowed)}")
    if isinstance(cfg["seed"], bool) or not isinstance(cfg["seed"], int):
        problems.append(f"seed={cfg['seed']!r}; give an integer")
    return problems or _value_problems(cfg)


def _value_problems(cfg: Config) -> list[str]:
    """What the parts themselves say about their values, and how they fit together."""
    problems: list[str] = []

    def attempt(node: Config) -> Any:
        try:
            return build(node)
        except Exception as error:
            problems.append(str(error.__cause__ or error))
            return None

    training = cfg["training"]
    leaves = [training[name] for name in ("trainer", "optim", "ema", "logger")]
    leaves += list(training["callbacks"].values())
    for leaf in leaves:
        settings = attempt(leaf)
        problems += [] if settings is None else settings.problems()
    problems += run_settings(cfg).problems()
    unet, vae = attempt(cfg["models"]["unet"]), attempt(cfg["models"]["vae"])
    data = attempt(cfg["data"])
    if cfg["task"] == "diffusion":
        try:
            build_objective(cfg["diffusion"])
        except Exception as error:
            problems.append(f"diffusion: {error.__cause__ or error}")
    factor = getattr(vae, "factor", 1)
    if data is not None and vae is not None and cfg["task"] != "clip":
        depth = (
            2 ** (len(unet.block_out_channels) - 1) if unet and cfg["task"] == "diffusion" else 1
        )
        multiple = factor * depth
        if data.size % multiple:
            near = max(data.size // multiple, 1) * multiple
            problems.append(
                f"data.size={data.size} px is not a multiple of {multiple} (the VAE's factor "
                f"{factor} x {depth} of the UNet); use {near} or {near + multiple}"
            )
    return problems


def _sampling_problems(node: Mapping[str, Any]) -> list[str]:
    from ldm.pipeline import SamplingDefaults
    from ldm.sampling.presets import SAMPLERS

    allowed = [f.name for f in fields(SamplingDefaults)]
    problems = unknown_keys(node, allowed, "sampling")
    if node.get("sampler") not in SAMPLERS:
        known = nearest(node.get("sampler"), list(SAMPLERS))
        problems.append(
            f"sampling.sampler={node.get('sampler')!r} is unknown{known}; "
            f"known: {', '.join(SAMPLERS)}"
        )
    return problems
