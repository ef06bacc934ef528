"""Do pictures show what their captions say?"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from ldm.evaluation.bootstrap import Interval, bootstrap_mean
from ldm.evaluation.statistics import Features


@dataclass(frozen=True, eq=False)
class ClipScore:
    """interval: of the mean; scores [N], index [N]: of each picture, for the best and worst."""

    interval: Interval
    scores: Tensor
    index: Tensor

    @property
    def value(self) -> float:
        return self.interval.value

    def __str__(self) -> str:
        return f"CLIP score {self.interval}"


def clip_score(
    pictures: Features, captions: Features, *, seed: int, level: float = 0.95
) -> ClipScore:
    """Hessel et al. 2021, section 3: max(cos, 0) a pair, times 100 (theirs is 2.5), then the mean.

    Rows belong together by their index. Raises ValueError when the two are not about the same
    pictures, of two widths, all-zero somewhere or fewer than 2.
    """
    if not torch.equal(pictures.index, captions.index) or pictures.dim != captions.dim:
        raise ValueError(
            f"{pictures.count} pictures of {pictures.dim} features and {captions.count} captions "
            f"of {captions.dim}: give one caption a picture, under the same index, of one CLIP"
        )
    zero = [~rows.values.any(1) for rows in (pictures, captions)]
    if bool((zero[0] | zero[1]).any()):
        found = pictures.index[zero[0] | zero[1]]
        raise ValueError(f"{len(found)} pairs have all-zero features (the first: {found[0]})")
    cosine = functional.cosine_similarity(pictures.values.double(), captions.values.double())
    scores = 100 * cosine.clamp(min=0)
    interval = bootstrap_mean(scores, seed=seed, purpose="clip_score", level=level)
    return ClipScore(interval, scores, pictures.index)
