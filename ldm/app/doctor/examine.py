"""What does `doctor` look at, and in which order?"""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console

from ldm.app.doctor import building
from ldm.app.doctor.findings import Chapter, Level, level_of, show, verdict, write_json
from ldm.app.doctor.settings import DoctorSettings, split
from ldm.cli import ConfigError
from ldm.parts import build, reason

log = logging.getLogger(__name__)
Config = dict[str, Any]
SENTENCES: Mapping[Level, str] = {
    "error": "this run would not work as it is",
    "warning": "read them before you start",
    "ok": "nothing stands against this run",
}


def doctor(cfg: Config) -> int:
    """Says whether `train` would work. Returns the exit code: 1 where it would not."""
    cfg, settings, replay = split(cfg)
    if replay is not None:
        from ldm.app.doctor.replaying import replay_report

        return replay_report(Path(replay), cfg, settings)
    chapters = examine(cfg, settings)
    return conclude(
        chapters, settings.folder(str(cfg["run_dir"])), "doctor", title=f"Doctor: {cfg['name']}"
    )


def examine(cfg: Config, settings: DoctorSettings) -> list[Chapter]:
    """Chapter by chapter; one that cannot be told because of another is left out."""
    cfg = building.elsewhere(cfg, settings)
    first = building.configuration(cfg)
    if first.level == "error":
        return [first, *_shards(cfg, settings, None)]
    from ldm.app.doctor import cost, course, encoders, order, resuming

    resume = Chapter("Resume")
    start = resuming.start_of(cfg, resume)
    here = settings.gpu is None and settings.processes is None
    job, parts = building.parts(cfg, start.checkpoint, here=here)
    text = None if job is None or job.encoders is None else job.encoders.text
    listed = _shards(cfg, settings, text)
    told = [finding.text for chapter in listed for finding in chapter.findings]
    parts.findings = [f for f in parts.findings if not any(f.text in other for other in told)]
    chapters = [first, parts, *listed]
    if job is not None:
        plan, lanes = order.order(cfg, job.data, settings)
        chapters.append(lanes)
        if job.encoders is not None:
            chapters.append(encoders.encoders(job, cfg, settings.k))
        if plan is not None:
            chapters.append(course.course(cfg, plan, job))
            chapters.append(cost.cost(cfg, plan, job, settings.gpu))
        resuming.compare(cfg, job.card, start, resume)
    return chapters + ([resume] if resume.findings or resume.elements else [])


def conclude(
    chapters: list[Chapter],
    out: Path,
    name: str,
    *,
    title: str,
    sentences: Mapping[Level, str] = SENTENCES,
) -> int:
    """Writes the page and the JSON, prints the table. Returns the exit code."""
    from ldm.app.doctor.report import write_page
    from ldm.training.run_folder import provenance

    said = verdict(chapters, sentences)
    command = " ".join([Path(sys.argv[0]).name, *sys.argv[1:]])
    try:
        write_json(out / f"{name}.json", chapters, said, command=command, made_with=provenance())
        write_page(out / f"{name}.html", chapters, said, title=title, subtitle=command)
    except OSError as error:
        raise ConfigError(f"{out} cannot be written: {error}; give doctor.out=DIR") from error
    show(chapters, said, Console())
    log.info("%s and %s.json", out / f"{name}.html", name)
    return 1 if level_of(chapters) == "error" else 0


def _shards(cfg: Config, settings: DoctorSettings, text: Any) -> list[Chapter]:
    """What is trained on, and what is validated on where it has shards of its own."""
    from ldm.app.doctor.shards import overlap, shards
    from ldm.data.locate import expand

    chapter = Chapter("Training shards")
    try:
        config = build(cfg["data"])
        train = [shard for source in config.sources() for shard in expand(source.shards)]
        val = [] if config.val.shards is None else expand(config.val.shards)
    except (*building.FAULTS, TypeError, KeyError) as error:
        chapter.error(f"cannot be found: {reason(error)}")
        return [chapter]
    if config.mode == "stream":
        chapter.ok("data.mode=stream: pipes are not read before the run")
        return [chapter]
    try:
        chapters = [shards("Training shards", train, config, settings, text)]
        overlap(train, val, chapters[0])
        if val:
            chapters.append(shards("Validation shards", val, config, settings, text))
    except OSError as error:
        chapter.error(f"cannot be read: {error}")
        return [chapter]
    return chapters
