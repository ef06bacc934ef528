"""Which part of picture i is to be painted anew, in a run that trains inpainting?

The mix of Stable Diffusion's inpainting models: now and then everything is hidden (so the network
goes on drawing whole pictures), else wide boxes or free-form strokes about as large as LaMa's
(Suvorov et al. 2022); strokes turn as a brush does (Yu et al. 2019, section 3.4).

B rows, H x W picture size in px, K boxes, S strokes, V segments a stroke. Places are (y, x).
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
    room = torch.tensor(size, device=there.device)
    side = _between(BOX_SIDE, draw("box-side", BOXES, 2)).mul(min(size)).round().clamp(min=1)
    start = (draw("box-place", BOXES, 2) * (room - side + 1)).floor()  # [B,K,2]
    rows, columns = (
        (places >= start[..., axis, None]) & (places < (start + side)[..., axis, None])
        for axis, places in enumerate(torch.arange(n, device=there.device) for n in size)
    )  # [B,K,H], [B,K,W]
    return (rows[..., None] & columns[..., None, :] & there[..., None, None]).any(1)


def _strokes(draw: Draw, size: tuple[int, int]) -> Tensor:
    """The union of some strokes of a round brush: [B,H,W] bool."""
    segments = _some(draw("segments", STROKES), SEGMENTS)
    there = _some(draw("strokes"), STROKES)[..., None] & segments  # [B,S,V]
    limit = torch.tensor(size, device=there.device, dtype=torch.float32)
    radius = _between(STROKE_WIDTH, draw("width", STROKES)) * min(size) / 2  # [B,S]
    turn = _between((-TURN, TURN), draw("turn", STROKES, SEGMENTS))
    heading = 2 * math.pi * draw("heading", STROKES, 1) + turn.cumsum(-1)  # [B,S,V]
    length = _between(SEGMENT_LENGTH, draw("length", STROKES, SEGMENTS)) * min(size)
    step = length[..., None] * torch.stack([heading.sin(), heading.cos()], dim=-1)  # [B,S,V,2]
    start = draw("start", STROKES, 2) * limit
    painted = torch.zeros(len(there), *size, dtype=torch.bool, device=there.device)
    for v in range(SEGMENTS):
        end = torch.minimum((start + step[:, :, v]).clamp(min=0), limit)
        for s in range(STROKES):  # one by one: all at once would be S x V pictures of memory
            near = _near(start[:, s], end[:, s], radius[:, s], size)
            painted |= near & there[:, s, v, None, None]
        start = end
    return painted


def _near(start: Tensor, end: Tensor, radius: Tensor, size: tuple[int, int]) -> Tensor:
    """Pixels whose centre is at most radius [B] px from the segments start-end [B,2]: [B,H,W]."""
    y = torch.arange(size[0], device=start.device)[:, None] + 0.5 - start[:, 0, None, None]
    x = torch.arange(size[1], device=start.device) + 0.5 - start[:, 1, None, None]
    dy, dx = (end - start).T[..., None, None]
    along = ((y * dy + x * dx) / (dy * dy + dx * dx).clamp(min=1e-6)).clamp(0, 1)
    distance = (y - along * dy).square() + (x - along * dx).square()
    return distance <= radius.square()[:, None, None]


def _some(u: Tensor, most: int) -> Tensor:
    """Which of `most` things are there: the first 1 … most of them. [...] -> [...,most] bool."""
    return torch.arange(most, device=u.device) <= (u * most).floor()[..., None]


def _between(limits: tuple[float, float], u: Tensor) -> Tensor:
    return limits[0] + (limits[1] - limits[0]) * u
