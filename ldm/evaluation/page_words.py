"""What are metrics and entries called, and what does one sentence say of a number?"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from ldm.evaluation.page_folder import Entry, Evaluation, Measured
from ldm.page import shown

NAMES = {
    "fid": "FID",
    "kid": "KID",
    "fd": "FD",
    "cmmd": "CMMD",
    "clip": "CLIP",
    "ema": "EMA",
    "frechet": "Fréchet distance",
    "lr": "learning rate",
    "seconds": "time",
}
MODEL_FACTS = ("samples_seen", "weights")  # the others say how a model draws
NBSP = "\u00a0"  # a number and its unit stay on one line
ARROWS = {"lower": "↓", "higher": "↑"}


def metric_name(key: str) -> str:
    """clip_score -> CLIP score."""
    words = re.split(r"[_\s]+", key)
    said = " ".join(NAMES.get(word.lower(), word) for word in words).strip() or key
    return said if said[:1].isupper() else f"{said[:1].upper()}{said[1:]}"


def within(key: str) -> str:
    """The name as it stands inside a sentence: the CLIP score, the FID, the recall."""
    name = metric_name(key)
    return name if name[1:2].isupper() or name.startswith("Fréchet") else name.lower()


def column_name(key: str, measured: Measured) -> str:
    """With its unit, and an arrow to where better is."""
    unit = f" ({measured.unit})" if measured.unit else ""
    return f"{metric_name(key)}{unit} {ARROWS[measured.better]}"


def fact(name: str, value: Any) -> str:
    """A fact of an entry as one says it: guidance 5, 25 steps, EMA."""
    if name == "samples_seen":
        return f"{shown(value)}{NBSP}samples"
    if name == "steps":
        return f"{shown(value)}{NBSP}steps"
    if name == "guidance":
        return f"guidance{NBSP}{shown(value)}"
    return NAMES.get(str(value), str(value))


def is_part(key: str, metrics: Mapping[str, Measured]) -> bool:
    """Whether another metric sums it up: judge_shape is a part of judge."""
    whole, _, part = key.partition("_")
    return bool(part) and whole in metrics


def labels(evaluation: Evaluation) -> dict[str, str]:
    """What entries are called: their names, with what tells them apart where these do not."""
    said = _told_apart(evaluation.entries, evaluation.varying())
    return said if _unique(said) else {key: f"{label} ({key})" for key, label in said.items()}


def model_labels(evaluation: Evaluation, ids: Sequence[str]) -> dict[str, str]:
    """What the models of these entries are called: without how they draw, where that is enough."""
    entries = [entry for entry in evaluation.entries if entry.id in ids]
    said = _told_apart(entries, [name for name in MODEL_FACTS if name in evaluation.varying()])
    return said if _unique(said) else labels(evaluation)


def listed(words: Sequence[str]) -> str:
    """a, b and c."""
    return " and ".join(filter(None, (", ".join(words[:-1]), *words[-1:])))


def with_interval(measured: Measured) -> str:
    """3.2 (2.9 to 3.5)."""
    ends = measured.interval
    return shown(measured.value) + (f" ({shown(ends[0])} to {shown(ends[1])})" if ends else "")


def judged(judge: Mapping[str, Any]) -> str:
    """What the judge of shapes says: judge: right · judge: wrong, sees large red circle."""
    if not isinstance(judge.get("right"), bool):
        return ""
    if judge["right"]:
        return "judge: right"
    seen = [str(judge[key]) for key in ("size", "colour", "shape") if judge.get(key)]
    if "shape" in judge and not judge["shape"]:
        seen.append("no clear shape")
    return f"judge: wrong, sees {' '.join(seen)}" if seen else "judge: wrong"


def _told_apart(entries: Sequence[Entry], differing: Sequence[str]) -> dict[str, str]:
    names = {entry.name for entry in entries}
    if len(names) == len(entries):
        return {entry.id: entry.name for entry in entries}

    def label(entry: Entry) -> str:
        facts = [fact(key, entry.facts[key]) for key in differing if key in entry.facts]
        return ", ".join([entry.name, *facts] if len(names) > 1 or not facts else facts)

    return {entry.id: label(entry) for entry in entries}


def _unique(said: Mapping[str, str]) -> bool:
    return len(set(said.values())) == len(said)
