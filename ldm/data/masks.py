"""Which part of picture i is to be painted anew, in a run that trains inpainting?

The mix of Stable Diffusion's inpainting models: now and then everything is hidden (so the network
goes on drawing whole pictures), else wide boxes or free-form strokes about as large as LaMa's
(Suvorov et al. 2022); strokes turn as a brush does (Yu et al. 2019, section 3.4).

B rows, H x W picture size in px, K boxes, S strokes, V segments a stroke.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from ldm import rng

# lengths are fractions of the shorter side of the picture
BOXES = 4  # at most in a mask, at least one
BOX_SIDE = (0.12, 0.6)
STROKES = 5  # at most in a mask, at least one
SEGMENTS = 5  # at most in a stroke, at least one
SEGMENT_LENGTH = (0.05, 0.8)
STROKE_WIDTH = (0.05, 0.4)
TURN = 0.75 * math.pi  # the largest change of direction between two segments

Draw = Callable[..., Tensor]  # (name, *shape) -> uniforms [B,*shape]
Place = tuple[Tensor, Tensor]  # y and x in px, [B] each


def random_masks(
    seed: int, purpose: str, index: Tensor, size: tuple[int, int], *, full: float, boxes: float
) -> Tensor:
    """Masks [B,1,H,W] float32 on the device of `index` [B]: 1 is painted anew, 0 kept.

    size: (H, W). full, boxes: the probabilities of hiding everything and of boxes; strokes take
    the rest. A mask depends on (seed, purpose, its index, size) alone; between devices the last bit
    of a sine may move a pixel at the edge of a stroke.
    """

    def draw(name: str, *shape: int) -> Tensor:
        return rng.uniform(seed, f"{purpose}/{name}", index, shape)

    kind = draw("kind")[:, None, None]
    drawn = torch.where(kind < full + boxes, _boxes(draw, size), _strokes(draw, size))
    return ((kind < full) | drawn).float()[:, None]


def _boxes(draw: Draw, size: tuple[int, int]) -> Tensor:
    """The union of some boxes, each wholly inside: [B,H,W] bool."""
    there = _some(draw("boxes"), BOXES)  # [B,K]
    sides, places = draw("box-side", BOXES, 2), draw("box-place", BOXES, 2)
    lines = []
    for axis, length in enumerate(size):
        side = _between(BOX_SIDE, sides[..., axis]).mul(min(size)).round().clamp(min=1)
        start = (places[..., axis] * (length - side + 1)).floor()  # [B,K]
        line = torch.arange(length, device=there.device)
        lines.append((line >= start[..., None]) & (line < (start + side)[..., None]))
    rows, columns = lines  # [B,K,H], [B,K,W]
    return (rows[..., None] & columns[..., None, :] & there[..., None, None]).any(1)


def _strokes(draw: Draw, size: tuple[int, int]) -> Tensor:
    """The union of some strokes of a round brush: [B,H,W] bool."""
    height, width = size
    segments = _some(draw("segments", STROKES), SEGMENTS)
    there = _some(draw("strokes"), STROKES)[..., None] & segments  # [B,S,V]
    radius = _between(STROKE_WIDTH, draw("width", STROKES)) * min(size) / 2  # [B,S]
    turn = _between((-TURN, TURN), draw("turn", STROKES, SEGMENTS))
    heading = 2 * math.pi * draw("heading", STROKES, 1) + turn.cumsum(-1)  # [B,S,V]
    length = _between(SEGMENT_LENGTH, draw("length", STROKES, SEGMENTS)) * min(size)
    down, across = length * heading.sin(), length * heading.cos()
    y, x = draw("start", STROKES, 2).unbind(-1)
    y, x = y * height, x * width  # [B,S]
    painted = torch.zeros(len(there), *size, dtype=torch.bool, device=there.device)
    for v in range(SEGMENTS):
        end_y, end_x = (y + down[..., v]).clamp(0, height), (x + across[..., v]).clamp(0, width)
        for s in range(STROKES):  # one by one: all at once would be S x V pictures of memory
            ends = (y[:, s], x[:, s]), (end_y[:, s], end_x[:, s])
            painted |= _near(*ends, radius[:, s], size) & there[:, s, v, None, None]
        y, x = end_y, end_x
    return painted


def _near(start: Place, end: Place, radius: Tensor, size: tuple[int, int]) -> Tensor:
    """Pixels whose centre is at most radius [B] px from the segments start-end: [B,H,W] bool."""
    (start_y, start_x), (end_y, end_x) = (
        (y[:, None, None], x[:, None, None]) for y, x in (start, end)
    )
    y = torch.arange(size[0], device=radius.device)[:, None] + 0.5 - start_y
    x = torch.arange(size[1], device=radius.device) + 0.5 - start_x
    dy, dx = end_y - start_y, end_x - start_x
    along = ((y * dy + x * dx) / (dy * dy + dx * dx).clamp(min=1e-6)).clamp(0, 1)
    distance = (y - along * dy).square() + (x - along * dx).square()
    return distance <= radius.square()[:, None, None]


def _some(u: Tensor, most: int) -> Tensor:
    """Which of `most` things are there: the first 1 … most of them. [...] -> [...,most] bool."""
    return torch.arange(most, device=u.device) <= (u * most).floor()[..., None]


def _between(limits: tuple[float, float], u: Tensor) -> Tensor:
    return limits[0] + (limits[1] - limits[0]) * u
