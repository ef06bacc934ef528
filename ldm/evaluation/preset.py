"""How much is measured, and of which features, when nothing else is said?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ldm.evaluation.metrics import name_problems

INCEPTION = "inception"  # the extractor of published FIDs
BINS = 10  # of the time range, in which losses are given


@dataclass(frozen=True, kw_only=True)
class Preset:
    """What a file of conf/evaluation says.

    metrics: None measures all that the pictures suffice for. extractor: of FD, KID, precision and
    the like; clip: of CLIP score and CMMD, None: the extractor where it is a CLIP. references: at
    most so many true pictures (None: all). loss_images at loss_times times each.
    """

    samples: int
    metrics: Sequence[str] | None = None
    extractor: str = "tiny"
    clip: str | None = None
    references: int | None = None
    loss_images: int = 120
    loss_times: int = 10

    def problems(self) -> list[str]:
        """Everything wrong with the values, each with what is allowed."""
        found = [] if self.metrics is None else name_problems(self.metrics)
        for name, least in (("samples", 2), ("references", 2), ("loss_images", 2)):
            value = getattr(self, name)
            if value is not None and value < least:
                found.append(f"{name}={value}; give {least} or more")
        if self.loss_times < BINS:
            found.append(f"loss_times={self.loss_times}; give {BINS} or more, one a bin of times")
        return found
