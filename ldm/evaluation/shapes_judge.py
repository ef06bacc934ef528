"""Which shape, colour and size does a picture show, if any?

For pictures of `ldm.data.shapes`. A matched filter: a picture is explained as
ground + mask x (colour - ground), where the mask is the best of all shapes x radii x places drawn
by the same renderer. What no mask explains well has no clear object; what two shapes explain alike
has no clear shape. Both count as wrong.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from ldm.data import shapes
from ldm.data.shapes import EASY, HARD, Task
from ldm.images import from_pil, from_uint8

# B pictures  K masks  P pixels of one picture  S shapes

WORK_PX = 32  # pictures are judged at this size
MIN_EXPLAINED = 0.85  # share of the picture's energy that one mask in one colour explains
MAX_AMBIGUITY = 0.55  # energy left over by the best shape / by the next best one
MIN_CONTRAST = 0.15  # root mean square of the object's difference from the ground, per channel
MAX_COLOUR_ERROR = 0.20  # the same for its difference from the nearest named colour
SIZE_TOLERANCE = 0.15  # a radius may be so much (relative) outside of the named sizes
NONE = "none"

_SMOOTHING_PX = 0.6  # of pictures and masks: takes most of the noise, little of the shape
_SOFTNESS_PX = 0.45  # of masks only: a decoder's edges are a little softer than drawn ones
_REACH_PX = 3  # whole pixels that the place may be off: jitter (2.56 px) and a little more
_PARTS_PX = (-0.25, 0.25)  # parts of a pixel beside them
_RADIUS_STEP_PX = 0.6
_CHUNK = 256


@dataclass(frozen=True)
class Verdict:
    """What a picture shows; None where that can't be told. confidence: share explained, [0,1]."""

    shape: str | None
    colour: str | None
    size: str | None
    ground: str | None
    confidence: float


@dataclass(frozen=True)
class ShapesScore:
    """Which fractions of `n` pictures show what their captions say.

    all: everything the caption says is right. confusion: asked shape -> {seen or "none": pictures}.
    """

    colour: float
    shape: float
    size: float
    all: float
    n: int
    confusion: Mapping[str, Mapping[str, int]]

    def __str__(self) -> str:
        return (
            f"colour {self.colour:.1%}, shape {self.shape:.1%}, size {self.size:.1%}, "
            f"all {self.all:.1%} of {self.n} pictures"
        )


def score(
    pixels: Tensor | Sequence[Image.Image], captions: Sequence[str], *, task: Task = EASY
) -> ShapesScore:
    """How many pictures show what their captions say. pixels: [B,3,H,W] in [-1,1] or pictures."""
    if len(pixels) != len(captions) or not len(captions):
        raise ValueError(f"{len(pixels)} pictures, {len(captions)} captions: give equally many")
    seen = judge(pixels, task=task)
    right = agreement(seen, captions, task=task)
    confusion = {shape: dict.fromkeys((*task.shapes, NONE), 0) for shape in task.shapes}
    for caption, got in zip(captions, seen, strict=True):
        confusion[task.parse(caption).shape][got.shape or NONE] += 1
    colour, shape, size, every = right.mean(axis=0).tolist()
    return ShapesScore(colour, shape, size, every, len(captions), confusion)


def agreement(
    seen: Sequence[Verdict], captions: Sequence[str], *, task: Task = EASY
) -> npt.NDArray[np.bool_]:
    """Where pictures show what their captions say, [N,4]: colour, shape, size, everything."""
    asked = [task.parse(caption) for caption in captions]
    rows = [
        (got.colour == want.colour, got.shape == want.shape, got.size == want.size)
        for want, got in zip(asked, seen, strict=True)
    ]
    right = np.array(rows, dtype=np.bool_).reshape(-1, 3)
    ground = [got.ground == want.ground for want, got in zip(asked, seen, strict=True)]
    every = right.all(axis=1) & np.array(ground, dtype=np.bool_)
    return np.column_stack([right, every])


def task_of(captions: Sequence[str]) -> Task | None:
    """The task all these captions are of; None where a caption is of none."""
    return next((task for task in (EASY, HARD) if all(_of(task, c) for c in captions)), None)


