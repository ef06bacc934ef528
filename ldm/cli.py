"""How does a command line become a configuration?

Hydra parses `key=value` with a grammar that rejects or re-reads nearly every real prompt and path
(`a cat, on a mat`, `it's`, `(blue:1.2)`, `x-{0..5}.tar`). Values of the free-text keys therefore
travel through it as hexadecimal, and a resolver gives them back verbatim.
"""

from __future__ import annotations

import logging
import os
import re
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

CONF = next(
    folder
    for folder in (Path(__file__).parents[1] / "conf", Path(__file__).parent / "conf")
    if folder.is_dir()
)
FREE_TEXT = frozenset(
    [
        "prompt",
        "negative_prompt",
        "to_prompt",
        "prompts",
        "checkpoint",
        "init_from",
        "resume",
        "run_dir",
        "out",
        "input",
        "output",
        "tokenizer",
        "licence",
        "init_image",
        "mask",
        "data.root",
        "data.table",
        "data.mapping",
        "data.emojibase",
        "data.caption",
        "data.default_caption",
        "data.license",
        "data.train.shards",
        "data.val.shards",
        "data.shards",
        "extractor",
        "clip",
        "data.cache_dir",
        "models.vae_weights",
        "models.text.source",
        "models.text.tokenizer",
        "compare",
        "adapter",
        "adapters.token",
        "adapters.initializer",
        "replay",
        "doctor.out",
        "base",
        "against",
        "recipe",
        "name",
    ]
)
_ARGUMENT = re.compile(r"(\+{0,2})([\w./@-]+)=(.*)", re.DOTALL)

# Hydra writes nothing of its own, stays in the folder it was called from, and leaves logging alone
_HYDRA = [
    "hydra.run.dir=.",
    "hydra.sweep.dir=multirun",  # of a sweep (-m), its overrides: one ignored folder
    "hydra.sweep.subdir=.",
    "hydra.output_subdir=null",
    "hydra.job.chdir=false",
    "hydra/job_logging=none",
    "hydra/hydra_logging=none",
]

Task = Callable[[dict[str, Any]], int | None]


def run(task: Task, *, config: str) -> None:
    """Runs `task` on the composed configuration; its return value is the exit code."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # its threads do not survive a fork
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    original = list(sys.argv)
    try:
        typed = original[1:]
        if config in ("evaluate", "suspects"):  # elsewhere `data` is a group
            typed = [re.sub(r"^(\+\+)?data=", "data.shards=", a) for a in typed]
        arguments = encode(typed)
        first = next((i for i, a in enumerate(arguments) if _ARGUMENT.fullmatch(a)), len(arguments))
        arguments[first:first] = _HYDRA  # beside the others: argparse wants overrides in one run
        sys.argv[1:] = arguments
        if config == "make_shards":  # a friendlier name for the group
            sys.argv[1:] = [re.sub(r"^(\+\+)?source=", "data/make=", a) for a in sys.argv[1:]]
    except ValueError as error:
        sys.exit(f"error: {error}")
    if not OmegaConf.has_resolver("verbatim"):
        OmegaConf.register_new_resolver("verbatim", lambda text: bytes.fromhex(text[1:]).decode())
    status = [0]

    def main(cfg: DictConfig) -> None:
        sys.argv = original  # child processes of DDP get the line as it was typed
        try:
            plain = OmegaConf.to_container(cfg, resolve=True)
            assert isinstance(plain, dict)
            job = HydraConfig.get().job
            if HydraConfig.get().mode == RunMode.MULTIRUN and "run_dir" in plain:
                plain["run_dir"] = f"{plain['run_dir']}/{job.num}"
            status[0] = task(plain) or 0  # type: ignore[arg-type]
        except ConfigError as error:
            sys.exit(f"error: {error}")

    hydra.main(config_path=str(CONF), config_name=config, version_base="1.3")(main)()
    sys.exit(status[0])


class ConfigError(ValueError):
    """Bad input of the user's; printed without a traceback."""


def encode(arguments: list[str]) -> list[str]:
    """The same arguments with free text hidden from Hydra's grammar.

    Raises ValueError when a key is given twice: an unquoted brace pattern becomes repeats in bash,
    and Hydra would keep the last in silence.
    """
    matches = [_ARGUMENT.fullmatch(argument) for argument in arguments]
    keys = Counter(match.group(2) for match in matches if match)
    twice = sorted(key for key, count in keys.items() if count > 1)
    if twice:
        raise ValueError(
            f"given more than once: {', '.join(twice)}. Quote brace patterns "
            '("data.train.shards=x-{0..5}.tar"); the shell expands them otherwise'
        )
    return [
        argument if match is None else _for_hydra(match, argument)
        for argument, match in zip(arguments, matches, strict=True)
    ]


def _for_hydra(match: re.Match[str], argument: str) -> str:
    """Free text hidden; every value may be new (`++`), so that app.check finds all unknown keys."""
    key = match.group(2)
    if key in FREE_TEXT:
        return _hidden(match)
    a_group = "/" in key or (CONF / key).is_dir()
    if match.group(1) or a_group or key.startswith("hydra"):
        return argument
    return f"++{argument}"


def _hidden(match: re.Match[str]) -> str:
    plus, key, value = match.groups()
    if value in ("null", ""):
        return f"{plus or '++'}{key}=null"
    a_list = value.startswith("[") and value.endswith("]")
    if a_list and (key == "adapter" or key.endswith(".shards")):
        parts = [_quoted(part) for part in _split(value[1:-1])]
        return f"{plus or '++'}{key}=[{','.join(parts)}]"
    return f"{plus or '++'}{key}={_quoted(value)}"


def _quoted(value: str) -> str:
    return "'${verbatim:x" + value.encode().hex() + "}'"


def _split(text: str) -> list[str]:
    """At commas outside braces; quotes around a part are dropped."""
    parts, depth, start = [], 0, 0
    for place, letter in enumerate(text + ","):
        depth += (letter == "{") - (letter == "}")
        if letter == "," and depth == 0:
            parts.append(text[start:place].strip().strip("\"'"))
            start = place + 1
    return [part for part in parts if part]
