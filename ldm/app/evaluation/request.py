"""What is asked of an evaluation, and what is wrong with it?"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import yaml

from ldm.check import group_problems, nearest, target_problems, type_problem, unknown_keys
from ldm.cli import CONF
from ldm.evaluation.metrics import BETTER, name_problems
from ldm.evaluation.preset import INCEPTION, Preset
from ldm.models.dtypes import DTYPES
from ldm.parts import build, raise_all

Config = dict[str, Any]
LOGGERS = ("tensorboard", "wandb")
TYPES: dict[str, Any] = {
    **dict.fromkeys(("checkpoint", "compare"), str | list[str] | None),
    "metrics": list[str] | None,
    **dict.fromkeys(("samples", "size", "batch_size"), int | None),
    **dict.fromkeys(("first_seed", "strips"), int),
    **dict.fromkeys(("extractor", "clip", "cache_dir", "out", "logger"), str | None),
    **dict.fromkeys(("checkpoints", "dtype", "device"), str),
    "sampler": str | list[str] | None,
    "steps": int | list[int] | None,
    "guidance": float | list[float] | None,
    "weights": str | list[str],
    "pareto": list[str] | None,
    "devices": int | Literal["auto"],
    "overwrite": bool,
}


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How one entry is drawn; None is the model's own default."""

    sampler: str | None
    steps: int | None
    guidance: float | None

    def options(self) -> Any:
        """The SamplingOptions that ask for it."""
        from ldm.pipeline import SamplingOptions  # brings transformers: only when it is needed

        return SamplingOptions(sampler=self.sampler, steps=self.steps, guidance=self.guidance)


@dataclass(frozen=True, kw_only=True)
class Request:
    """The configuration, checked; lists where there may be several. See conf/evaluate.yaml."""

    paths: list[str]
    all_checkpoints: bool
    weights: list[str]
    grid: list[Settings]
    preset: Preset
    shards: Any
    caption_key: Any
    size: int | None
    first_seed: int
    batch_size: int | None
    strips: int
    pareto: tuple[str, str] | None
    logger: str | None
    dtype: str
    cache_dir: Path | None
    overwrite: bool
    out: Path | None

    @property
    def seeds(self) -> range:
        return range(self.first_seed, self.first_seed + self.preset.samples)


def read_request(cfg: Config) -> Request:
    """Raises ConfigError with every problem that the configuration alone shows."""
    raise_all(_key_problems(cfg))
    preset: Preset = build(cfg["evaluation"])
    given = {key: cfg[key] for key in ("samples", "metrics", "extractor", "clip")}
    preset = replace(preset, **{k: v for k, v in given.items() if v is not None})
    grid = [
        Settings(sampler=sampler, steps=steps, guidance=guidance)
        for sampler in _several(cfg["sampler"])
        for steps in _several(cfg["steps"])
        for guidance in _several(cfg["guidance"])
    ]
    weights = _several(cfg["weights"])
    paths = [path for key in ("checkpoint", "compare") for path in listed(cfg[key])] or ["tiny"]
    raise_all(_value_problems(cfg, preset, grid, weights, paths))
    return Request(
        paths=paths,
        all_checkpoints=cfg["checkpoints"] == "all",
        weights=weights,
        grid=grid,
        preset=preset,
        shards=cfg["data"]["shards"],
        caption_key=cfg["data"]["caption_key"],
        size=cfg["size"],
        first_seed=cfg["first_seed"],
        batch_size=cfg["batch_size"],
        strips=cfg["strips"],
        pareto=None if cfg["pareto"] is None else (cfg["pareto"][0], cfg["pareto"][1]),
        logger=cfg["logger"],
        dtype=cfg["dtype"],
        cache_dir=None if cfg["cache_dir"] is None else Path(cfg["cache_dir"]).expanduser(),
        overwrite=cfg["overwrite"],
        out=None if cfg["out"] is None else Path(cfg["out"]),
    )