def judge_accuracy(n: int, seed: int, *, task: Task = EASY) -> ShapesScore:
    """The judge's score on true renders: the ceiling of every score it gives."""
    scenes = shapes.scenes(task, seed=seed, index=range(n))
    pixels = from_uint8(torch.from_numpy(shapes.render(scenes, side_px=task.side_px)))
    return score(pixels, [task.caption(scene) for scene in scenes], task=task)


def judge(pixels: Tensor | Sequence[Image.Image], *, task: Task = EASY) -> list[Verdict]:
    """One verdict a picture. pixels: [B,3,H,W] in [-1,1], or square pictures of one size."""
    if not isinstance(pixels, Tensor):
        pixels = from_pil(pixels)
    if pixels.ndim != 4 or pixels.shape[1] != 3 or pixels.shape[2] != pixels.shape[3]:
        raise ValueError(f"pixels are {tuple(pixels.shape)}; give square pictures [B,3,H,H]")
    values = (pixels.detach().float().cpu().nan_to_num(0.0).clamp(-1, 1) + 1) / 2
    return [
        verdict
        for chunk in torch.split(values, _CHUNK)
        for verdict in _judged(_resized(chunk), task)
    ]


def _of(task: Task, caption: str) -> bool:
    try:
        task.parse(caption)
    except ValueError:
        return False
    return True


def _judged(values: Tensor, task: Task) -> list[Verdict]:
    """values: [B,3,P] in [0,1]."""
    bank = _bank(task)
    grounds = _palette(shapes.GROUNDS, task.grounds)
    ground, ground_error = _nearest(_border(values), grounds)
    difference = values - grounds[ground][:, :, None]
    energy = difference.square().sum((1, 2)).clamp(min=1e-9)
    # one direction in colour space a picture: weights ^4, so that the inside of the object decides
    weight = difference.square().sum(1).square()
    direction = F.normalize(torch.einsum("bcp,bp->bc", difference, weight), dim=1)
    profile = torch.einsum("bcp,bc->bp", difference, direction)
    match = profile @ bank.masks.T  # [B,P] x [P,K] -> [B,K]
    per_shape = match.reshape(len(match), len(task.shapes), -1).amax(2).clamp(min=0)  # [B,S]
    left = (1 - per_shape.square() / energy[:, None]).clamp(min=1e-6)  # energy not explained
    best, second = left.topk(2, dim=1, largest=False).values.T
    kind = left.argmin(1)
    mask = match.argmax(1)
    # the colour that the best mask has, least squares: partly covered pixels need no care
    strength = torch.einsum("bcp,bp->bc", difference, bank.masks[mask])
    colour = grounds[ground] + strength / bank.norms[mask][:, None]
    contrast = (colour - grounds[ground]).square().mean(1).sqrt()
    named, colour_error = _nearest(colour, _palette(shapes.COLOURS, task.colours))
    clear = (best <= 1 - MIN_EXPLAINED) & (contrast >= MIN_CONTRAST)
    return [
        Verdict(
            shape=task.shapes[kind[i]]
            if clear[i] and best[i] <= MAX_AMBIGUITY * second[i]
            else None,
            colour=task.colours[named[i]]
            if clear[i] and colour_error[i] <= MAX_COLOUR_ERROR
            else None,
            size=_size(task, float(bank.radii[mask[i]])) if clear[i] else None,
            ground=task.grounds[ground[i]] if ground_error[i] <= MAX_COLOUR_ERROR / 2 else None,
            confidence=float(1 - best[i]) if contrast[i] >= MIN_CONTRAST else 0.0,
        )
        for i in range(len(values))
    ]


@dataclass(frozen=True)
class _Bank:
    """masks: [K,P] of unit norm, shape by shape; norms, radii: [K]."""

    masks: Tensor
    norms: Tensor
    radii: Tensor


