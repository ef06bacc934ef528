"""Which samples are measured already, and what was measured?

samples-RANK.jsonl: a line a sample, appended when it is finished, so that nothing is measured
twice. What is judged is always read from there: the same numbers whether it was interrupted or not.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ldm.app.suspects.losses import Explained
from ldm.evaluation.suspects import Losses

DIGITS = 7  # float32 has no more
LATENT_DIGITS = 5
Config = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Measured:
    """A sample. unusable: why it could not be measured; then there are no numbers."""

    number: int
    shard: str
    key: str
    caption: str = ""
    others: Sequence[str] = ()
    losses: Sequence[Sequence[float]] = ()
    latent: Sequence[float] = ()
    look: tuple[int, int] = (0, 0)
    unusable: str = ""

    def line(self) -> str:
        return json.dumps(vars(self), ensure_ascii=True) + "\n"


@dataclass(frozen=True)
class Table:
    """All samples that were measured, by number. latents: [N,D]; looks: [N,2]."""

    samples: Sequence[Measured]
    unusable: Sequence[Measured]
    losses: Losses
    latents: Tensor
    looks: NDArray[np.uint64]


class Ledger:
    """The samples-*.jsonl of a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def known(self) -> set[int]:
        """The numbers of the samples that are finished."""
        return {found.number for found in self._read()}

    def append(self, rank: int, measured: Measured) -> None:
        """Takes up a finished sample; one process a rank."""
        path = self.folder / f"samples-{rank}.jsonl"
        with path.open("a+b") as file:
            if file.seek(0, 2):
                file.seek(-1, 2)
                if file.read(1) != b"\n":  # cut short by a crash: do not write on in it
                    file.write(b"\n")
            file.write(measured.line().encode())

    def table(self, numbers: Sequence[int]) -> Table:
        """Of these samples. Raises ValueError where too few could be measured."""
        wanted = set(numbers)
        found = {one.number: one for one in self._read() if one.number in wanted}
        rows = [found[number] for number in sorted(found)]
        good = [row for row in rows if not row.unusable]
        bad = [row for row in rows if row.unusable]
        if not good:
            raise ValueError(f"none of {len(rows)} samples can be read: {bad[0].unusable}")
        losses = torch.tensor([row.losses for row in good], dtype=torch.float64)  # [N,2+A,K]
        return Table(
            samples=good,
            unusable=bad,
            losses=Losses(own=losses[:, 0], none=losses[:, 1], others=losses[:, 2:]),
            latents=torch.tensor([row.latent for row in good]),
            looks=np.array([row.look for row in good], dtype=np.uint64),
        )

    def _read(self) -> Iterator[Measured]:
        for path in sorted(self.folder.glob("samples-*.jsonl")):
            with path.open("rb") as file:
                for line in file:
                    try:
                        yield Measured(**json.loads(line))
                    except (ValueError, TypeError):
                        continue  # cut short by a crash: it is measured again


def rounded(explained: Explained) -> tuple[list[list[float]], list[float]]:
    """losses and latent as the ledger holds them."""
    losses = [[_short(v, DIGITS) for v in row] for row in explained.losses.tolist()]
    return losses, [_short(v, LATENT_DIGITS) for v in explained.latent.tolist()]


def _short(value: float, digits: int) -> float:
    return float(f"{value:.{digits}g}")
