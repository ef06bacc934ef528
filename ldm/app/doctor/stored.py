"""How is the configuration of a run folder, which may come from anywhere, built safely?

config.yaml is written for people. Here alone something of it is built, so that only parts that
conf/ names are, nothing in it is interpolated, and no command in it is run unasked.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from ldm.app.adapting import trained_problems
from ldm.app.beginning import beginning_problems
from ldm.cli import CONF
from ldm.parts import check_train

Config = dict[str, Any]


def stored_config(run_dir: Path, given: Config) -> Config:
    """config.yaml of a run, for one process here.

    given: the command line's configuration; shards that a program reads (pipe:, gs:, …) are only
    read when it names the same. Raises FileNotFoundError, or ValueError with every problem.
    """
    path = run_dir / "config.yaml"
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist; replay a report in its own run folder")
    try:
        cfg = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not yaml: {error}") from None
    if not isinstance(cfg, dict):
        raise ValueError(f"{path} holds a {type(cfg).__name__}, not a configuration")
    cfg |= {"run_dir": str(run_dir), "resume": None, "allow": []}
    problems = _unsafe(cfg, given)
    if not problems:  # what is unsafe is not built, not even to be checked
        _trained_here(cfg)
        problems = check_train(cfg) + beginning_problems(cfg) + trained_problems(cfg)
    if problems:
        raise ValueError("\n".join(f"{path}: {problem}" for problem in problems))
    return cfg


def _unsafe(cfg: Config, given: Config) -> list[str]:
    problems = [
        f"_target_={target} is no part that conf/ names, so it is not built from a file"
        for target in sorted(set(_values(cfg, "_target_")) - known_targets())
    ]
    problems += [
        f"{text[:60]!r} would be interpolated; write its value"
        for text in _texts(cfg)
        if "${" in text
    ]
    if _shards(cfg) != _shards(given):
        problems += [
            f"shards={text[:60]!r} are read by a program; that is only done when the command line "
            "gives the same data.train.shards and data.val.shards"
            for text in _texts(_shards(cfg))
            if not _is_plain(text)
        ]
    return problems


@cache
def known_targets() -> frozenset[str]:
    """Every `_target_` of the configurations that come with the project."""
    read = (yaml.safe_load(path.read_text(encoding="utf-8")) for path in CONF.rglob("*.yaml"))
    return frozenset(target for node in read for target in _values(node, "_target_"))


def _trained_here(cfg: Config) -> None:
    """The GPU that it was trained on may be somewhere else."""
    training = cfg.get("training")
    trainer = training.get("trainer") if isinstance(training, dict) else None
    if isinstance(trainer, dict) and trainer.get("accelerator") == "gpu":
        trainer["accelerator"] = "auto"


def _is_plain(text: str) -> bool:
    """A path, or an address that is fetched without a shell."""
    return ":" not in text or (text.startswith(("http://", "https://")) and "::" not in text)


def _shards(cfg: Config) -> Any:
    data = cfg.get("data")
    return [data.get("train"), data.get("val")] if isinstance(data, dict) else data


def _values(node: Any, name: str) -> Iterator[str]:
    """Every value under this name."""
    if isinstance(node, dict):
        if name in node:
            yield str(node[name])
        node = list(node.values())
    if isinstance(node, list):
        for value in node:
            yield from _values(value, name)


def _texts(node: Any) -> Iterator[str]:
    if isinstance(node, str):
        yield node
    elif isinstance(node, dict):
        yield from _texts([*node, *node.values()])
    elif isinstance(node, list):
        for value in node:
            yield from _texts(value)
