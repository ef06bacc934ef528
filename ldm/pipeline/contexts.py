"""How do prompts become the rows of a context?

Every prompt is encoded alone and once, so its context does not depend on what else is drawn.
"""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import Tensor

from ldm.models.text.base import TextEncoder
from ldm.pipeline.options import Settings
from ldm.pipeline.pictures import Between, Picture
from ldm.types import Conditioning

KEPT = 64  # contexts: of the prompts in a batch, and of the negative prompt that they share


class Contexts:
    """Contexts of one row each, as long as one request lasts."""

    def __init__(self, text: TextEncoder, settings: Settings) -> None:
        self._text = text
        self._weighting = settings.weighting
        self._chunked = settings.weighting or settings.long_prompts
        self._known: OrderedDict[tuple[str | None, int], Conditioning] = OrderedDict()

    def chunks(self, picture: Picture) -> int:
        """How many chunks both sides of the picture's guidance have."""
        if not self._chunked:
            return 1
        prompt = picture.prompt
        texts = [prompt.first, prompt.last] if isinstance(prompt, Between) else [prompt]
        if picture.negative is not None:
            texts.append(picture.negative)
        return self._text.chunks_needed(texts, weighting=self._weighting)

    def of(self, picture: Picture, chunks: int) -> tuple[Conditioning, Conditioning]:
        """What the picture is drawn towards and away from, [1,kL,D] each; k = chunks."""
        prompt = picture.prompt
        if isinstance(prompt, Between):
            first, last = self._one(prompt.first, chunks), self._one(prompt.last, chunks)
            cond = lerp(first, last, prompt.weight)
        else:
            cond = self._one(prompt, chunks)
        return cond, self._one(picture.negative, chunks)

    def _one(self, text: str | None, chunks: int) -> Conditioning:
        if (text, chunks) not in self._known:
            self._known[text, chunks] = self._encode(text, chunks)
        self._known.move_to_end((text, chunks))
        while len(self._known) > KEPT:
            self._known.popitem(last=False)
        return self._known[text, chunks]

    def _encode(self, text: str | None, chunks: int) -> Conditioning:
        if text is None:
            return self._text.null(1, chunks)
        if not self._chunked:
            return self._text.encode([text])
        return self._text.encode_prompts([text], weighting=self._weighting, chunks=chunks)


def lerp(first: Conditioning, last: Conditioning, weight: float) -> Conditioning:
    """A straight line between two contexts, exact at its ends; tokens of both are attended to."""
    if weight == 0 or first.context is None or last.context is None:
        return first
    if weight == 1:
        return last
    context = torch.lerp(first.context, last.context, weight)
    return Conditioning(context, _either(first.mask, last.mask))


def _either(one: Tensor | None, other: Tensor | None) -> Tensor | None:
    return None if one is None or other is None else one | other
