"""What was found in which sample, and how is it written for programs?

suspects.csv     every sample, the caption that fits worst first
suspects.jsonl   the suspects alone, with losses by bin
exclude.jsonl    shard, key and reason of those that one may want to leave out, as quarantine.jsonl
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from ldm.app.suspects.ledger import Measured, Table
from ldm.app.suspects.samples import same_text
from ldm.evaluation.copies import Copies, find_copies, find_neighbours
from ldm.evaluation.suspects import Scores, score
from ldm.io.checkpoint import write_text

KINDS = ("mislabelled", "copy", "hard", "easy")
COLUMNS = (
    *("shard", "key", "kinds", "fit", "fit_z", "gain", "advantage", "share"),
    *("loss", "hard_z", "easy_z", "copy_of", "captions_differ", "caption", "nearest_caption"),
)
Config = dict[str, Any]


@dataclass(frozen=True)
class Finding:
    """A sample and what it shows. row: in the table; nearest: the best of the other captions that
    it was tried with.

    copy_of: the key of its copy whose caption fits best, "" where it is that one or has none;
    group: of copies that it is in, -1 for none; loss: with the own caption, mean of all levels.
    """

    row: int
    sample: Measured
    kinds: tuple[str, ...]
    fit: float
    fit_z: float
    gain: float
    advantage: float
    share: float
    nearest: str
    loss: float
    hard_z: float
    easy_z: float
    group: int
    copy_of: str
    captions_differ: bool


_CLEAREST: dict[str, Callable[[Finding], Any]] = {
    "mislabelled": lambda one: one.fit_z,
    "copy": lambda one: (not one.captions_differ, one.group, one.row),
    "hard": lambda one: -one.hard_z,
    "easy": lambda one: one.easy_z,
}


@dataclass(frozen=True)
class Findings:
    """all: by row; copies: groups of rows; bins: parts of the time range."""

    table: Table
    all: Sequence[Finding]
    copies: Sequence[Copies]
    bins: int

    def of(self, kind: str) -> list[Finding]:
        """Those of a kind, the clearest first."""
        found = [one for one in self.all if kind in one.kinds]
        return sorted(found, key=_CLEAREST[kind])

    def by_bin(self, losses: Tensor) -> Tensor:
        """[...,K] -> [...,bins]: means of the levels in each bin."""
        return losses.unflatten(-1, (self.bins, -1)).mean(-1)


def judge(table: Table, *, bins: int, z: float, near: float, device: str) -> Findings:
    """Scores, kinds and copies of all samples."""
    neighbours = find_neighbours(table.latents, device=device)
    scores = score(table.losses, neighbours.rows)
    copies = find_copies(table.latents, table.looks, neighbours, near=near)
    flags = {kind: found.tolist() for kind, found in scores.flags(z).items()}
    groups = {row: number for number, group in enumerate(copies) for row in group.rows}
    differ = [
        len({same_text(table.samples[row].caption) for row in group.rows}) > 1 for group in copies
    ]
    fit = scores.fit.tolist()
    found = []
    for row, sample in enumerate(table.samples):
        group = groups.get(row, -1)
        best = row if group < 0 else max(copies[group].rows, key=fit.__getitem__)
        kinds = {kind for kind, flagged in flags.items() if flagged[row]}
        kinds |= {"copy"} if best != row else set()
        found.append(
            Finding(
                row=row,
                sample=sample,
                kinds=tuple(kind for kind in KINDS if kind in kinds),
                nearest=sample.others[int(scores.nearest[row])],
                loss=float(table.losses.own[row].mean()),
                group=group,
                copy_of="" if best == row else table.samples[best].key,
                captions_differ=group >= 0 and differ[group],
                **_numbers(scores, row),
            )
        )
    return Findings(table, found, copies, bins)


def _numbers(scores: Scores, row: int) -> dict[str, float]:
    names = ("fit", "fit_z", "gain", "advantage", "share", "hard_z", "easy_z")
    return {name: float(getattr(scores, name)[row]) for name in names}


def write_findings(out: Path, found: Findings) -> None:
    """The three files."""
    ordered = sorted(found.all, key=lambda one: one.fit_z)
    write_text(out / "suspects.csv", _table(ordered))
    suspects = [one for one in ordered if one.kinds]
    write_text(out / "suspects.jsonl", "".join(_line(found, one) for one in suspects))
    write_text(out / "exclude.jsonl", "".join(map(_excluded, suspects)))


def _table(findings: Sequence[Finding]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for one in findings:
        values = {**plain(one), "kinds": " ".join(one.kinds)}
        writer.writerow([values[name] for name in COLUMNS])
    return text.getvalue()


def plain(one: Finding) -> Config:
    """The columns of a sample."""
    return {
        "shard": one.sample.shard,
        "key": one.sample.key,
        "kinds": list(one.kinds),
        **{name: round(getattr(one, name), 4) for name in ("fit", "gain", "advantage", "share")},
        **{name: round(getattr(one, name), 2) for name in ("fit_z", "hard_z", "easy_z")},
        "loss": float(f"{one.loss:.5g}"),
        "copy_of": one.copy_of,
        "captions_differ": one.captions_differ,
        "caption": one.sample.caption,
        "nearest_caption": one.nearest,
    }


def _line(found: Findings, one: Finding) -> str:
    losses = found.table.losses
    curves = {
        "own": losses.own[one.row],
        "none": losses.none[one.row],
        "others": losses.others[one.row].mean(0),
    }
    by_bin = {
        name: [float(f"{v:.5g}") for v in found.by_bin(curve).tolist()]
        for name, curve in curves.items()
    }
    return json.dumps({**plain(one), "loss_by_bin": by_bin}, ensure_ascii=False) + "\n"


def _excluded(one: Finding) -> str:
    """A line for those whose caption or copy is wrong: hard and easy ones are no mistakes yet."""
    reasons = []
    if "mislabelled" in one.kinds:
        reasons.append(f"mislabelled: {one.fit_z:.1f} deviations; {one.nearest!r} is nearer")
    if "copy" in one.kinds:
        other = ", with another caption" if one.captions_differ else ""
        reasons.append(f"copy of {one.copy_of}{other}")
    if not reasons:
        return ""
    said = {"shard": one.sample.shard, "key": one.sample.key, "reason": "; ".join(reasons)}
    return json.dumps(said, ensure_ascii=False) + "\n"
