"""What is asked of a search for suspects, and what is wrong with it?"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml

from ldm.check import type_problem, unknown_keys
from ldm.cli import CONF
from ldm.models.dtypes import DTYPES
from ldm.parts import raise_all

Config = dict[str, Any]
TYPES: dict[str, Any] = {
    **dict.fromkeys(("checkpoint", "weights", "dtype", "device"), str),
    **dict.fromkeys(("samples", "size", "batch_size"), int | None),
    **dict.fromkeys(("bins", "draws", "others", "tried", "shown"), int),
    **dict.fromkeys(("z", "near"), float),
    "devices": int | Literal["auto"],
    "out": str | None,
}
LEAST = {
    **dict.fromkeys(("samples", "size", "batch_size", "bins", "draws", "others", "tried"), 1),
    "shown": 0,
}


@dataclass(frozen=True, kw_only=True)
class Request:
    """The configuration, checked. See conf/suspects.yaml."""

    checkpoint: str
    shards: Any
    caption_key: Any
    samples: int | None
    bins: int
    draws: int
    others: int
    tried: int
    weights: str
    size: int | None
    z: float
    near: float
    shown: int
    batch_size: int | None
    dtype: str
    out: Path | None


def read_request(cfg: Config) -> Request:
    """Raises ConfigError with every problem that the configuration alone shows."""
    raise_all(_key_problems(cfg))
    raise_all(_value_problems(cfg))
    own = {key: cfg[key] for key in TYPES if key not in ("device", "devices", "out")}
    return Request(
        **own,
        shards=cfg["data"]["shards"],
        caption_key=cfg["data"]["caption_key"],
        out=None if cfg["out"] is None else Path(cfg["out"]),
    )


def _key_problems(cfg: Config) -> list[str]:
    known = yaml.safe_load((CONF / "suspects.yaml").read_text(encoding="utf-8"))
    problems = unknown_keys(cfg, list(known), "")
    if isinstance(cfg.get("data"), dict):
        problems += unknown_keys(cfg["data"], list(known["data"]), "data")
    else:
        problems.append(f"data={cfg.get('data')!r} is no shards; write data=… on the command line")
    for key, hint in TYPES.items():
        if key in cfg:
            problems += type_problem(cfg[key], hint, key)
    return problems


def _value_problems(cfg: Config) -> list[str]:
    problems = [
        f"{key}={cfg[key]}; give {least} or more"
        for key, least in LEAST.items()
        if cfg[key] is not None and cfg[key] < least
    ]
    if isinstance(cfg["devices"], int) and cfg["devices"] < 1:
        problems.append(f"devices={cfg['devices']}; give 1 or more, or auto")
    for key in ("z", "near"):
        if not 0 < cfg[key] < math.inf:
            problems.append(f"{key}={cfg[key]}; give a positive number")
    for key, allowed in (("weights", ("ema", "raw")), ("dtype", ("auto", *DTYPES))):
        if cfg[key] not in allowed:
            problems.append(f"{key}={cfg[key]!r}; allowed: {', '.join(allowed)}")
    return problems
