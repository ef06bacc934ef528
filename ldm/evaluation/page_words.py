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
}
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
        return f"{shown(value)} samples"
    if name == "steps":
        return f"{shown(value)} steps"
    if name == "guidance":
        return f"guidance {shown(value)}"
    return NAMES.get(str(value), str(value))


def labels(evaluation: Evaluation) -> dict[str, str]:
    """What entries are called: their names, with what tells them apart where these do not."""
    entries = evaluation.entries
    if _all_differ([entry.name for entry in entries]):
        return {entry.id: entry.name for entry in entries}
    differing = evaluation.varying()
    said = {entry.id: _told_apart(entry, differing) for entry in entries}
    unique = _all_differ(list(said.values()))
    return said if unique else {key: f"{label} ({key})" for key, label in said.items()}


def listed(words: Sequence[str]) -> str:
    """a, b and c."""
    return " and ".join(filter(None, (", ".join(words[:-1]), *words[-1:])))


def with_interval(measured: Measured) -> str:
    """3.2 (2.9 to 3.5)."""
    ends = measured.interval
    return shown(measured.value) + (f" ({shown(ends[0])} to {shown(ends[1])})" if ends else "")


def judged(judge: Mapping[str, Any]) -> str:
    """What is wrong: "wrong: shape, size"; "all right" where nothing is."""
    verdicts = {key: value for key, value in judge.items() if isinstance(value, bool)}
    wrong = [key for key, right in verdicts.items() if not right and key != "all"]
    others = [f"{key} {shown(v)}" for key, v in judge.items() if not isinstance(v, bool)]
    right = ["judge: all right"] if verdicts and not wrong else []
    return " · ".join([*([f"wrong: {', '.join(wrong)}"] if wrong else right), *others])


def _told_apart(entry: Entry, differing: Sequence[str]) -> str:
    known = [name for name in differing if name in entry.facts]
    return ", ".join([entry.name, *(fact(name, entry.facts[name]) for name in known)])


def _all_differ(names: Sequence[str]) -> bool:
    return len(set(names)) == len(names)
