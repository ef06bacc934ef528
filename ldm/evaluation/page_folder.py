"""What did an evaluation leave in its folder, read as something that anyone may have written?"""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

from ldm.evaluation.page_json import NOTHING, Node, inside

FORMAT = "ldm-evaluation/1"
FACTS = ("samples_seen", "weights", "sampler", "steps", "guidance")
Better = Literal["lower", "higher"]


@dataclass(frozen=True)
class Measured:
    """A metric of one entry. interval: where it has one; value: NaN where it could not be had."""

    value: float
    interval: tuple[float, float] | None
    better: Better
    samples: int | None
    unit: str
    note: str


@dataclass(frozen=True)
class Record:
    """One picture. judge: what a judge of its content said."""

    path: Path
    index: int
    caption: str
    seed: int | None
    clip_score: float | None
    judge: Mapping[str, Any]


@dataclass(frozen=True)
class Entry:
    """One checkpoint, drawn in one way. facts: those of FACTS that are known."""

    id: str
    name: str
    facts: Mapping[str, Any]
    metrics: Mapping[str, Measured]
    records: Sequence[Record]
    strips: Sequence[Path]


@dataclass(frozen=True)
class Curve:
    """Mean and interval in each bin."""

    mean: Sequence[float]
    low: Sequence[float]
    high: Sequence[float]


@dataclass(frozen=True)
class Evaluation:
    """All that metrics.json says and names. training: columns of a run's metrics.csv by entry."""

    folder: Path
    made: Mapping[str, Any]
    protocol: Mapping[str, Any]
    entries: Sequence[Entry]
    edges: Sequence[float]
    losses: Mapping[str, Curve]
    paired: Sequence[Mapping[str, Any]]
    sweep: Mapping[str, Any] | None
    training: Mapping[str, Mapping[str, Sequence[float]]]
    counts: Mapping[str, Any]
    notes: Sequence[str]

    def metrics(self) -> dict[str, Measured]:
        """Every metric as the first entry that has it measured it, in the order they come up."""
        found: dict[str, Measured] = {}
        for entry in self.entries:
            for name, measured in entry.metrics.items():
                found.setdefault(name, measured)
        return found

    def varying(self) -> list[str]:
        """The facts in which entries differ."""
        return [n for n in FACTS if len({repr(e.facts.get(n)) for e in self.entries}) > 1]


def read_evaluation(folder: Path) -> Evaluation:
    """Reads metrics.json and what it names.

    Raises FileNotFoundError for a file that is not there, ValueError for what is not as it should
    be and for names that lead out of the folder.
    """
    path = folder / "metrics.json"
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist; give the folder that evaluate.py wrote")
    top = Node.parse(path.read_text(encoding="utf-8"), str(path))
    if top.value.get("format") != FORMAT:
        raise ValueError(f"{path} has format {top.value.get('format')!r}; this reads {FORMAT!r}")
    entries = [_entry(folder, node) for node in top.nodes("entries")]
    ids = [entry.id for entry in entries]
    if not ids or len(set(ids)) < len(ids):
        raise ValueError(f"{path} has entries {ids}; give one or more, each with its own id")
    losses, training = top.node("loss_by_time"), top.node("training")
    edges, curves = losses.numbers("edges"), losses.node("entries")
    return Evaluation(
        folder=folder,
        made=top.node("made").value,
        protocol=top.node("protocol").value,
        entries=entries,
        edges=edges,
        losses={key: _curve(curves.node(key), edges) for key in curves.value if key in ids},
        paired=[node.value for node in top.nodes("paired")],
        sweep=top.get("sweep", dict, NOTHING),
        training={
            key: read_columns(inside(folder, training.text(key)))
            for key in training.value
            if key in ids
        },
        counts=top.node("counts").value,
        notes=top.texts("notes"),
    )


def read_columns(path: Path) -> dict[str, list[float]]:
    """A CSV file's columns; an empty cell is NaN. Raises FileNotFoundError, ValueError."""
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist, but metrics.json names it")
    columns: dict[str, list[float]] = {}
    with path.open(newline="", encoding="utf-8") as file:
        for number, row in enumerate(csv.DictReader(file), start=2):
            for name, cell in row.items():
                try:
                    value = float(cell) if cell else math.nan
                except (TypeError, ValueError):
                    raise ValueError(f"{path}:{number} has {cell!r}; give numbers") from None
                columns.setdefault(str(name), []).append(value)
    return columns


def _entry(folder: Path, node: Node) -> Entry:
    metrics, pictures = node.node("metrics"), node.text("pictures")
    return Entry(
        id=node.get("id", str),
        name=node.text("name") or node.get("id", str),
        facts={name: node.value[name] for name in FACTS if node.value.get(name) is not None},
        metrics={name: _measured(metrics.node(name)) for name in metrics.value},
        records=_records(folder, pictures) if pictures else [],
        strips=[inside(folder, name) for name in node.texts("strips")],
    )


def _measured(node: Node) -> Measured:
    better = node.get("better", str)
    if better not in ("lower", "higher"):
        raise ValueError(f"{node.where}: better is {better!r}; give 'lower' or 'higher'")
    value, low, high = (node.maybe(key) for key in ("value", "low", "high"))
    return Measured(
        value=math.nan if value is None else value,
        interval=None if low is None or high is None else (low, high),
        better=cast(Better, better),
        samples=node.get("samples", int, NOTHING),
        unit=node.text("unit"),
        note=node.text("note"),
    )


def _curve(node: Node, edges: Sequence[float]) -> Curve:
    parts = [node.numbers(name) for name in ("mean", "low", "high")]
    if any(len(part) != len(edges) - 1 for part in parts):
        lengths = [len(part) for part in parts]
        raise ValueError(f"{node.where}: {lengths} numbers, {len(edges)} edges; give one a bin")
    return Curve(*parts)


def _records(folder: Path, name: str) -> list[Record]:
    path = inside(folder, name) / "records.jsonl"
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist; it says which picture is of what")
    lines = path.read_text(encoding="utf-8").split("\n")
    nodes = [Node.parse(line, f"{path}:{i}") for i, line in enumerate(lines, 1) if line.strip()]
    records = [
        Record(
            path=inside(folder, f"{name}/{node.get('file', str)}"),
            index=node.get("index", int),
            caption=node.text("caption"),
            seed=node.get("seed", int, NOTHING),
            clip_score=node.maybe("clip_score"),
            judge=node.node("judge").value,
        )
        for node in nodes
    ]
    return sorted(records, key=lambda record: record.index)
