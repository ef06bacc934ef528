"""Which of many pictures are shown, and beside which others?"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TypeVar

from ldm.evaluation.page_folder import Entry, Evaluation, Record
from ldm.evaluation.page_words import judged, labels
from ldm.images import read_picture
from ldm.page import Element, Pictures, SideBySide, Text

log = logging.getLogger(__name__)
BUDGET = 192  # pictures in the grids of all entries together
MOST = 64  # in one of them
CARDS = 24
ABREAST = 6  # entries side by side
ENDS = 8  # worst and best ones
MAX_STRIPS = 24

T = TypeVar("T")


class Shelf:
    """Finds out which pictures can be read, and counts those that cannot."""

    def __init__(self) -> None:
        self._broken: dict[Path, bool] = {}

    @property
    def broken(self) -> list[str]:
        return [path.name for path, broken in self._broken.items() if broken]

    def holds(self, path: Path) -> bool:
        if path not in self._broken:
            try:
                read_picture(path)
                self._broken[path] = False
            except (FileNotFoundError, ValueError) as error:
                log.warning("%s", error)
                self._broken[path] = True
        return not self._broken[path]

    def captioned(self, records: Iterable[Record]) -> list[tuple[Path, str]]:
        """Those that can be read, with all that is known of them."""
        whole = [record for record in records if self.holds(record.path)]
        return [(r.path, f"{one_line(r.caption)}\n{_facts(r, seed=True)}") for r in whole]

    def notes(self) -> list[Element]:
        """What could not be shown."""
        broken = self.broken
        if not broken:
            return []
        some = ", ".join(broken[:8]) + (" …" if len(broken) > 8 else "")
        return [Text(f"Left out, as they cannot be read: {len(broken)} ({some}).", tone="warning")]


def grids(evaluation: Evaluation, shelf: Shelf) -> list[Element]:
    """Some pictures of every entry: the same captions and seeds of each."""
    said = labels(evaluation)
    drawn = [entry for entry in evaluation.entries if entry.records]
    each = max(8, min(MOST, BUDGET // max(len(drawn), 1) // 8 * 8))
    elements: list[Element] = []
    for entry in drawn:
        chosen = spread(entry.records, each)
        count = f"{len(chosen)} of {len(entry.records)} pictures"
        elements += [
            Text(said[entry.id], tone="heading"),
            Text(count if len(chosen) < len(entry.records) else f"All {len(chosen)} pictures"),
            Pictures(shelf.captioned(chosen), columns=8),
        ]
    return elements


def side_by_side(evaluation: Evaluation, shelf: Shelf) -> list[Element]:
    """The same caption and seed by several entries."""
    said = labels(evaluation)
    drawn = spread([entry for entry in evaluation.entries if entry.records], ABREAST)
    if len(drawn) < 2:
        return []
    known = [{_request(record): record for record in entry.records} for entry in drawn]
    shared = [key for key in known[0] if all(key in other for other in known[1:])]
    rows = [[records[key] for records in known] for key in spread(shared, CARDS)]
    whole = [row for row in rows if all(shelf.holds(record.path) for record in row)]
    if not whole:
        return []
    groups = [
        (said[entry.id], [(row[i].path, _compared(row[i])) for row in whole])
        for i, entry in enumerate(drawn)
    ]
    return [SideBySide(groups)]


def best_and_worst(evaluation: Evaluation, shelf: Shelf) -> list[Element]:
    """Where caption and picture agree least and most, by CLIP score."""
    said = labels(evaluation)
    elements: list[Element] = []
    for entry in spread(evaluation.entries, ABREAST):
        scored = [record for record in entry.records if record.clip_score is not None]
        order = sorted(scored, key=lambda record: record.clip_score or 0.0)
        count = min(ENDS, len(order) // 2)
        if not count:
            continue
        elements += [
            Text(f"{said[entry.id]}: lowest CLIP scores", tone="heading"),
            Pictures(shelf.captioned(order[:count]), columns=ENDS),
            Text(f"{said[entry.id]}: highest CLIP scores", tone="heading"),
            Pictures(shelf.captioned(order[: -count - 1 : -1]), columns=ENDS),
        ]
    return elements


def strips(evaluation: Evaluation, shelf: Shelf) -> list[Element]:
    """What the network took the clean picture for, step by step."""
    said = labels(evaluation)
    drawn = spread([entry for entry in evaluation.entries if entry.strips], ABREAST)
    elements: list[Element] = []
    for entry in drawn:
        shown_ones = spread(entry.strips, max(1, MAX_STRIPS // len(drawn)))
        pictures = [(path, _origin(entry, path)) for path in shown_ones if shelf.holds(path)]
        if pictures:
            elements += [Text(said[entry.id], tone="heading"), Pictures(pictures, columns=1)]
    return elements


def spread(items: Sequence[T], count: int) -> list[T]:
    """So many of them, evenly over all; the first and the last are among them."""
    if len(items) <= count:
        return list(items)
    if count == 1:
        return [items[0]]
    return [items[round(i * (len(items) - 1) / (count - 1))] for i in range(count)]


def one_line(text: str) -> str:
    """A caption is one line here: what follows the first line of a picture's words is small."""
    return " ".join(text.split())


def _facts(record: Record, *, seed: bool) -> str:
    """Seed, score and what the judge says."""
    facts = [
        f"seed {record.seed}" if seed and record.seed is not None else "",
        f"CLIP {record.clip_score:.1f}" if record.clip_score is not None else "",
        judged(record.judge),
    ]
    return " · ".join(filter(None, facts))


def _compared(record: Record) -> str:
    """Caption and seed are the same in a row; score and judge are each one's own."""
    seed = "" if record.seed is None else f", seed {record.seed}"
    return f"{one_line(record.caption)}{seed}\n{_facts(record, seed=False)}"


def _request(record: Record) -> tuple[int, str, int | None]:
    return record.index, record.caption, record.seed


def _origin(entry: Entry, path: Path) -> str:
    """The caption of the picture that a strip leads to, where its name is the picture's number."""
    named = [
        record for record in entry.records if path.stem in (str(record.index), record.path.stem)
    ]
    return one_line(named[0].caption) if named else path.stem
