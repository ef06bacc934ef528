"""Which of two entries is better, by how much, and is that more than chance?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Any

import torch

from ldm.app.evaluation.losses import EDGES, comparable
from ldm.evaluation.bootstrap import Interval, bootstrap_mean
from ldm.evaluation.metrics import Measured
from ldm.evaluation.paired import LossTable, compare, loss_by_bin

SEED = 0
LEVEL = 0.95
MOST = 4  # entries of which all pairs are compared; of more, each with the first


@dataclass(kw_only=True)
class Found:
    """What was measured of one entry. curve: of its run; table: None where the loss was not
    measured, or at another entry of the same weights; scores: of each picture, by metric and index.
    """

    id: str
    label: str
    card: Mapping[str, Any]
    facts: Mapping[str, Any]
    curve: Path | None = None
    strips: list[str] = field(default_factory=list)
    metrics: dict[str, Measured] = field(default_factory=dict)
    table: LossTable | None = None
    scores: dict[str, Mapping[int, float]] = field(default_factory=dict)


def loss_curve(table: LossTable) -> dict[str, list[float]]:
    """Mean, low and high of each bin of EDGES."""
    bins = [part.interval for part in loss_by_bin(table, edges=EDGES, seed=SEED, level=LEVEL)]
    return {
        "mean": [part.value for part in bins],
        "low": [part.low for part in bins],
        "high": [part.high for part in bins],
    }


def whole_loss(table: LossTable, quantity: str) -> Measured:
    """Over all times."""
    (part,) = loss_by_bin(table, edges=(EDGES[0], EDGES[-1]), seed=SEED, level=LEVEL)
    note = f"squared error of {quantity}, {part.losses} losses"
    return Measured.of(part.interval, "lower", note)


def compare_entries(entries: Sequence[Found]) -> tuple[list[dict[str, Any]], list[str]]:
    """Paired differences of one entry of each model, and notes on what cannot be compared.

    A difference above 0 means that a is better.
    """
    chosen = [entry for entry in entries if entry.table is not None] or list(entries[:MOST])
    pairs = list(combinations(chosen, 2))
    if len(chosen) > MOST:
        pairs = [(chosen[0], other) for other in chosen[1:]]
    rows: list[dict[str, Any]] = []
    notes: list[str] = []
    for a, b in pairs:
        if a.table is not None and b.table is not None:
            unlike = comparable([a.card, b.card])
            if unlike:
                notes.append(
                    f"the losses of {a.label} and {b.label} are not paired: they differ in "
                    f"{' and '.join(unlike)}"
                )
            else:
                rows += _losses(a, b, a.table, b.table)
        for name in a.scores.keys() & b.scores.keys():
            rows.append(_scores(a, b, name))
    order = {"loss": 0, "judge": 1, "clip_score": 2}
    return sorted(rows, key=lambda row: order.get(row["quantity"], 3)), notes


def _losses(a: Found, b: Found, first: LossTable, second: LossTable) -> list[dict[str, Any]]:
    (whole,) = compare(first, second, edges=(EDGES[0], EDGES[-1]), seed=SEED, level=LEVEL)
    rows = [_row(a, b, "loss", whole.interval, "images")]
    for part in compare(first, second, edges=EDGES, seed=SEED, level=LEVEL):
        quantity = f"loss, t {part.start:.1f} to {part.stop:.1f}"
        rows.append(_row(a, b, quantity, part.interval, "images"))
    return rows


def _scores(a: Found, b: Found, name: str) -> dict[str, Any]:
    """Of the same prompts and seeds; higher is better."""
    index = sorted(a.scores[name].keys() & b.scores[name].keys())
    difference = torch.tensor(
        [a.scores[name][i] - b.scores[name][i] for i in index], dtype=torch.float64
    )
    interval = bootstrap_mean(difference, seed=SEED, purpose=f"paired {name}", level=LEVEL)
    return _row(a, b, name, interval, "pictures")


def _row(a: Found, b: Found, quantity: str, interval: Interval, what: str) -> dict[str, Any]:
    return {
        "a": a.id,
        "b": b.id,
        "quantity": quantity,
        "difference": interval.value,
        "low": interval.low,
        "high": interval.high,
        "text": _sentence(a.label, b.label, quantity, interval, what),
    }


def _sentence(a: str, b: str, quantity: str, interval: Interval, what: str) -> str:
    size = f"{abs(interval.value):.3g} ± {interval.half_width:.2g}"
    tail = f"in {quantity} ({interval.level:.0%}, {interval.n} {what})"
    if not interval.excludes_zero:
        return f"{a} and {b} cannot be told apart: {size} {tail}"
    better, worse = (a, b) if interval.value > 0 else (b, a)
    return f"{better} better than {worse} by {size} {tail}"
