"""What do the extractors see in true and drawn pictures, read by any number of processes?"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from PIL import Image
from torch import Tensor

from ldm.app.together import together
from ldm.data.cache import default_cache_dir
from ldm.data.shapes import Task
from ldm.evaluation import reference_stats
from ldm.evaluation.features import ClipExtractor, Extractor, load_extractor
from ldm.evaluation.inception import InceptionExtractor
from ldm.evaluation.metrics import METRICS, Pictures
from ldm.evaluation.preset import INCEPTION, Preset
from ldm.evaluation.ranks import gathered
from ldm.evaluation.reference_stats import ReferenceStats
from ldm.evaluation.shapes_judge import agreement, judge
from ldm.evaluation.statistics import Features, Moments
from ldm.evaluation.truth import Truth
from ldm.training.launch import Processes

log = logging.getLogger(__name__)
CHUNK = 256  # pictures in memory at once
T = TypeVar("T")


@dataclass(frozen=True)
class Eyes:
    """The networks that look at pictures; None where no metric needs one. They may be the same."""

    extractor: Extractor | None
    clip: ClipExtractor | None

    @property
    def dims(self) -> dict[str, int]:
        """Widths of the features, by what metrics need."""
        clip = 0 if self.clip is None else self.clip.spec.dim
        own = 0 if self.extractor is None else self.extractor.spec.dim
        return {"features": own, "clip": clip, "captions": clip}


def open_eyes(preset: Preset, device: str) -> Eyes:
    """Loads what the metrics need. Raises FileNotFoundError, ValueError that say what to give."""
    needs = {
        metric.needs
        for name, metric in METRICS.items()
        if preset.metrics is None or name in preset.metrics
    }
    with torch.random.fork_rng(devices=[]):  # building a network draws from it
        extractor = _extractor(preset.extractor, device) if "features" in needs else None
        if not needs & {"clip", "captions"}:
            return Eyes(extractor, None)
        if preset.clip in (None, preset.extractor) and isinstance(extractor, ClipExtractor):
            return Eyes(extractor, extractor)
        clip = load_extractor(preset.clip or "tiny", device=device)
    if not isinstance(clip, ClipExtractor):
        raise ValueError(f"clip={preset.clip} is no CLIP, whose captions CLIP score needs")
    return Eyes(extractor, clip)


def see_truth(
    truth: Truth, eyes: Eyes, *, most: int | None, cache: Path | None, processes: Processes
) -> tuple[Pictures, int]:
    """Features of the true pictures, from the cache where they are known, in all processes.

    Gives how many could not be read as well.
    """
    extractors = [e for e in dict.fromkeys((eyes.extractor, eyes.clip)) if e is not None]
    folder = (default_cache_dir() if cache is None else cache) / "reference"
    count = len(truth) if most is None else min(most, len(truth))
    seen: dict[int, Features] = {}
    unreadable = 0
    for extractor in extractors:
        stats = _reference(truth, extractor, count, folder, processes)
        seen[id(extractor)] = stats.features
        unreadable = max(unreadable, count - stats.moments.count)
    return Pictures(
        features=None if eyes.extractor is None else seen[id(eyes.extractor)],
        clip=None if eyes.clip is None else seen[id(eyes.clip)],
    ), unreadable


def see_pictures(
    read: Callable[[Sequence[int]], list[Image.Image]],
    captions: Sequence[str],
    eyes: Eyes,
    task: Task | None,
    processes: Processes,
) -> tuple[Pictures, list[dict[str, Any]]]:
    """Features of drawn pictures 0 … N - 1, and what the judge says of each, in all processes.

    read: pictures by their numbers; task: what the judge knows them as, None for no judge.
    """
    mine = processes.share(range(len(captions)))
    own = together(processes, lambda: _look(read, mine, captions, eyes, task))
    verdicts: list[dict[str, Any]] = [{} for _ in captions]
    for part in processes.gather(own.verdicts):
        for index, verdict in part.items():
            verdicts[index] = verdict
    return Pictures(
        features=_shared(own.features, processes),
        clip=_shared(own.clip, processes),
        captions=_shared(own.captions, processes),
        right=_shared(own.right, processes),
    ), verdicts


@dataclass(frozen=True)
class _Seen:
    """Of one process's pictures."""

    features: Features | None
    clip: Features | None
    captions: Features | None
    right: Features | None
    verdicts: dict[int, dict[str, Any]]


