"""Do the captions fit the text encoder, and do they say anything?"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ldm.app.doctor.findings import Chapter
from ldm.page import Bars, Facts, Table

MANY_CUT = 0.05  # of the captions; above it the encoder is likely the wrong one
Words = Any  # a TextEncoder, or None


def add_captions(chapter: Chapter, counts: Counter[str], text: Words) -> None:
    """Lengths, repetitions and what the encoder cuts. counts: how often each caption comes."""
    if not counts:
        return
    total = sum(counts.values())
    facts: dict[str, Any] = {
        "captions": total,
        "different captions": len(counts),
        "empty captions": counts[""],
    }
    most = counts.most_common(10)
    if counts[""] == total and text is not None and text.max_tokens:
        chapter.warning(
            "every caption is empty", "choose models/text=none, or data.caption_key=FIELD"
        )
    if most[0][1] > total / 2 and len(counts) > 1:
        chapter.warning(
            f"{most[0][1] / total:.0%} of the captions are {most[0][0]!r:.80}",
            "a model learns little from words that are always the same",
        )
    lengths = token_lengths(list(counts), text)
    if lengths is not None:
        weights = np.array(list(counts.values()))
        cut = float(weights[lengths > text.max_tokens].sum() / total)
        facts |= {
            "tokens, mean": float(np.average(lengths, weights=weights)),
            "tokens, longest": int(lengths.max()),
            "tokens that the encoder takes": text.max_tokens,
            "captions cut": f"{cut:.2%}",
        }
        chapter.facts["share_cut"] = cut
        if cut > MANY_CUT:
            chapter.warning(
                f"{cut:.1%} of the captions are longer than the {text.max_tokens} tokens that the "
                "text encoder takes; their ends are never seen",
                "shorten them, or choose an encoder that takes more",
            )
        edges = _edges(int(lengths.min()), int(lengths.max()))
        labels = [number_range(low, high - 1) for low, high in pairwise(edges)]
        bars = np.histogram(lengths, bins=edges, weights=weights)[0]
        chapter.elements.append(Bars("Caption length in tokens", labels, bars.tolist()))
        chapter.facts["token_histogram"] = dict(zip(labels, bars.tolist(), strict=True))
    chapter.facts |= facts
    chapter.elements.append(Facts(facts))
    rows = [[caption, count, f"{count / total:.2%}"] for caption, count in most]
    chapter.elements.append(Table(["most frequent captions", "samples", "share"], rows))
    chapter.facts["most_frequent"] = dict(most)


def token_lengths(captions: Sequence[str], text: Words) -> NDArray[np.int64] | None:
    """Tokens of each caption with start and end, uncut; None without an encoder of words. [n]"""
    if text is None or not text.max_tokens:
        return None
    rows = text.tokens.tokenizer(list(captions), verbose=False)["input_ids"]
    return np.array([len(row) for row in rows])


def _edges(least: int, most: int) -> NDArray[np.int64]:
    """Up to 16 bins of whole numbers."""
    step = -(-(most - least + 1) // 16)
    return np.arange(least, most + step + 1, step)


def number_range(low: int, high: int) -> str:
    """The label of a bin of whole numbers."""
    return f"{low}" if low == high else f"{low}–{high}"
