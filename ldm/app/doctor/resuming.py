"""What would differ from the run that the folder holds already?"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from ldm.app.doctor.findings import Chapter
from ldm.io import checkpoint as files
from ldm.page import Facts, Table
from ldm.training import run_folder
from ldm.training.resume import changes, refused

Config = dict[str, Any]


def start_of(cfg: Config, chapter: Chapter) -> run_folder.Start:
    """Where train.py would go on; what is wrong with that goes into the chapter."""
    try:
        return run_folder.find_start(Path(cfg["run_dir"]), cfg["resume"], cfg["init_from"])
    except (ValueError, FileNotFoundError) as error:
        chapter.error(str(error))
        return run_folder.Start(None, 0)


def compare(cfg: Config, card: Config, start: run_folder.Start, chapter: Chapter) -> None:
    """Every difference to the newest checkpoint, or to that which `resume` names.

    card: of the run as it would be now.
    """
    checkpoint = start.checkpoint or files.latest_valid(Path(cfg["run_dir"]) / "checkpoints")
    if checkpoint is None:
        return
    try:
        old = files.check_card(files.read(checkpoint).get("card"), str(checkpoint))
        found = changes(old, card, _config_of(checkpoint), cfg)
    except ValueError as error:
        chapter.error(str(error))
        return
    wrong = refused(found, cfg["allow"])
    if cfg["resume"]:
        for problem in wrong:
            chapter.error(problem)
    elif wrong:
        chapter.warning(f"resume=auto would find {len(wrong)} changes that make it another run")
    rows = [
        [change.path, repr(change.before), repr(change.now), change.kind or "safe"]
        for change in found
    ]
    facts = {"checkpoint": str(checkpoint), "samples seen": files.samples_of(checkpoint)}
    chapter.facts |= facts | {
        "changes": [dict(zip(("path", "before", "now", "class"), r, strict=True)) for r in rows]
    }
    chapter.elements += [Facts(facts), Table(["key", "was", "is now", "class"], rows)]
    if not wrong and cfg["resume"]:
        chapter.ok(f"goes on after {facts['samples seen']:,} samples; {len(found)} safe changes")


def _config_of(checkpoint: Path) -> Config | None:
    """What the run was last started with, to be compared only. Raises ValueError."""
    path = checkpoint.resolve().parent.parent / "config.yaml"
    if not path.is_file():
        return None
    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from None
    return found if isinstance(found, dict) else None