@lru_cache(maxsize=2)  # some 80 MB each
def _bank(task: Task) -> _Bank:
    """All masks a picture is compared with.

    Whole-pixel shifts are crops of one larger canvas, so only the part-pixel places are drawn.
    """
    side = WORK_PX + 2 * _REACH_PX
    smallest = min(size.smallest for size in task.sizes) * (1 - SIZE_TOLERANCE)
    largest = max(size.largest for size in task.sizes) * (1 + SIZE_TOLERANCE)
    step = _RADIUS_STEP_PX / WORK_PX
    radii = np.arange(smallest - step, largest + 2 * step, step)
    drawn = [
        (name, r, x, y) for name in task.shapes for r in radii for x in _PARTS_PX for y in _PARTS_PX
    ]
    canvas = torch.from_numpy(
        shapes.coverage(
            [name for name, *_ in drawn],
            radius=np.array([r for _, r, _, _ in drawn]) * WORK_PX / side,
            centre=0.5 + np.array([(x, y) for *_, x, y in drawn]) / side,
            side_px=side,
        )
    )
    canvas = _smooth(canvas[:, None], float(np.hypot(_SOFTNESS_PX, _SMOOTHING_PX)))[:, 0]
    starts = range(2 * _REACH_PX + 1)
    views = [canvas[:, y : y + WORK_PX, x : x + WORK_PX] for y in starts for x in starts]
    masks = torch.stack(views, dim=1).reshape(-1, WORK_PX**2)
    norms = masks.norm(dim=1)
    per_radius = len(views) * len(_PARTS_PX) ** 2
    all_radii = torch.from_numpy(radii).repeat_interleave(per_radius).repeat(len(task.shapes))
    return _Bank(masks / norms[:, None], norms, all_radii)


def _resized(values: Tensor) -> Tensor:
    """[B,3,H,H] -> [B,3,P], averaged to WORK_PX and smoothed as the masks are."""
    if values.shape[-1] > WORK_PX:
        values = F.interpolate(values, size=WORK_PX, mode="area")
    elif values.shape[-1] < WORK_PX:
        values = F.interpolate(values, size=WORK_PX, mode="bilinear", align_corners=False)
    return _smooth(values, _SMOOTHING_PX).flatten(2)


def _smooth(values: Tensor, sigma_px: float) -> Tensor:
    """Gaussian blur of [B,C,H,W], edges repeated."""
    reach = int(np.ceil(3 * sigma_px))
    place = torch.arange(-reach, reach + 1, dtype=torch.float32)
    kernel = torch.exp(-place.square() / (2 * sigma_px**2))
    kernel = (kernel / kernel.sum()).reshape(1, 1, 1, -1)
    batch, channels, height, width = values.shape
    rows = F.pad(values.reshape(-1, 1, height, width), (reach,) * 4, mode="replicate")
    both = F.conv2d(F.conv2d(rows, kernel), kernel.transpose(2, 3))
    return both.reshape(batch, channels, height, width)


def _border(values: Tensor) -> Tensor:
    """The median colour of the outermost pixels. [B,3,P] -> [B,3]."""
    square = values.reshape(*values.shape[:2], WORK_PX, WORK_PX)
    edges = (square[..., 0, :], square[..., -1, :], square[..., :, 0], square[..., :, -1])
    return torch.cat(edges, dim=-1).median(-1).values


def _palette(table: Mapping[str, shapes.Rgb], names: Sequence[str]) -> Tensor:
    return torch.tensor([table[name] for name in names], dtype=torch.float32) / 255


def _nearest(colours: Tensor, palette: Tensor) -> tuple[Tensor, Tensor]:
    """Index of the nearest entry and its root mean square distance. [B,3], [N,3] -> [B], [B]."""
    distance = (colours[:, None] - palette).square().mean(2).sqrt()
    found = distance.min(1)
    return found.indices, found.values


def _size(task: Task, radius: float) -> str | None:
    """The size whose range is nearest, unless it is too far off (relative)."""

    def off(size: shapes.Size) -> float:
        return max(1 - radius / size.smallest, radius / size.largest - 1, 0.0)

    nearest = min(task.sizes, key=off)
    return nearest.name if off(nearest) <= SIZE_TOLERANCE else None
