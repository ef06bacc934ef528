"""What do brackets, weights and BREAK in a prompt say?

The syntax that users of Automatic1111 and ComfyUI type, read only where it is asked for: in
training, `(a cat:1.2)` is a plain caption. docs/prompts.md has the table.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

STEP = 1.1  # what one pair of brackets does: (word) times, [word] divided by
MAX_WEIGHT = 10.0  # beyond any use; an 11 is a missing point or forgotten brackets

# Each alternative either cannot be extended or ends at once: linear in the prompt's length.
MARKUP = re.compile(
    r"""
    \\(?P<escaped>[()\[\]\\])
    | :\s*(?P<number>[+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+))\s*\)
    | [()\[\]:\\]
    | [^()\[\]:\\]+
    """,
    re.VERBOSE,
)
BREAK = re.compile(r"\bBREAK\b")


@dataclass(frozen=True)
class Piece:
    """A run of text with one weight; 1 is plain."""

    text: str
    weight: float = 1.0


Section = list[Piece]  # what stands before, between or after BREAKs


def parse_prompts(prompts: Sequence[str]) -> list[list[Section]]:
    """The sections of each prompt. ValueError: all weights of all prompts that are out of range."""
    parsed = [parse_prompt(prompt) for prompt in prompts]
    problems = [
        f"prompt {row}: weight {piece.weight:g} on {piece.text.strip()[:40]!r}"
        for row, sections in enumerate(parsed)
        for section in sections
        for piece in section
        if not 0 <= piece.weight <= MAX_WEIGHT
    ]
    if problems:
        raise ValueError(
            f"{'; '.join(problems)}: allowed are 0 to {MAX_WEIGHT:g}, nested brackets multiplied; "
            r"write \( and \) for brackets that are text, or turn weighting off"
        )
    return parsed


def parse_prompt(prompt: str) -> list[Section]:
    """`(a)` 1.1, `(a:1.3)` 1.3, `[a]` 1/1.1, nested ones multiply; a backslash takes them as text.

    What has no partner or is no number is text. Neighbours of one weight are one piece, so that
    brackets of weight 1 change no token. A last section without text is dropped.
    """
    texts: list[str | None] = []  # None: BREAK
    weights: list[float] = []
    opened: dict[str, list[int]] = {"(": [], "[": []}

    def add(text: str | None) -> None:
        texts.append(text)
        weights.append(1.0)

    def close(bracket: str, factor: float) -> None:
        start = opened[bracket].pop()
        texts[start] = ""  # it had a partner: no text
        weights[start:] = [weight * factor for weight in weights[start:]]

    for match in MARKUP.finditer(prompt):
        token = match[0]
        if match["escaped"]:
            add(match["escaped"])
        elif token in opened:
            opened[token].append(len(texts))
            add(token)
        elif match["number"] and opened["("]:
            close("(", float(match["number"]))
        elif token == ")" and opened["("]:
            close("(", STEP)
        elif token == "]" and opened["["]:
            close("[", 1 / STEP)
        else:
            for i, text in enumerate(BREAK.split(token)):
                if i:
                    add(None)
                add(text)
    return _sections(texts, weights)


def _sections(texts: list[str | None], weights: list[float]) -> list[Section]:
    sections: list[Section] = [[]]
    for text, product in zip(texts, weights, strict=True):
        weight = round(product, 9)  # [(a)] is 1, not 1 and a rounding error
        last = sections[-1]
        if text is None:
            sections.append([])
        elif text and last and last[-1].weight == weight:
            last[-1] = Piece(last[-1].text + text, weight)
        elif text:
            last.append(Piece(text, weight))
    if len(sections) > 1 and not any(piece.text.strip() for piece in sections[-1]):
        sections.pop()
    return sections
