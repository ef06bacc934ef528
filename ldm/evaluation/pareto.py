"""Which entries are not beaten in one number without losing in the other?"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from ldm.evaluation.metrics import BETTER

QUALITY = ("fid", "fd", "kid", "cmmd", "judge", "clip_score")  # the first that was measured
AGAINST = "clip_score"


def front(points: Mapping[str, tuple[float, float]], better: tuple[str, str]) -> list[str]:
    """The ids that no other point beats; better: "lower" or "higher" of each number.

    Beaten: at least as good in both and better in one. Ordered by the first number, best first.
    """
    signs = [1.0 if word == "lower" else -1.0 for word in better]
    costs = {
        key: (signs[0] * point[0], signs[1] * point[1])
        for key, point in points.items()
        if not any(map(math.isnan, point))
    }
    kept = [
        key
        for key, (x, y) in costs.items()
        if not any(a <= x and b <= y and (a < x or b < y) for a, b in costs.values())
    ]
    return sorted(kept, key=lambda key: costs[key])


def axes_of(measured: Sequence[str], *, guidance_varies: bool) -> tuple[str, str] | None:
    """Which two numbers a sweep is about: fidelity against CLIP score where guidance varies, which
    trades the two, else quality against seconds a picture. None when they were not measured."""
    quality = [name for name in QUALITY if name in measured]
    if guidance_varies and AGAINST in measured and quality and quality[0] != AGAINST:
        return quality[0], AGAINST
    return (quality[0], "seconds") if quality else None


def better_of(names: tuple[str, str]) -> tuple[str, str]:
    return BETTER[names[0]], BETTER[names[1]]
