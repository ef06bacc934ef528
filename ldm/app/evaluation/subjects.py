"""Which models are evaluated, and what do they say of themselves before they are loaded?"""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ldm.app.evaluation.request import Request
from ldm.io import checkpoint as files
from ldm.io.load import open_source
from ldm.pipeline import SamplingDefaults

log = logging.getLogger(__name__)
METRICS_CSV = "metrics.csv"


@dataclass(frozen=True, kw_only=True)
class Subject:
    """One model. given: as the user wrote it; path: what is loaded; weights: those it has.

    slug: a name for files, its own among all. run_dir: of a run of ours, else None.
    """

    given: str
    path: str
    name: str
    slug: str
    weights: str
    card: Mapping[str, Any]
    run_dir: Path | None

    @property
    def samples_seen(self) -> int | None:
        seen = self.card.get("samples_seen")
        return seen if isinstance(seen, int) else None

    @property
    def size_px(self) -> int:
        """Raises ValueError where the model's own pictures are not square."""
        height, width = self.card["sampling"]["size"]
        if height != width:
            raise ValueError(
                f"{self.given} draws pictures of {width}x{height} px; give size=N, the side of a "
                "square"
            )
        return int(height)

    @property
    def curve(self) -> Path | None:
        """The run's own metrics.csv."""
        path = None if self.run_dir is None else self.run_dir / METRICS_CSV
        return path if path is not None and path.is_file() else None

    def defaults(self) -> SamplingDefaults:
        sampling = self.card["sampling"]
        return SamplingDefaults(**{**sampling, "size": tuple(sampling["size"])})


def find_subjects(request: Request) -> tuple[list[Subject], list[str]]:
    """Every model with each of its weights that are asked for, and notes on what was not there.

    Reads cards only. Raises ValueError or FileNotFoundError that says what a path is instead.
    """
    found: list[Subject] = []
    notes: list[str] = []
    for given in request.paths:
        for path in _checkpoints(given, all_of_them=request.all_checkpoints):
            for weights in request.weights:
                subject = _subject(given, path, weights)
                if any(s.path == path and s.weights == subject.weights for s in found):
                    notes.append(f"{given} holds {subject.weights} weights only, no {weights}")
                else:
                    found.append(subject)
    return _with_own_names(found), notes


def size_of(subjects: Sequence[Subject], asked: int | None) -> int:
    """The one side of all pictures, px. Raises ValueError where models draw different sizes."""
    if asked is not None:
        return asked
    sizes = {subject.given: subject.size_px for subject in subjects}
    if len(set(sizes.values())) > 1:
        listed = ", ".join(f"{given} {size} px" for given, size in sizes.items())
        raise ValueError(
            f"the models draw pictures of different sizes ({listed}), whose numbers cannot be "
            "compared: give size=N, or evaluate them apart"
        )
    return next(iter(sizes.values()))


def _checkpoints(given: str, *, all_of_them: bool) -> list[str]:
    folder = Path(given).expanduser() / "checkpoints"
    if not all_of_them or not folder.is_dir():
        return [given]
    listed = files.list_checkpoints(folder)
    good = [path for path in listed if files.is_valid(path)]
    for path in sorted(set(listed) - set(good)):
        log.warning("%s is damaged (its hash does not fit); left out", path)
    if not good:
        raise FileNotFoundError(f"{given} holds no valid checkpoint yet")
    return [str(path) for path in good]


def _subject(given: str, path: str, weights: str) -> Subject:
    source = open_source(path, weights=weights)
    run_dir = _run_dir(path)
    home = run_dir or Path(given).expanduser()
    name = given if given == "tiny" else home.resolve().name or given
    return Subject(
        given=given,
        path=path,
        name=name,
        slug=re.sub(r"[^A-Za-z0-9_.-]+", "-", name).strip("-.") or "model",
        weights=source.weights,
        card=source.card,
        run_dir=run_dir,
    )


def _run_dir(path: str) -> Path | None:
    place = Path(path).expanduser()
    if place.is_dir():
        return place if (place / "checkpoints").is_dir() else None
    folder = place.parent.parent
    return folder if place.parent.name == "checkpoints" and folder.is_dir() else None


def _with_own_names(subjects: list[Subject]) -> list[Subject]:
    """Several checkpoints of a run are told apart by samples seen, equal names by a number."""
    runs = Counter((s.given, s.weights) for s in subjects)
    several = [
        replace(s, slug=f"{s.slug}-s{s.samples_seen or 0:09d}")
        if runs[s.given, s.weights] > 1
        else s
        for s in subjects
    ]
    groups: dict[str, list[str]] = {}
    for s in several:
        places = groups.setdefault(s.slug, [])
        if s.path not in places:
            places.append(s.path)

    def numbered(s: Subject) -> Subject:
        number = groups[s.slug].index(s.path)
        mark = f"{number + 1}" if number else ""
        return replace(s, slug=f"{s.slug}-{mark}", name=f"{s.name} {mark}") if mark else s

    return [numbered(s) for s in several]
