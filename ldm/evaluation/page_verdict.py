"""Who is best by what, and which of that may be chance?"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ldm.evaluation.page_folder import Entry, Evaluation
from ldm.evaluation.page_words import is_part, labels, listed, with_interval, within
from ldm.page import Text

MAX_PAIRED = 6


@dataclass(frozen=True)
class _Best:
    """A metric's best entry. clear: its interval meets that of no other; None without intervals."""

    metric: str
    entry: str
    clear: bool | None


def verdict(evaluation: Evaluation) -> list[Text]:
    """The answer first, then how far it carries."""
    if len(evaluation.entries) == 1:
        return [_alone(evaluation.entries[0])]
    metrics = evaluation.metrics()
    whole = [name for name in metrics if not is_part(name, metrics)]
    best = [found for name in whole if (found := _best(evaluation, name))]
    won = [one for one in best if one.clear is not False]
    sentences = [*_winners(won, labels(evaluation), len(whole)), *_paired(evaluation)]
    if not sentences:
        sentences = ["Nothing that was measured tells these apart."]
    return [Text("\n\n".join(sentences), tone="lead"), *_caution(best)]


def _alone(entry: Entry) -> Text:
    numbers = [f"{within(name)} {with_interval(m)}" for name, m in entry.metrics.items()]
    return Text(f"{entry.name}: {listed(numbers) or 'nothing was measured'}.", tone="lead")


def _best(evaluation: Evaluation, name: str) -> _Best | None:
    """None where fewer than two entries have it, or the best ones are alike."""
    found = {
        entry.id: measured
        for entry in evaluation.entries
        if (measured := entry.metrics.get(name)) and math.isfinite(measured.value)
    }
    if len(found) < 2:
        return None
    sign = 1 if evaluation.metrics()[name].better == "lower" else -1
    order = sorted(found, key=lambda key: sign * found[key].value)
    first, second = (found[key] for key in order[:2])
    if first.value == second.value:
        return None
    ends = [found[key].interval for key in order]
    mine = ends[0]
    if mine is None or not all(ends):
        return _Best(name, order[0], None)
    apart = all(other and (other[1] < mine[0] or mine[1] < other[0]) for other in ends[1:])
    return _Best(name, order[0], apart)


def _winners(best: Sequence[_Best], said: Mapping[str, str], measured: int) -> list[str]:
    """A is best by FID and KID; B by recall."""
    by_entry: dict[str, list[str]] = {}
    for one in best:
        by_entry.setdefault(one.entry, []).append(within(one.metric))
    order = sorted(by_entry, key=lambda key: -len(by_entry[key]))
    if not order:
        return []
    if len(by_entry[order[0]]) == measured > 2:
        return [f"{said[order[0]]} is best by all {measured} metrics."]
    wins = [
        f"{said[key]} {'is best ' if key == order[0] else ''}by {listed(by_entry[key])}"
        for key in order
    ]
    return [f"{'; '.join(wins)}."]


def _paired(evaluation: Evaluation) -> list[str]:
    """The texts of paired comparisons: those first that are no chance."""

    def is_chance(pair: Mapping[str, object]) -> bool:
        ends = [end for key in ("low", "high") if isinstance(end := pair.get(key), (int, float))]
        return len(ends) < 2 or min(ends) <= 0 <= max(ends)

    whole = [pair for pair in evaluation.paired if pair.get("text") and not part_of(pair)]
    pairs = sorted(whole, key=is_chance)
    texts = [str(pair["text"]).strip() for pair in pairs]
    return [text if text.endswith(".") else f"{text}." for text in texts[:MAX_PAIRED]]


def part_of(pair: Mapping[str, object]) -> bool:
    """Whether a comparison is of a part of the whole: "loss, t 0.0 to 0.2"."""
    return "," in str(pair.get("quantity", ""))


def _caution(best: Sequence[_Best]) -> list[Text]:
    chance = [within(one.metric) for one in best if one.clear is False]
    unknown = [within(one.metric) for one in best if one.clear is None]
    sentences = []
    if chance:
        sentences.append(f"The best are not told apart, as intervals overlap: {listed(chance)}.")
    if unknown:
        sentences.append(f"Small differences say nothing without an interval: {listed(unknown)}.")
    return [Text(" ".join(sentences))] if sentences else []
