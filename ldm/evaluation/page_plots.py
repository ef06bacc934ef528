"""Which curves does an evaluation hold: over training, over settings, over noise levels?"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any

from ldm.evaluation.page_folder import Entry, Evaluation, Measured
from ldm.evaluation.page_words import (
    column_name,
    fact,
    is_part,
    labels,
    metric_name,
    model_labels,
)
from ldm.page import Plot, Series

WIDE = 30  # from this ratio of largest to smallest a loss is drawn on a logarithmic axis
BINS = 200  # points of a training curve
EVALUATED = "eval/"  # columns of metrics measured while training
TRAINING = {
    "train/loss": "Training loss",
    "val/loss_ema": "Validation loss, EMA weights",
    "val/loss_raw": "Validation loss, raw weights",
}


def curves_over_training(evaluation: Evaluation) -> list[Plot]:
    """Every metric over samples seen, where one run is here at several times."""
    if "samples_seen" not in evaluation.varying():
        return []
    return _over(evaluation, "samples_seen", "samples seen")


def curves_over_settings(evaluation: Evaluation) -> list[Plot]:
    """A sweep: its two qualities against each other, then every metric over the longest axis."""
    if evaluation.sweep is None:
        return []
    numbers = {
        name: len({entry.facts.get(name) for entry in evaluation.entries})
        for name in ("guidance", "steps")
        if name in evaluation.varying()
    }
    longest = max(numbers, key=lambda name: numbers[name], default=None)
    over = _over(evaluation, longest, longest) if longest else []
    return [*_pareto(evaluation, evaluation.sweep), *over]


def loss_by_time(evaluation: Evaluation) -> list[Plot]:
    """The loss in bins of the diffusion time, with intervals."""
    said = model_labels(evaluation, list(evaluation.losses))
    middles = [(a + b) / 2 for a, b in pairwise(evaluation.edges)]
    series = [
        Series(said[key], middles, curve.mean, curve.low, curve.high)
        for key, curve in evaluation.losses.items()
    ]
    if not series or not middles:
        return []
    values = [v for curve in evaluation.losses.values() for v in curve.mean if math.isfinite(v)]
    wide = bool(values) and min(values) > 0 and max(values) / min(values) > WIDE
    name = "Validation loss by diffusion time"
    return [Plot(name, "t, from clean to noise", "loss", series, log_y=wide)]


def training_curves(evaluation: Evaluation) -> list[Plot]:
    """What the runs' own metrics.csv say; runs that several entries are of, once."""
    runs = list(_runs(evaluation))
    plots = []
    measured = dict.fromkeys(
        column for _, columns in runs for column in columns if column.startswith(EVALUATED)
    )
    titles = {
        **TRAINING,
        **{c: f"{metric_name(c[len(EVALUATED) :])} in training" for c in measured},
    }
    for column, title in titles.items():
        series = [
            _averaged(name, columns["samples_seen"], columns[column])
            for name, columns in runs
            if {"samples_seen", column} <= columns.keys()
        ]
        drawn = [one for one in series if one.xs]
        if drawn:
            said = metric_name(column[len(EVALUATED) :]) if column in measured else "loss"
            plots.append(Plot(title, "samples seen", said, drawn))
    return plots


def _over(evaluation: Evaluation, name: str, said: str) -> list[Plot]:
    """Each metric over one fact, a series for every choice of the others."""
    lines: dict[str, list[Entry]] = {}
    others = [other for other in evaluation.varying() if other != name]
    several = len({entry.name for entry in evaluation.entries}) > 1
    for entry in evaluation.entries:
        if isinstance(entry.facts.get(name), (int, float)):
            known = [fact(other, entry.facts[other]) for other in others if other in entry.facts]
            name_of = [entry.name] if several else []
            lines.setdefault(", ".join([*name_of, *known]), []).append(entry)
    longest = max((len({e.facts[name] for e in line}) for line in lines.values()), default=0)
    if longest < 2:
        return []
    plots = []
    for metric, measured in _telling(evaluation).items():
        series = [_series(label, line, name, metric) for label, line in lines.items()]
        drawn = [one for one in series if one.xs]
        if drawn:
            plots.append(Plot(column_name(metric, measured), said, metric_name(metric), drawn))
    return plots


