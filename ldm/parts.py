"""What does one node of a configuration build, and do the nodes of a training run fit together?"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import Any, Literal

import torch
from hydra.errors import InstantiationException
from hydra.utils import instantiate

from ldm.check import (
    field_problems,
    group_problems,
    missing_values,
    nearest,
    primary_problems,
    target_problems,
    type_problem,
    unknown_keys,
)
from ldm.cli import CONF, ConfigError
from ldm.models.dtypes import DTYPES

Config = dict[str, Any]
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
    "adapters",
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
    "adapters",
    "sampling",
    "training",
    "task",
    "name",
    "run_dir",
    "seed",
    "resume",
    "init_from",
    "weights",
    "widen",
    "change",
    "allow",
]
TRAINING_GROUPS = (
    "trainer",
    "optim",
    "ema",
    "callbacks",
    "logger",
    "inpainting",
    "vae_loss",
    "prior",
)
KEYS = {
    "models": ("unet", "vae", "text", "vae_weights", "vae_dtype", "vae_train"),
    "diffusion": (
        "schedules",
        "prediction",
        "weighting",
        "times",
        "offset_noise",
        "input_perturbation",
    ),
    "training.callbacks": ("samples", "validation", "evaluation"),
}
# the keys of sample.yaml that say what one picture is, which a line of a .jsonl file may hold too
PICTURE: dict[str, Any] = {
    **dict.fromkeys(("mode", "prompt", "negative_prompt", "init_image", "mask"), str | None),
    **dict.fromkeys(("to_prompt", "sampler", "grid"), str | None),
    **dict.fromkeys(("n", "seed", "to_seed", "frames", "frame"), int | None),
    **dict.fromkeys(("steps", "height", "width"), int | None),
    **dict.fromkeys(("strength", "eta", "guidance", "guidance_rescale"), float | None),
    **dict.fromkeys(("threshold", "threshold_floor"), float | None),
    **dict.fromkeys(("paste_back", "weighting", "long_prompts"), bool | None),
    "seeds": list[int] | None,
    "guidance_interval": list[float] | None,
    "tiled": bool | Literal["auto"] | None,
}
# the types of the other keys of sample.yaml
DRAWING: dict[str, dict[str, Any]] = {
    "sample": {
        **dict.fromkeys(("checkpoint", "prompts", "recipe", "weights", "dtype"), str | None),
        **dict.fromkeys(("device", "out"), str),
        **dict.fromkeys(("steps_grid", "overwrite"), bool),
        "batch_size": int | Literal["auto"] | None,
        "devices": int | Literal["auto"],
        "adapter": str | list[str] | None,
    },
}
CHOICES = {
    "task": TASKS,
    "weights": ("ema", "raw"),
    "models.vae_dtype": tuple(DTYPES),
    "models.vae_train": ("all", "decoder"),
}


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


def reason(error: Exception) -> str:
    """What went wrong in the user's terms: Hydra wraps what a part said."""
    wrapped = isinstance(error, InstantiationException) and error.__cause__
    return str(wrapped or error)


def raise_all(problems: list[str]) -> None:
    """One error with every problem."""
    if problems:
        raise ConfigError(
            "\n  ".join(["the configuration has problems:", *problems])
            if len(problems) > 1
            else problems[0]
        )


def check_drawing(cfg: Config, config: str) -> list[str]:
    """Every problem of the configuration of `sample`."""
    problems = primary_problems(cfg, CONF / f"{config}.yaml")
    for key, hint in DRAWING[config].items():
        problems += type_problem(cfg[key], hint, key)
    of_pictures = PICTURE if config == "sample" else {}
    for key in ("steps", "batch_size", "devices"):
        value = None if key in of_pictures else cfg.get(key)
        if isinstance(value, int) and value < 1:  # 0 is no way of saying "the default"
            problems.append(f"{key}={value}; give 1 or more")
    return problems + check_picture({k: cfg[k] for k in of_pictures if cfg[k] is not None})


def check_picture(values: Config) -> list[str]:
    """Every problem of keys of PICTURE that one of them alone shows; values: what is given."""
    from ldm.pipeline import SamplingOptions
    from ldm.pipeline.inputs import strength_problems

    problems = unknown_keys(values, list(PICTURE), "")
    for key, value in values.items():
        problems += type_problem(value, PICTURE.get(key, Any), key)
    if problems:
        return problems
    for key in ("height", "width"):
        if key in values and values[key] < 1:
            problems.append(f"{key}={values[key]}; give 1 or more")
    if "strength" in values:
        problems += strength_problems(values["strength"])
    names = {field.name for field in fields(SamplingOptions)} - {"tiled"}
    options = SamplingOptions(**{name: value for name, value in values.items() if name in names})
    return problems + options.problems()


def check_train(cfg: Config) -> list[str]:
    """Every problem of the configuration that can be found without opening data or weights.

    Nodes whose keys are wrong are not built; everything else is, so that one run of the check
    names what is unknown, what is missing, what is out of range and what does not fit together.
    """
    problems = unknown_keys(cfg, TOP, "") + group_problems(cfg, GROUPS)
    for part in ("data", "models", "diffusion", "adapters", "training"):
        problems += target_problems(cfg.get(part), part)
    problems += missing_values(cfg, "") + _key_problems(cfg)
    for key, allowed in CHOICES.items():
        value = _at(cfg, key)
        if value not in allowed:
            problems.append(f"{key}={value!r}; allowed: {', '.join(allowed)}")
    if isinstance(cfg.get("seed"), bool) or not isinstance(cfg.get("seed"), int):
        problems.append(f"seed={cfg.get('seed')!r}; give an integer")
    return problems + _value_problems(cfg, problems)


