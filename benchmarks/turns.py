"""How do contenders that read take turns in one process?"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator, Mapping, Sequence

from doc_tables import figure

CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}


def take_turns(
    batches: Mapping[str, Iterator[int]], *, rounds: int, seconds: float, clock: str
) -> dict[str, list[float]]:
    """Samples a second of each contender in each round; a batch before the first warms up.

    batches: endless, each is how many samples it has. seconds: a turn, at least one batch. The
    order rotates from round to round.
    """
    rates: dict[str, list[float]] = {name: [] for name in batches}
    names = list(batches)
    for turn in range(rounds + 1):
        first = turn % len(names)
        for name in names[first:] + names[:first]:
            rate = _rate(batches[name], seconds if turn else 0.0, clock)
            if turn:
                rates[name].append(rate)
    return rates


def quartiles(values: Sequence[float]) -> list[float]:
    return statistics.quantiles(values, n=4)


def with_quartiles(values: Sequence[float]) -> str:
    """The middle (lower–upper)."""
    low, middle, high = (figure(value) for value in values)
    return f"{middle} ({low}–{high})"


def _rate(batches: Iterator[int], seconds: float, clock: str) -> float:
    now = CLOCKS[clock]
    begin, samples, spent = now(), 0, 0.0
    while not samples or spent < seconds:
        samples += next(batches)
        spent = now() - begin
    return samples / spent
