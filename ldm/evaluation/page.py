"""What does the page that shows an evaluation hold, and in which order?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ldm.evaluation.page_folder import Entry, Evaluation, Measured, read_evaluation
from ldm.evaluation.page_pictures import Shelf, best_and_worst, grids, side_by_side, strips
from ldm.evaluation.page_plots import (
    curves_over_settings,
    curves_over_training,
    loss_by_time,
    training_curves,
)
from ldm.evaluation.page_verdict import verdict
from ldm.evaluation.page_words import (
    column_name,
    is_part,
    listed,
    metric_name,
    model_labels,
    within,
)
from ldm.page import Cell, Element, Facts, Page, Table, Text, shown

NAME = "index.html"
MAX_NAMES = 3  # in the title
COLUMNS = {"samples_seen": "samples seen"}


def write_report(folder: Path) -> Path:
    """index.html in the folder of an evaluation: one file that shows all of it.

    Raises FileNotFoundError and ValueError for a folder that does not hold what it says; pictures
    that cannot be read are left out, and the page says which.
    """
    return report(read_evaluation(folder)).write(folder / NAME)


def report(evaluation: Evaluation) -> Page:
    """The answer first, then how it was got, then numbers, curves and pictures."""
    page = Page(
        title=_title(evaluation), subtitle=_subtitle(evaluation), footer=_footer(evaluation)
    )
    shelf = Shelf()
    pictures = {
        "Side by side": side_by_side(evaluation, shelf),
        "Pictures": grids(evaluation, shelf),
        "Best and worst": best_and_worst(evaluation, shelf),
        "From noise": strips(evaluation, shelf),
    }
    sections: dict[str, Sequence[Element]] = {
        "Verdict": [*verdict(evaluation), *_notes(evaluation), *shelf.notes()],
        "Numbers": _numbers(evaluation),
        "Protocol": _protocol(evaluation),
        "Over training": curves_over_training(evaluation),
        "Sweep": curves_over_settings(evaluation),
        "Loss": [*loss_by_time(evaluation), *training_curves(evaluation)],
        "Differences": _differences(evaluation),
        **pictures,
    }
    for title, elements in sections.items():
        if elements:
            page.section(title, elements)
    return page


def _title(evaluation: Evaluation) -> str:
    names = list(dict.fromkeys(entry.name for entry in evaluation.entries))
    many = len(names) > MAX_NAMES
    return f"Evaluation of {f'{len(names)} models' if many else listed(names)}"


def _subtitle(evaluation: Evaluation) -> str:
    """How much was drawn, and beside what."""
    entries = evaluation.entries
    counts = sorted({len(entry.records) for entry in entries})
    each = " to ".join(dict.fromkeys((shown(counts[0]), shown(counts[-1]))))
    drawn = (
        f"{each} pictures" if len(entries) == 1 else f"{len(entries)} entries, {each} pictures each"
    )
    data = evaluation.protocol.get("data")
    return f"{drawn}. True pictures: {data}." if isinstance(data, str) else f"{drawn}."


def _footer(evaluation: Evaluation) -> str:
    made = " · ".join(f"{name} {shown(value)}" for name, value in evaluation.made.items())
    return f"Made with {made}" if made else ""


def _notes(evaluation: Evaluation) -> list[Element]:
    """What went wrong or has to be known."""
    counted = {name: n for name, n in evaluation.counts.items() if n}
    counts = [Text(f"Counted: {shown(counted)}.", tone="warning")] if counted else []
    return [*counts, *(Text(note, tone="warning") for note in evaluation.notes)]


def _protocol(evaluation: Evaluation) -> list[Element]:
    facts = {name.replace("_", " "): value for name, value in evaluation.protocol.items()}
    return [Facts(facts)] if facts else []


def _numbers(evaluation: Evaluation) -> list[Element]:
    """A row an entry, a column a metric; below it what a metric has to be read with."""
    found, facts = evaluation.metrics(), evaluation.varying()
    metrics = dict(sorted(found.items(), key=lambda pair: is_part(pair[0], found)))
    named = ["model"] if len({entry.name for entry in evaluation.entries}) > 1 or not facts else []
    columns = [*named, *(COLUMNS.get(name, name) for name in facts)]
    columns += [column_name(name, measured) for name, measured in metrics.items()]
    rows = [
        [
            *(entry.name for _ in named),
            *(entry.facts.get(name) for name in facts),
            *(_cell(entry.metrics.get(name)) for name in metrics),
        ]
        for entry in evaluation.entries
    ]
    several = len(rows) > 1
    best = {column_name(name, measured): measured.better for name, measured in metrics.items()}
    elements: list[Element] = [Table(columns, rows, highlight=best if several else None)]
    return elements + [Text(" ".join([*_counts(evaluation.entries), *_remarks(metrics)]))]


def _differences(evaluation: Evaluation) -> list[Element]:
    """Every paired comparison: the same images, times and noises, or prompts and seeds."""
    if not evaluation.paired:
        return []
    compared = {str(pair.get(key)) for pair in evaluation.paired for key in ("a", "b")}
    said = model_labels(evaluation, list(compared))
    rows = [
        [
            *(said.get(str(pair.get(key)), pair.get(key)) for key in ("a", "b")),
            metric_name(str(pair.get("quantity"))),
            _difference(pair),
        ]
        for pair in evaluation.paired
    ]
    columns = ["a", "b", "quantity", "a better than b by"]
    return [Table(columns, rows, caption="Paired, so what both have in common cancels")]


def _difference(pair: Mapping[str, Any]) -> Cell:
    """Each written on its own: quantities of one column have different sizes."""
    low, high = (pair.get(key) for key in ("low", "high"))
    return Cell(shown(pair.get("difference")), f"{shown(low)} to {shown(high)}")


def _cell(measured: Measured | None) -> Cell:
    return Cell(None) if measured is None else Cell(measured.value, interval=measured.interval)


def _remarks(metrics: Mapping[str, Measured]) -> list[str]:
    """What a metric has to be read with, once for all that share it."""
    by_note: dict[str, list[str]] = {}
    for name, measured in metrics.items():
        if measured.note:
            by_note.setdefault(measured.note, []).append(within(name))
    said = [f"{listed(names)}: {note}." for note, names in by_note.items()]
    return [f"{one[0].upper()}{one[1:]}" for one in said]


def _counts(entries: Sequence[Entry]) -> list[str]:
    """How many samples the numbers are of, when it is the same everywhere."""
    counts = {m.samples for e in entries for m in e.metrics.values() if m.samples is not None}
    intervals = any(m.interval for e in entries for m in e.metrics.values())
    small = "Below a number is its interval." if intervals else ""
    each = f"Each number is of {shown(counts.pop())} samples." if len(counts) == 1 else ""
    joined = " ".join(filter(None, (each, small)))
    return [joined] if joined else []
