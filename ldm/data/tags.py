"""How are captions made of tags varied, and put into a sentence?

Tag lists ("1girl, red hair, smile") are unordered: shuffling and dropping tags keeps a network from
learning their order. All chance is keyed by (seed, purpose, sample number).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ldm import rng

PLACE = "{}"  # of the caption in a template


@dataclass(frozen=True, kw_only=True)
class Tags:
    """shuffle: the order of the tags by chance; dropout: probability of leaving out each of them.

    keep_first: so many tags at the front neither move nor go; separator: stands between tags. A
    caption that would lose all its tags keeps the first of those drawn.
    """

    shuffle: bool = False
    dropout: float = 0.0
    keep_first: int = 0
    separator: str = ","

    def problems(self) -> list[str]:
        """What is wrong with these settings."""
        found = []
        if not 0.0 <= self.dropout <= 1.0:
            found.append(f"data.tags.dropout={self.dropout} is not a probability; use 0 … 1")
        if self.keep_first < 0:
            found.append(f"data.tags.keep_first={self.keep_first}; use 0 or more")
        if not self.separator or (self.separator.isspace() and self.separator != " "):
            found.append(
                f"data.tags.separator={self.separator!r} is in no caption (white space becomes one "
                "space); use ',' or ' ' or another text"
            )
        return found

    @property
    def used(self) -> bool:
        return self.shuffle or self.dropout > 0

    def vary(self, caption: str, *, seed: int, number: int) -> str:
        """The caption as sample `number` shows it."""
        if not self.used:
            return caption
        tags = [tag for part in caption.split(self.separator) if (tag := part.strip())]
        if not tags:
            return caption
        first, others = tags[: self.keep_first], tags[self.keep_first :]
        if self.shuffle and len(others) > 1:
            order = rng.permutation(seed, "tag order", number, len(others)).tolist()
            others = [others[place] for place in order]
        if self.dropout and others:
            draws = rng.uniform(seed, "tag dropout", torch.tensor([number]), (len(others),))
            kept = (draws[0] >= self.dropout).tolist()
            left = [tag for tag, stays in zip(others, kept, strict=True) if stays]
            others = left if left or first else others[:1]
        return self._between.join([*first, *others])

    @property
    def _between(self) -> str:
        """A comma is followed by a space, as people write it; other separators stand as given."""
        return f"{self.separator} " if self.separator in (",", ";") else self.separator


@dataclass(frozen=True)
class Templates:
    """Sentences around a caption, `{}` in each where it goes; a visit takes one. (): as it is."""

    texts: tuple[str, ...] = ()

    def problems(self) -> list[str]:
        """What is wrong with the templates."""
        return [
            f"data.templates has {text!r}; each is a text with {PLACE} once, where the caption goes"
            for text in self.texts
            if not isinstance(text, str) or text.count(PLACE) != 1
        ]

    def fill(self, caption: str, *, seed: int, number: int) -> str:
        """The caption in its template; an empty caption stays empty (unconditional training)."""
        if not self.texts or not caption:
            return caption
        place = 0
        if len(self.texts) > 1:
            draw = rng.integers(seed, "template", torch.tensor([number]), len(self.texts))
            place = int(draw[0])
        before, _, after = self.texts[place].partition(PLACE)  # no format(): captions hold braces
        return f"{before}{caption}{after}"