def _telling(evaluation: Evaluation) -> dict[str, Measured]:
    """Metrics in which entries differ; parts of one are in the table only."""
    metrics = evaluation.metrics()
    return {
        name: measured
        for name, measured in metrics.items()
        if len({e.metrics[name].value for e in evaluation.entries if name in e.metrics}) > 1
        and not is_part(name, metrics)
    }


def _series(label: str, line: Sequence[Entry], name: str, metric: str) -> Series:
    measured = sorted(
        (
            (float(entry.facts[name]), entry.metrics[metric])
            for entry in line
            if metric in entry.metrics
        ),
        key=lambda pair: pair[0],
    )
    ends = [m.interval for _, m in measured]
    whole = [end for end in ends if end is not None]
    known = len(whole) == len(ends)
    return Series(
        label or metric_name(metric),
        [x for x, _ in measured],
        [m.value for _, m in measured],
        [end[0] for end in whole] if known else None,
        [end[1] for end in whole] if known else None,
    )


def _pareto(evaluation: Evaluation, sweep: Mapping[str, Any]) -> list[Plot]:
    """All settings by two metrics; joined are those that no other one beats in both."""
    metrics = evaluation.metrics()
    asked = [name for name in sweep.get("metrics") or () if name in metrics]
    sides = [[n for n, m in metrics.items() if m.better == side] for side in ("lower", "higher")]
    pair = asked[:2] if len(asked) >= 2 else [side[0] for side in sides if side]
    if len(pair) < 2:
        return []
    x, y = pair
    said = labels(evaluation)
    both = [e for e in evaluation.entries if {x, y} <= e.metrics.keys()]
    ids = set(map(str, sweep.get("pareto") or ()))
    front = sorted((e for e in both if e.id in ids), key=lambda e: e.metrics[x].value)
    rest = [e for e in both if e.id not in ids]

    def series(name: str, entries: Sequence[Entry], line: bool) -> Series:
        xs, ys = ([e.metrics[m].value for e in entries] for m in (x, y))
        return Series(name, xs, ys, line=line, labels=[said[e.id] for e in entries])

    drawn = [series("Pareto front", front, True), series("others", rest, False)]
    names = (column_name(x, metrics[x]), column_name(y, metrics[y]))
    title = f"{metric_name(y)} against {metric_name(x)}"
    return [Plot(title, *names, [one for one in drawn if one.xs])]


def _runs(evaluation: Evaluation) -> Iterator[tuple[str, Mapping[str, Sequence[float]]]]:
    """Each run's columns once, under its name."""
    said = labels(evaluation)
    runs: list[tuple[Entry, Mapping[str, Sequence[float]]]] = []
    for entry in evaluation.entries:
        columns = evaluation.training.get(entry.id)
        if columns and all(columns != known for _, known in runs):
            runs.append((entry, columns))
    names = [entry.name for entry, _ in runs]
    for entry, columns in runs:
        yield entry.name if names.count(entry.name) == 1 else said[entry.id], columns


def _averaged(name: str, xs: Sequence[float], ys: Sequence[float]) -> Series:
    """Rows that have a value, the mean of neighbours where there are more than BINS."""
    rows = [(x, y) for x, y in zip(xs, ys, strict=True) if math.isfinite(x) and math.isfinite(y)]
    size = -(-len(rows) // BINS) or 1
    bins = [rows[i : i + size] for i in range(0, len(rows), size)]
    return Series(
        name,
        [sum(x for x, _ in part) / len(part) for part in bins],
        [sum(y for _, y in part) / len(part) for part in bins],
    )
