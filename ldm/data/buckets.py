"""Which picture sizes are batched together, and which samples go into which?

Bucketing by aspect ratio (NovelAI 2022): sizes of about one area, each sample in the one that is
nearest in aspect. All of it is decided from metadata, before anything is decoded.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Pair = tuple[int, int]  # (height, width) in px


@dataclass(frozen=True, kw_only=True)
class Buckets:
    """max_aspect: of the picture sizes, longer by shorter side; 1: squares only, no buckets.

    step: every side is a multiple of it, in px: 64, or the VAE's factor times 2^(UNet levels - 1).
    """

    max_aspect: float = 1.0
    step: int = 64

    def problems(self, size: int) -> list[str]:
        """What is wrong with these settings for pictures of size x size pixels."""
        found = []
        if not 1.0 <= self.max_aspect < math.inf:
            found.append(
                f"data.buckets.max_aspect={self.max_aspect} is no longer/shorter side; use 1 "
                "(squares only) or more"
            )
        if self.step < 1:
            found.append(f"data.buckets.step={self.step}; use 1 or more")
        elif self.used and size % self.step:
            near = max(round(size / self.step), 1) * self.step
            found.append(
                f"data.size={size} is not a multiple of data.buckets.step={self.step}; use "
                f"data.size={near} or another step"
            )
        return found

    @property
    def used(self) -> bool:
        return self.max_aspect > 1.0

    def sizes(self, size: int) -> list[Pair]:
        """The (height, width)s by aspect, portrait first: area at most size^2, sides from `step`.

        For each shorter side the longest longer side that the area allows; where two shorter sides
        share it, only the larger picture.
        """
        by_long: dict[int, int] = {}
        for short in range(size, 0, -self.step):
            long = size * size // short // self.step * self.step
            if long <= self.max_aspect * short:
                by_long.setdefault(long, short)
        wide = [(short, long) for long, short in sorted(by_long.items())]
        return [(long, short) for short, long in reversed(wide) if long > short] + wide


def nearest_bucket(pictures: NDArray[np.float64], sizes: Sequence[Pair]) -> NDArray[np.int32]:
    """The bucket nearest in log aspect ratio: pictures [n,2] (width, height) -> [n].

    A picture of unknown size (nan) goes where squares go: it is most likely one that cannot be
    decoded, which is found out there.
    """
    wanted = np.nan_to_num(np.log(pictures[:, 0] / pictures[:, 1]))
    return np.abs(wanted[:, None] - _log_aspects(sizes)).argmin(axis=1).astype(np.int32)


def equal_bucket(sizes_of: NDArray[np.float64], sizes: Sequence[Pair]) -> NDArray[np.int32]:
    """The bucket of just this size, for what cannot be cut: [n,2] (width, height) -> [n].

    One of unknown size goes into the first bucket, where it is found to be unusable.
    """
    same = (sizes_of[:, None, ::-1] == np.array(sizes, dtype=np.float64)).all(axis=2)  # [n,b]
    return same.argmax(axis=1).astype(np.int32)


def join_small(expected: Sequence[float], sizes: Sequence[Pair], least: int) -> list[int]:
    """Where each bucket goes so that all that are left hold `least` samples or more.

    expected: samples an epoch of each bucket. The smallest joins the one nearest in aspect (of two
    the fuller), again and again; -1: a bucket that holds nothing.
    """
    counts = [float(count) for count in expected]
    joined = [n if count > 0 else -1 for n, count in enumerate(counts)]
    aspects = _log_aspects(sizes)
    while True:
        alive = [n for n, count in enumerate(counts) if count > 0]
        small = [n for n in alive if counts[n] < least]
        if not small or len(alive) == 1:
            return joined
        least_full = min(small, key=lambda n: (counts[n], n))
        others = [n for n in alive if n != least_full]
        distance = {n: round(float(abs(aspects[n] - aspects[least_full])), 9) for n in others}
        target = min(others, key=lambda n: (distance[n], -counts[n], n))
        counts[target] += counts[least_full]
        counts[least_full] = 0.0
        joined = [target if n == least_full else n for n in joined]


def _log_aspects(sizes: Sequence[Pair]) -> NDArray[np.float64]:
    return np.log([width / height for height, width in sizes])