def evaluation_problems(cfg: Config) -> list[str]:
    """What is wrong with the metrics of an evaluation while training, for `train`."""
    node = cfg.get("training", {}).get("callbacks", {}).get("evaluation")
    names = node.get("metrics") if isinstance(node, dict) else None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        return []  # the check of signatures says so
    key = "training.callbacks.evaluation"
    found = [f"{key}.{problem}" for problem in name_problems(names)]
    if node.get("every") is not None:
        found += _training_problems(cfg, key)
    if "loss" in names:
        found.append(f"{key}.metrics: loss is what training.val_every measures; leave it out")
    if "fid" in names and node["extractor"] != INCEPTION:
        found.append(f"{key}.metrics: fid needs extractor={INCEPTION}; on others it is fd")
    best = node.get("best")
    if best is not None and best not in names:
        found.append(f"{key}.best={best!r} is not measured; one of {', '.join(names)}, or null")
    return found


def _training_problems(cfg: Config, key: str) -> list[str]:
    """Where a run has no pictures to measure, or none to measure them against."""
    found = []
    if cfg.get("task") != "diffusion":
        found.append(f"{key}.every: task={cfg.get('task')} draws no pictures; give null")
    data = cfg.get("data")
    if isinstance(data, dict) and data.get("format") == "latents":
        found.append(
            f"{key}.every: data.format=latents has no pictures to compare with; give null, and "
            "evaluate.py data=… afterwards"
        )
    return found


def listed(value: str | list[str] | None) -> list[str]:
    """A path, or several as `[a, b]`, which the command line hands over as it was typed."""
    if value is None or isinstance(value, list):
        return list(value or [])
    if not (value.startswith("[") and value.endswith("]")):
        return [value]
    parts = (part.strip().strip("\"'") for part in value[1:-1].split(","))
    return [part for part in parts if part]


def _several(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _key_problems(cfg: Config) -> list[str]:
    known = yaml.safe_load((CONF / "evaluate.yaml").read_text(encoding="utf-8"))
    names = [key for key in known if key != "defaults"]
    problems = unknown_keys(cfg, [*names, "evaluation"], "")
    problems += group_problems(cfg, ["evaluation"]) or target_problems(
        cfg["evaluation"], "evaluation"
    )
    data = cfg.get("data")
    if isinstance(data, dict):
        problems += unknown_keys(data, list(known["data"]), "data")
    else:
        problems.append(f"data={data!r} is no shards; write data=… on the command line")
    for key, hint in TYPES.items():
        if key in cfg:
            problems += type_problem(cfg[key], hint, key)
    return problems


def _value_problems(
    cfg: Config, preset: Preset, grid: list[Settings], weights: list[str], paths: list[str]
) -> list[str]:
    problems = preset.problems()
    for key in ("steps", "batch_size", "devices", "size"):
        for value in _several(cfg[key]):
            if isinstance(value, int) and value < 1:
                problems.append(f"{key}={value}; give 1 or more")
    if cfg["strips"] < 0:
        problems.append(f"strips={cfg['strips']}; give 0 or more")
    allowed = {
        "weights": ("ema", "raw"),
        "checkpoints": ("newest", "all"),
        "dtype": ("auto", *DTYPES),
        "logger": (None, *LOGGERS),
    }
    for key, known in allowed.items():
        for value in _several(cfg[key]):
            if value not in known:
                words = ", ".join("null" if word is None else word for word in known)
                problems.append(f"{key}={value!r}; allowed: {words}")
    for key in ("sampler", "steps", "guidance", "weights"):
        values = _several(cfg[key])
        if not values or len({repr(value) for value in values}) < len(values):
            problems.append(f"{key}={cfg[key]}; give one or more, each once")
    repeated = sorted({path for path in paths if paths.count(path) > 1})
    if repeated:
        problems.append(f"checkpoint and compare name {', '.join(repeated)} more than once")
    for settings in grid:
        problems += settings.options().problems()
    return list(dict.fromkeys(problems + _metric_problems(cfg, preset)))


def _metric_problems(cfg: Config, preset: Preset) -> list[str]:
    problems = []
    if preset.metrics and "fid" in preset.metrics and preset.extractor != INCEPTION:
        problems.append(
            f"metrics: fid is the Fréchet distance of Inception features: give extractor="
            f"{INCEPTION}, or fd for that of extractor={preset.extractor}"
        )
    axes = cfg["pareto"]
    if axes is not None:
        unknown = [name for name in axes if name not in BETTER]
        problems += [
            f"pareto: {name!r} is unknown{nearest(name, list(BETTER))}; known: {', '.join(BETTER)}"
            for name in unknown
        ]
        if len(axes) != 2 or len(set(axes)) != 2:
            problems.append(f"pareto={axes}; give two different metrics")
    return problems
