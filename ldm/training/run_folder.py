"""What does a run folder hold before the first step, and from where does the run go on?"""

from __future__ import annotations

import json
import logging
import os
import re
import secrets
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml

from ldm.io import checkpoint as files
from ldm.training.resume import changes, refused

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Start:
    """checkpoint: where to go on, None for a new run; samples: how far it had come."""

    checkpoint: Path | None
    samples: int


def find_start(run_dir: Path, resume: str | None, init_from: str | None) -> Start:
    """Resolves `resume`. Raises ValueError for a folder in use and for contradicting keys."""
    if resume and resume != "auto" and init_from:
        raise ValueError(
            f"resume={resume} and init_from={init_from} contradict each other: resume goes on with "
            "the same run, init_from starts a new one from weights; give one of them "
            "(init_from=null where the experiment names one)"
        )
    used = (run_dir / "card.json").is_file()
    if not resume:
        if used and is_main_process():  # the others start when the first has written its own card
            raise ValueError(
                f"run_dir={run_dir} holds a run already; resume=auto goes on with it, another "
                "run_dir=... starts a new one"
            )
        return Start(None, 0)
    if resume == "auto":
        path = files.latest_valid(run_dir / "checkpoints") if used else None
        if path is None:
            log.info("resume=auto: no valid checkpoint in %s yet; starting", run_dir)
            return Start(None, 0)
        _check_parent(path, init_from)
    else:
        path = Path(resume).resolve()
        if not path.is_file():
            raise ValueError(f"resume={resume} does not exist; give auto or a .ckpt of this run")
        if not files.is_valid(path):
            raise ValueError(f"resume={resume}: its hash does not fit its manifest; it is damaged")
    if files.read(path).get("converted"):
        raise ValueError(
            f"{path} was converted from another format: it has weights, but no optimiser to go on "
            f"with; init_from={run_dir} run_dir=… starts a new run from them"
        )
    return Start(path, files.samples_of(path))


def _check_parent(checkpoint: Path, init_from: str | None) -> None:
    """The same command line starts a run and goes on with it: its init_from is the run's own."""
    if init_from is None:
        return
    parent = files.read(checkpoint)["card"].get("parent") or {}
    if parent.get("source") != init_from:
        raise ValueError(
            f"resume=auto goes on with a run that began from {parent.get('source') or 'no weights'}"
            f", not from init_from={init_from}; leave init_from as it was, or give another run_dir"
        )


def resume_problems(
    card: Mapping[str, Any], config: Mapping[str, Any], checkpoint: Path
) -> list[str]:
    """Unsafe differences to the run as it was that `allow` does not name; all are logged."""
    old = files.check_card(files.read(checkpoint).get("card"), str(checkpoint))
    found = changes(old, card, _config_of(checkpoint), config)
    for change in found:
        log.info("resuming: %s", change)
    return refused(found, config["allow"])


def _config_of(checkpoint: Path) -> dict[str, Any] | None:
    """The configuration that the run was last started with; None when its folder has none."""
    path = checkpoint.resolve().parent.parent / "config.yaml"
    if not path.is_file():
        log.warning("%s is missing: only the card can be compared with this configuration", path)
        return None
    found = yaml.safe_load(path.read_text(encoding="utf-8"))
    return found if isinstance(found, dict) else None


def write_folder(run_dir: Path, card: Mapping[str, Any], config: str, plan: str) -> None:
    """card.json, config.yaml and plan.txt; called on one process only."""
    files.write_text(run_dir / "config.yaml", config)
    files.write_text(run_dir / "plan.txt", plan + "\n")
    write_card(run_dir, card)


def write_card(run_dir: Path, card: Mapping[str, Any]) -> None:
    """card.json, whole; called on one process only."""
    text = json.dumps(card, indent=1, ensure_ascii=False, sort_keys=False)
    files.write_text(run_dir / "card.json", text)


def run_id(name: str, checkpoint: Path | None) -> str:
    """The run's name for loggers: a new one, or the one that the checkpoint was written under."""
    kept = None if checkpoint is None else files.read(checkpoint)["card"].get("run_id")
    if kept is None:
        return f"{re.sub(r'[^A-Za-z0-9_-]+', '-', name)}-{secrets.token_hex(4)}"
    return str(kept)


def provenance() -> dict[str, str | None]:
    """Versions and the commit of the checkout, for the card."""
    root = Path(__file__).parents[2]
    command = ["git", "-C", str(root), "rev-parse", "HEAD"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
        commit = done.stdout.strip() or None
    except (OSError, subprocess.TimeoutExpired):
        commit = None
    return {"torch": str(torch.__version__), "git": commit}


def is_main_process() -> bool:
    """Whether this process writes files: the first one, also before any process group exists."""
    if "RANK" in os.environ:  # torchrun
        return int(os.environ["RANK"]) == 0
    if "LOCAL_RANK" in os.environ:  # a child that Lightning started
        return int(os.environ["LOCAL_RANK"]) == 0 and int(os.environ.get("NODE_RANK", 0)) == 0
    return int(os.environ.get("SLURM_PROCID", 0)) == 0