def fit_problems(unet: Any, codec: Any, text: Any) -> list[str]:
    """Where the UNet, the VAE and the text encoder, once built, do not fit together."""
    problems = []
    if unet.out_channels != codec.latent_channels:
        problems.append(
            f"models.unet.out_channels={unet.out_channels}, but the VAE has "
            f"{codec.latent_channels} latent channels"
        )
    width = unet.cross_attention_dim
    if (width or 0) != text.width:
        problems.append(
            f"models.unet.cross_attention_dim={width}, but the text encoder's contexts "
            f"are {text.width or 'none'} wide; set it to {text.width or 'null'}"
        )
    return problems


def _key_problems(cfg: Config) -> list[str]:
    """Keys of the nodes that are no `_target_` themselves."""
    from ldm.training.plan import RunSettings

    problems = []
    for path, allowed in KEYS.items():
        node = _at(cfg, path)
        if isinstance(node, Mapping):
            problems += unknown_keys(node, allowed, path)
    training = cfg.get("training")
    if isinstance(training, Mapping):
        problems += field_problems(training, RunSettings, "training", extra=TRAINING_GROUPS)
    if isinstance(cfg.get("sampling"), Mapping):
        problems += _sampling_problems(cfg["sampling"])
    return problems


def _value_problems(cfg: Config, known: list[str]) -> list[str]:
    """What the parts themselves say about their values, and how they fit together.

    known: problems found so far; what they name is not built again.
    """
    problems: list[str] = []

    def attempt(path: str, make: Callable[[Any], Any] = build) -> Any:
        if any(problem.startswith((f"{path}.", f"{path} ", f"{path}=")) for problem in known):
            return None
        try:
            return make(_at(cfg, path))
        except Exception as error:
            problems.append(f"{path}: {error.__cause__ or error}")
            return None

    leaves = [f"training.{name}" for name in ("trainer", "optim", "ema", "logger", "prior")]
    leaves += [f"training.callbacks.{name}" for name in KEYS["training.callbacks"]]
    if "inpainting" in cfg.get("training", {}):
        leaves.append("training.inpainting")
    for path in leaves:
        settings = attempt(path)
        problems += [] if settings is None else settings.problems()
    if not any(problem.startswith("training.") for problem in known):
        problems += run_settings(cfg).problems()
    unet, vae, data = (attempt(path) for path in ("models.unet", "models.vae", "data"))
    attempt("adapters")
    objective = None
    if cfg.get("task") == "diffusion":
        objective = attempt("diffusion", build_objective)
    if objective is not None:
        attempt("sampling", lambda node: _try_sampler(node, objective))
    if data is not None and vae is not None and cfg.get("task") != "clip":
        levels = len(unet.block_out_channels) if unet and cfg.get("task") == "diffusion" else 1
        sizes = [("data.size", data.size)]
        if cfg.get("task") == "diffusion" and isinstance(_at(cfg, "sampling.size"), list):
            sizes += [("sampling.size", side) for side in cfg["sampling"]["size"]]
        for key, size in sizes:
            problems += _size_problems(key, size, vae.factor, 2 ** (levels - 1))
    return problems


def _try_sampler(node: Config, objective: Any) -> None:
    """Samples one number: raises when sampler, schedule and eta do not go together."""
    from ldm.sampling.presets import get_sampler
    from ldm.types import Denoised

    sampler = get_sampler(node["sampler"])
    levels = sampler.grid(objective.schedule, steps=min(node["steps"], 8))
    zero = torch.zeros(1, 1, 1, 1)
    sampler.solve(
        lambda x, level: Denoised(zero, zero), zero, levels, noise=lambda _: zero, eta=node["eta"]
    )


def _size_problems(key: str, size: int, factor: int, depth: int) -> list[str]:
    multiple = factor * depth
    if size > 0 and size % multiple == 0:
        return []
    near = max(size // multiple, 1) * multiple
    return [
        f"{key}={size} px is not a multiple of {multiple} (the VAE's factor {factor} x {depth} "
        f"of the UNet); use {near} or {near + multiple}"
    ]


def _at(cfg: Any, path: str) -> Any:
    for key in path.split("."):
        cfg = cfg.get(key) if isinstance(cfg, Mapping) else None
    return cfg


def _sampling_problems(node: Mapping[str, Any]) -> list[str]:
    from ldm.pipeline import SamplingDefaults
    from ldm.sampling.presets import SAMPLER_NAMES

    given = {key: value for key, value in node.items() if key != "size" or value is not None}
    problems = field_problems(given, SamplingDefaults, "sampling")
    ranges = {"steps": (1, 2000), "guidance_rescale": (0, 1), "eta": (0, 1)}
    for key, (low, high) in ranges.items():
        value = node.get(key)
        if isinstance(value, (int, float)) and not low <= value <= high:
            problems.append(f"sampling.{key}={value}; allowed: {low} to {high}")
    if node.get("sampler") not in SAMPLER_NAMES:
        known = nearest(node.get("sampler"), list(SAMPLER_NAMES))
        problems.append(
            f"sampling.sampler={node.get('sampler')!r} is unknown{known}; "
            f"known: {', '.join(SAMPLER_NAMES)}"
        )
    return problems
