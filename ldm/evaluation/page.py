"""What does the page that shows an evaluation hold, and in which order?"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ldm.evaluation.page_folder import Entry, Evaluation, Measured, read_evaluation
from ldm.evaluation.page_pictures import Shelf, best_and_worst, grids, side_by_side, strips
from ldm.evaluation.page_plots import (
    curves_over_settings,
    curves_over_training,
    loss_by_time,
    training_curves,
)
from ldm.evaluation.page_verdict import verdict
from ldm.evaluation.page_words import column_name, labels, listed, metric_name
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
        "Protocol": [Facts(evaluation.protocol)] if evaluation.protocol else [],
        "Over training": curves_over_training(evaluation),
        "Sweep": curves_over_settings(evaluation),
        "Loss": [*loss_by_time(evaluation), *training_curves(evaluation)],
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
    """What was measured on how much."""
    entries = evaluation.entries
    counts = sorted({len(entry.records) for entry in entries})
    pictures = (
        shown(counts[0]) if len(counts) == 1 else f"{shown(counts[0])} to {shown(counts[-1])}"
    )
    metrics = listed([metric_name(name) for name in evaluation.metrics()])
    each = " each" if len(entries) > 1 else ""
    return f"{metrics or 'No metric'} of {pictures} pictures{each}."


def _footer(evaluation: Evaluation) -> str:
    made = " · ".join(f"{name} {shown(value)}" for name, value in evaluation.made.items())
    return f"Made with {made}" if made else ""


def _notes(evaluation: Evaluation) -> list[Element]:
    """What went wrong or has to be known."""
    counted = {name: n for name, n in evaluation.counts.items() if n}
    counts = [Text(f"Counted: {shown(counted)}.", tone="warning")] if counted else []
    return [*counts, *(Text(note, tone="warning") for note in evaluation.notes)]


def _numbers(evaluation: Evaluation) -> list[Element]:
    """A row an entry, a column a metric; below it what a metric has to be read with."""
    metrics, facts = evaluation.metrics(), evaluation.varying()
    said = labels(evaluation)
    own_names = len({entry.name for entry in evaluation.entries}) == len(evaluation.entries)
    first = "model" if own_names else "entry"
    columns = [first, *(COLUMNS.get(name, name) for name in facts)]
    columns += [column_name(name, measured) for name, measured in metrics.items()]
    rows = [
        [
            said[entry.id] if own_names else entry.name,
            *(entry.facts.get(name) for name in facts),
            *(_cell(entry.metrics.get(name)) for name in metrics),
        ]
        for entry in evaluation.entries
    ]
    several = len(rows) > 1
    best = {column_name(name, measured): measured.better for name, measured in metrics.items()}
    notes = [f"{metric_name(n)}: {m.note}" for n, m in metrics.items() if m.note]
    elements: list[Element] = [Table(columns, rows, highlight=best if several else None)]
    return elements + [Text("\n\n".join([*_counts(evaluation.entries), *notes]))]


def _cell(measured: Measured | None) -> Cell:
    return Cell(None) if measured is None else Cell(measured.value, interval=measured.interval)


def _counts(entries: Sequence[Entry]) -> list[str]:
    """How many samples the numbers are of, when it is the same everywhere."""
    counts = {m.samples for e in entries for m in e.metrics.values() if m.samples is not None}
    intervals = any(m.interval for e in entries for m in e.metrics.values())
    small = "Below a number is its interval." if intervals else ""
    each = f"Each number is of {shown(counts.pop())} samples." if len(counts) == 1 else ""
    joined = " ".join(filter(None, (each, small)))
    return [joined] if joined else []
