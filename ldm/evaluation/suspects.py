"""Which captions fit their pictures worse than other captions do, and which pictures are too hard
or too easy?

Everything is made of logarithms of losses: their differences are of the same kind at all noise
levels, and where a caption says nothing they are 0. N pictures, K noise levels, A other captions.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

LEAST = 10  # pictures: of fewer, no middle and no spread can be told
_NORMAL = 1.4826  # deviation of a normal law by its median absolute deviation
_NORMAL_MEAN = 1.2533  # and by its mean absolute deviation


@dataclass(frozen=True, eq=False)
class Losses:
    """own, none [N,K], others [N,A,K]: losses with the own caption, none, and A others.

    All of one picture are at the same levels with the same noise. Raises ValueError.
    """

    own: Tensor
    none: Tensor
    others: Tensor

    def __post_init__(self) -> None:
        shape = tuple(self.own.shape)
        a_set = self.others.shape[1] if self.others.ndim == 3 else 0
        if len(shape) != 2 or self.none.shape != shape or not a_set:
            raise ValueError(
                f"own {shape}, none {tuple(self.none.shape)}, others {tuple(self.others.shape)}; "
                "give [N,K], [N,K] and [N,A,K] with A of 1 or more"
            )
        if self.others.shape != (shape[0], a_set, shape[1]):
            raise ValueError(f"others is {tuple(self.others.shape)}, own {shape}: not one N and K")
        if len(self.own) < LEAST:
            raise ValueError(
                f"{len(self.own)} pictures are too few to say which of them stand out; give "
                f"{LEAST} or more"
            )
        every = torch.cat([self.own, self.none, self.others.flatten(1)], dim=1)
        broken = ~(torch.isfinite(every) & (every > 0)).all(dim=1)
        if broken.any():
            raise ValueError(
                f"{int(broken.sum())} pictures have losses that are not finite and positive (the "
                f"first: row {int(broken.nonzero()[0])}); use dtype=fp32"
            )


@dataclass(frozen=True, eq=False)
class Scores:
    """All [N]. gain: of the own caption over none; advantage: over the mean of the others; fit:
    the mean of both. Each a logarithm of how many times smaller the loss is.

    share: of the captions, the own included, that explain the picture as well as its own; for a
    caption as good as any it is uniform on 1/(A+1) … 1. nearest: which other explains it best.
    hardness: the loss over that of the middle picture; surprise: over that of its neighbours.
    fit_z, hard_z, easy_z: how many deviations it stands out from the set, by the bulk of it.
    """

    gain: Tensor
    advantage: Tensor
    fit: Tensor
    share: Tensor
    nearest: Tensor
    hardness: Tensor
    surprise: Tensor
    fit_z: Tensor
    hard_z: Tensor
    easy_z: Tensor

    def flags(self, z: float) -> Mapping[str, Tensor]:
        """Which pictures stand out by z or more deviations: [N] bool by kind.

        A wrong caption makes a picture hard; hard are those that are it although theirs fits.
        """
        mislabelled = self.fit_z <= -z
        return {
            "mislabelled": mislabelled,
            "hard": (self.hard_z >= z) & ~mislabelled,
            "easy": self.easy_z <= -z,
        }


def score(losses: Losses, neighbours: Tensor) -> Scores:
    """neighbours: [N,M] rows of the pictures most like each one.

    Li et al. 2023 (Your Diffusion Model is Secretly a Zero-Shot Classifier) choose between captions
    by the same losses at shared levels and noises.
    """
    own, none, others = (part.double().log() for part in (losses.own, losses.none, losses.others))
    gain = (none - own).mean(1)
    each = (others - own[:, None]).mean(2)  # [N,A]
    advantage = each.mean(1)
    fit = (gain + advantage) / 2
    hardness = (own - own.median(dim=0).values).mean(1)
    surprise = hardness - hardness[neighbours].mean(1)
    return Scores(
        gain=gain,
        advantage=advantage,
        fit=fit,
        share=(1 + (each <= 0).sum(1)) / (1 + each.shape[1]),
        nearest=each.argmin(1),
        hardness=hardness,
        surprise=surprise,
        fit_z=robust_z(fit),
        hard_z=robust_z(hardness),
        easy_z=robust_z(surprise),
    )


def robust_z(values: Tensor) -> Tensor:
    """Distance from the median in deviations, [N]: the bulk says what a deviation is.

    By the median absolute deviation, or, where half of the values are equal, the mean one.
    """
    distance = values - values.median()
    scale = _NORMAL * distance.abs().median()
    if scale == 0:
        scale = _NORMAL_MEAN * distance.abs().mean()
    return distance / scale if scale > 0 else torch.zeros_like(distance)