def _look(
    read: Callable[[Sequence[int]], list[Image.Image]],
    mine: Sequence[int],
    captions: Sequence[str],
    eyes: Eyes,
    task: Task | None,
) -> _Seen:
    rows: dict[str, list[Tensor]] = {"features": [], "clip": [], "captions": [], "right": []}
    verdicts: dict[int, dict[str, Any]] = {}
    for part in _chunks(mine):
        pictures, texts = read(part), [captions[index] for index in part]
        if eyes.extractor is not None:
            rows["features"].append(eyes.extractor(pictures))
        if eyes.clip is not None:
            same = eyes.clip is eyes.extractor
            rows["clip"].append(rows["features"][-1] if same else eyes.clip(pictures))
            rows["captions"].append(eyes.clip.captions(texts))
        if task is not None:
            said = judge(pictures, task=task)
            right = agreement(said, texts, task=task)
            rows["right"].append(torch.from_numpy(right).double())
            for index, verdict, row in zip(part, said, right, strict=True):
                verdicts[index] = {**asdict(verdict), "right": bool(row[-1])}
    dims = {**eyes.dims, "right": 4}
    made = {
        "features": eyes.extractor is not None,
        "clip": eyes.clip is not None,
        "captions": eyes.clip is not None,
        "right": task is not None,
    }
    index = torch.tensor(list(mine), dtype=torch.int64)
    found = {
        name: Features.of(index, torch.cat(rows[name])) if mine else _nothing(name, dims[name])
        for name in rows
        if made[name]
    } | {name: None for name in rows if not made[name]}
    return _Seen(**found, verdicts=verdicts)


def _nothing(name: str, dim: int) -> Features:
    """Of a process with no picture; of the dtype that the others have."""
    dtype = torch.float64 if name == "right" else torch.float32
    return Features(torch.zeros(0, dtype=torch.int64), torch.zeros(0, dim, dtype=dtype))


def _shared(features: Features | None, processes: Processes) -> Features | None:
    return None if features is None else gathered(features, device=processes.device)


def _reference(
    truth: Truth, extractor: Extractor, count: int, folder: Path, processes: Processes
) -> ReferenceStats:
    made_of = replace(truth.made_of(extractor.spec), count=count)
    path = made_of.path(folder)
    if processes.agree(path.is_file()):
        first = processes.rank == 0  # another machine may have another cache
        read = together(processes, lambda: reference_stats.load(path, made_of) if first else None)
        known: ReferenceStats | None = processes.agree(read)
        assert known is not None
        return known
    mine = processes.share(range(count))
    own = together(processes, lambda: _features_of(truth, mine, extractor))
    features = gathered(own, device=processes.device)
    return together(processes, lambda: _kept(made_of, features, folder, processes.rank == 0))


def _kept(
    made_of: reference_stats.MadeOf, features: Features, folder: Path, write: bool
) -> ReferenceStats:
    if features.count < 2:
        raise ValueError(
            f"{features.count} of the {made_of.count} pictures of {made_of.data} can be read; "
            "give data=… with 2 or more"
        )
    stats = ReferenceStats(made_of, Moments.of(features.values), features)
    if write:
        path = reference_stats.save(stats, folder)
        log.info("reference features of %d pictures are kept in %s", features.count, path)
    return stats


def _features_of(truth: Truth, numbers: Sequence[int], extractor: Extractor) -> Features:
    good: list[int] = []
    rows: list[Tensor] = []
    for part in _chunks(numbers):
        pairs = zip(part, truth.pictures(part), strict=True)
        there = [(number, picture) for number, picture in pairs if picture is not None]
        if there:
            rows.append(extractor([picture for _, picture in there]))
            good += [number for number, _ in there]
    if not rows:
        return _nothing("", extractor.spec.dim)
    return Features.of(torch.tensor(good), torch.cat(rows))


def _extractor(name: str, device: str) -> Extractor:
    if name == INCEPTION:
        return InceptionExtractor(device=device)
    return load_extractor(name, device=device)


def _chunks(items: Sequence[T]) -> Iterator[Sequence[T]]:
    for start in range(0, len(items), CHUNK):
        yield items[start : start + CHUNK]
