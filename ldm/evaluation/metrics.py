"""Which numbers can be measured of drawn pictures, and how many pictures does each need?"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Literal

from ldm.evaluation.bootstrap import Interval, bootstrap_mean
from ldm.evaluation.clip_score import clip_score
from ldm.evaluation.frechet import frechet_distance
from ldm.evaluation.mmd import cmmd, kid
from ldm.evaluation.prdc import density_coverage, precision_recall
from ldm.evaluation.statistics import Features, Moments

KID_SUBSET = 1000  # as published; half of the pictures where these are fewer than twice as many
JUDGED = ("judge_colour", "judge_shape", "judge_size", "judge")  # columns of Pictures.right
Better = Literal["lower", "higher"]


@dataclass(frozen=True, kw_only=True)
class Measured:
    """A number with its interval (None where the metric has none); samples: pictures it is of."""

    value: float
    low: float | None = None
    high: float | None = None
    better: Better
    samples: int
    unit: str = ""
    note: str = ""

    @classmethod
    def of(cls, interval: Interval, better: Better, note: str = "") -> Measured:
        return cls(
            value=interval.value,
            low=interval.low,
            high=interval.high,
            better=better,
            samples=interval.n,
            note=note,
        )


@dataclass(frozen=True, eq=False, kw_only=True)
class Pictures:
    """What is known of a set of pictures; None is not measured.

    features: of the extractor; clip, captions: of a CLIP; right: [N,4], see JUDGED.
    """

    features: Features | None = None
    clip: Features | None = None
    captions: Features | None = None
    right: Features | None = None


@dataclass(frozen=True, eq=False)
class Measurement:
    """clip_scores: of each picture, by index; None without CLIP score."""

    metrics: Mapping[str, Measured]
    clip_scores: Mapping[int, float] | None


@dataclass(frozen=True, kw_only=True)
class Metric:
    """needs: the attribute of Pictures it is made from; least: pictures, of D features."""

    better: Better
    needs: Literal["features", "clip", "captions", "right"]
    least: Callable[[int], int]
    reference: bool = True


def _fixed(count: int) -> Callable[[int], int]:
    return lambda _: count


METRICS: dict[str, Metric] = {
    "fd": Metric(better="lower", needs="features", least=lambda dim: dim + 1),
    "fid": Metric(better="lower", needs="features", least=lambda dim: dim + 1),
    "kid": Metric(better="lower", needs="features", least=_fixed(4)),
    "precision": Metric(better="higher", needs="features", least=_fixed(4)),
    "recall": Metric(better="higher", needs="features", least=_fixed(4)),
    "density": Metric(better="higher", needs="features", least=_fixed(6)),
    "coverage": Metric(better="higher", needs="features", least=_fixed(6)),
    "cmmd": Metric(better="lower", needs="clip", least=_fixed(2)),
    "clip_score": Metric(better="higher", needs="captions", least=_fixed(2), reference=False),
    "judge": Metric(better="higher", needs="right", least=_fixed(2), reference=False),
}
BETTER: dict[str, Better] = {
    **{name: metric.better for name, metric in METRICS.items()},
    **dict.fromkeys(JUDGED, "higher"),
    "loss": "lower",
    "seconds": "lower",
}


def name_problems(names: Sequence[str]) -> list[str]:
    """What is wrong with a list of metrics; `loss` is measured of the network, not of pictures."""
    known = [*METRICS, "loss"]
    found = []
    for name in names:
        if name not in known:
            close = get_close_matches(str(name), known, n=1)
            hint = f" (did you mean {close[0]!r}?)" if close else ""
            found.append(f"metrics: {name!r} is unknown{hint}; known: {', '.join(known)}")
    repeated = sorted({name for name in names if list(names).count(name) > 1})
    if repeated:
        found.append(f"metrics names {', '.join(repeated)} more than once")
    if not names:
        found.append(f"metrics=[] measures nothing; null for all, or some of {', '.join(known)}")
    return found


def size_problems(
    names: Sequence[str], *, samples: int, references: int, dims: Mapping[str, int]
) -> dict[str, str]:
    """Which metrics have too few pictures, and how many they need. dims: widths of features."""
    found = {}
    for name in names:
        if name not in METRICS:
            continue
        metric = METRICS[name]
        least = metric.least(dims.get(metric.needs, 0))
        short = []
        if samples < least:
            short.append(f"{samples} pictures are drawn: give samples={least} or more")
        if metric.reference and references < least:
            short.append(f"{references} reference pictures are there: give data=… with more")
        if short:
            found[name] = f"{name} needs {least} pictures or more; {', '.join(short)}"
    return found


def measure(
    names: Sequence[str], pictures: Pictures, reference: Pictures, *, seed: int, level: float
) -> Measurement:
    """Every named metric of `pictures` (others than of METRICS are passed over).

    Raises ValueError for too few pictures and for features that do not belong together.
    """
    found: dict[str, Measured] = {}
    scores = None
    for name in names:
        if name in ("fd", "fid"):
            found[name] = _frechet(_known(pictures.features), _known(reference.features))
        elif name == "kid":
            found[name] = _kid(_known(pictures.features), _known(reference.features), seed, level)
        elif name == "cmmd":
            found[name] = _cmmd(_known(pictures.clip), _known(reference.clip))
        elif name == "clip_score":
            scored = clip_score(
                _known(pictures.clip), _known(pictures.captions), seed=seed, level=level
            )
            found[name] = Measured.of(scored.interval, "higher")
            scores = dict(zip(scored.index.tolist(), scored.scores.tolist(), strict=True))
        elif name == "judge":
            found |= _judged(_known(pictures.right), seed, level)
    if {"precision", "recall", "density", "coverage"} & set(names):
        found |= _neighbours(names, _known(pictures.features), _known(reference.features))
    ordered = [part for name in names for part in (JUDGED if name == "judge" else (name,))]
    return Measurement({name: found[name] for name in ordered if name in found}, scores)


def _known(features: Features | None) -> Features:
    if features is None:
        raise ValueError("a metric was asked for whose features were not extracted")
    return features


def _frechet(pictures: Features, reference: Features) -> Measured:
    value = frechet_distance(Moments.of(reference.values), Moments.of(pictures.values)).value
    note = f"{reference.count} references; compare equal numbers of pictures only"
    return Measured(value=value, better="lower", samples=pictures.count, note=note)


def _kid(pictures: Features, reference: Features, seed: int, level: float) -> Measured:
    size = min(KID_SUBSET, min(pictures.count, reference.count) // 2)
    value = kid(reference, pictures, seed=seed, subset_size=size, level=level)
    note = f"{reference.count} references; {value.subsets} subsets of {size}"
    return Measured.of(value.interval, "lower", note)


def _cmmd(pictures: Features, reference: Features) -> Measured:
    value = cmmd(reference, pictures).value
    note = f"{reference.count} references"
    return Measured(value=value, better="lower", samples=pictures.count, note=note)


def _judged(right: Features, seed: int, level: float) -> dict[str, Measured]:
    return {
        name: Measured.of(
            bootstrap_mean(right.values[:, column], seed=seed, purpose=name, level=level), "higher"
        )
        for column, name in enumerate(JUDGED)
    }


def _neighbours(
    names: Sequence[str], pictures: Features, reference: Features
) -> dict[str, Measured]:
    """Precision and recall share their distances, density and coverage theirs.

    Shares of unlike numbers of pictures cannot be compared: the first of the larger set are taken.
    """
    count = min(reference.count, pictures.count)
    first, second = (
        Features(part.index[:count], part.values[:count]) for part in (reference, pictures)
    )
    values: dict[str, float] = {}
    if {"precision", "recall"} & set(names):
        pr = precision_recall(first, second)
        values |= {"precision": pr.precision, "recall": pr.recall}
    if {"density", "coverage"} & set(names):
        dc = density_coverage(first, second)
        values |= {"density": dc.density, "coverage": dc.coverage}
    note = f"the first {count} of both sets"
    return {
        name: Measured(value=value, better="higher", samples=count, note=note)
        for name, value in values.items()
    }
