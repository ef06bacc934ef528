"""What does the embedded data set look like, and how is picture `index` of `seed` drawn?

Everything is a pure function of (task, seed, index): no files, no generator state.
Unit coordinates: x to the right, y downwards, the nominal radius is 1.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from types import MappingProxyType

import numpy as np
import numpy.typing as npt
import torch

from ldm import rng

Floats = npt.NDArray[np.float64]
Pixels = npt.NDArray[np.uint8]
Polygons = tuple[Floats, ...]  # closed outlines [E,2], filled by the even-odd rule
Rgb = tuple[int, int, int]

JITTER = 0.08  # the centre lies within +-8 % of the side around the middle
MIN_SIDE_PX = 8  # below, a small star is a blot
SUBROWS = 16  # vertical samples a pixel; horizontally the coverage is exact
SECTIONS = 4096  # tabulated heights of a unit shape
REACH = 1.125  # no unit shape is wider or higher than this
CHUNK = 512  # pictures drawn at once: bounds the memory to some tens of MB at 64 px


@dataclass(frozen=True)
class Size:
    """A word and the radii it stands for, as fractions of the side."""

    name: str
    smallest: float
    largest: float


@dataclass(frozen=True)
class Scene:
    """What is in one picture. radius and centre are fractions of the side."""

    shape: str
    colour: str
    size: str
    ground: str
    radius: float
    centre: tuple[float, float]


@dataclass(frozen=True)
class Combination:
    """What a caption says."""

    shape: str
    colour: str
    size: str
    ground: str


@dataclass(frozen=True, kw_only=True)
class Task:
    """A family of pictures: every combination occurs equally often.

    held_out: (colour, shape) pairs that are left out, or, with `only_held_out`, all that is drawn.
    """

    name: str
    side_px: int
    shapes: tuple[str, ...]
    colours: tuple[str, ...]
    sizes: tuple[Size, ...]
    grounds: tuple[str, ...] = ("white",)
    held_out: tuple[tuple[str, str], ...] = ()
    only_held_out: bool = False

    def __post_init__(self) -> None:
        known = {(colour, shape) for colour in self.colours for shape in self.shapes}
        strange = [" ".join(pair) for pair in self.held_out if tuple(pair) not in known]
        problems = [f"held_out {words!r} is not a colour and a shape" for words in strange]
        if self.side_px < MIN_SIDE_PX:
            problems.append(f"side_px={self.side_px} is too small to tell shapes apart")
        if self.only_held_out and not self.held_out:
            problems.append("only_held_out=True needs held_out pairs")
        if not problems and not self.combinations:
            problems.append("held_out leaves nothing to draw")
        if problems:
            raise ValueError(
                f"task {self.name}: {'; '.join(problems)}. Use side_px >= {MIN_SIDE_PX}; "
                f"colours {', '.join(self.colours)}; shapes {', '.join(self.shapes)}"
            )

    @cached_property
    def combinations(self) -> tuple[Combination, ...]:
        """All that may be drawn, in a fixed order."""
        held_out = {tuple(pair) for pair in self.held_out}
        return tuple(
            Combination(shape, colour, size.name, ground)
            for size in self.sizes
            for colour in self.colours
            for shape in self.shapes
            for ground in self.grounds
            if ((colour, shape) in held_out) == self.only_held_out
        )

    @property
    def size_names(self) -> tuple[str, ...]:
        return tuple(size.name for size in self.sizes)

    @property
    def captions(self) -> tuple[str, ...]:
        """One caption for each combination."""
        return tuple(self.caption(combination) for combination in self.combinations)

    def caption(self, what: Combination | Scene) -> str:
        """The caption of a combination, in this task's words."""
        plain = f"a {what.size} {what.colour} {what.shape}"
        return plain if len(self.grounds) == 1 else f"{plain} on a {what.ground} background"

    def parse(self, caption: str) -> Combination:
        """The combination a caption names; also held-out ones."""
        match = self._pattern.fullmatch(caption.strip().lower())
        if match is None:
            raise ValueError(
                f"caption {caption!r} is not one of the task {self.name}; write for example "
                f"{self.captions[0]!r} (sizes {', '.join(self.size_names)}; colours "
                f"{', '.join(self.colours)}; shapes {', '.join(self.shapes)})"
            )
        found = match.groupdict()
        ground = found.get("ground", self.grounds[0])
        return Combination(found["shape"], found["colour"], found["size"], ground)

    @cached_property
    def _pattern(self) -> re.Pattern[str]:
        def words(name: str, choices: Sequence[str]) -> str:
            return f"(?P<{name}>{'|'.join(re.escape(choice) for choice in choices)})"

        pattern = " ".join(
            (
                "a",
                words("size", self.size_names),
                words("colour", self.colours),
                words("shape", self.shapes),
            )
        )
        if len(self.grounds) > 1:
            pattern += f" on a {words('ground', self.grounds)} background"
        return re.compile(pattern)


def scenes(task: Task, *, seed: int, index: Sequence[int]) -> list[Scene]:
    """What pictures `index` show: any block of len(combinations) pictures holds each one once."""
    numbers = torch.as_tensor(np.asarray(index, dtype=np.int64))
    draws = rng.uniform(seed, f"{task.name}/geometry", numbers, (3,)).double().numpy()
    combinations = task.combinations
    sizes = {size.name: size for size in task.sizes}
    orders: dict[int, npt.NDArray[np.int64]] = {}
    found = []
    for i, (u_radius, u_x, u_y) in zip(numbers.tolist(), draws.tolist(), strict=True):
        block, place = divmod(i, len(combinations))
        if block not in orders:
            orders[block] = _order(task.name, seed, block, len(combinations))
        what = combinations[int(orders[block][place])]
        size = sizes[what.size]
        found.append(
            Scene(
                shape=what.shape,
                colour=what.colour,
                size=what.size,
                ground=what.ground,
                radius=size.smallest + (size.largest - size.smallest) * u_radius,
                centre=(0.5 + JITTER * (2 * u_x - 1), 0.5 + JITTER * (2 * u_y - 1)),
            )
        )
    return found


def render(pictures: Sequence[Scene], *, side_px: int) -> Pixels:
    """Pictures of scenes of any task, uint8 [N,H,W,3]."""
    mask = coverage(
        [scene.shape for scene in pictures],
        radius=np.array([scene.radius for scene in pictures]),
        centre=np.array([scene.centre for scene in pictures]).reshape(-1, 2),
        side_px=side_px,
    )[..., None]
    colour = np.array([COLOURS[scene.colour] for scene in pictures], np.float32)[:, None, None]
    ground = np.array([GROUNDS[scene.ground] for scene in pictures], np.float32)[:, None, None]
    mixed: Pixels = np.rint(ground + (colour - ground) * mask).astype(np.uint8)
    return mixed


def coverage(
    shapes: Sequence[str], *, radius: Floats, centre: Floats, side_px: int
) -> npt.NDArray[np.float32]:
    """Which part of each pixel a shape covers, [N,H,W] in [0,1].

    radius [N] and centre [N,2] (x, y) are fractions of the side. Anti-aliased: exact along x,
    SUBROWS samples along y.
    """
    masks = np.empty((len(shapes), side_px, side_px), np.float32)
    for first in range(0, len(shapes), CHUNK):
        rows = slice(first, first + CHUNK)
        masks[rows] = _coverage_chunk(shapes[rows], radius[rows], centre[rows], side_px)
    return masks


def _coverage_chunk(
    shapes: Sequence[str], radius: Floats, centre: Floats, side_px: int
) -> npt.NDArray[np.float32]:
    """Sum over outline crossings of "everything to the right of here", signed."""
    tables = np.stack([_sections(name) for name in SHAPES])  # [K,SECTIONS,X]
    kind = np.array([list(SHAPES).index(name) for name in shapes], np.int64)
    number, lines = len(shapes), side_px * SUBROWS
    y = (np.arange(lines) + 0.5) / lines
    height = (y - centre[:, 1:]) / radius[:, None]  # [N,lines] unit coordinates
    inside = np.abs(height) < REACH
    picture, line = np.nonzero(inside)
    section = ((height[inside] + REACH) * (SECTIONS / (2 * REACH))).astype(np.int64)
    crossing = tables[kind[picture], section.clip(0, SECTIONS - 1)]  # [P,X], NaN = none
    x = (centre[picture, :1] + radius[picture, None] * crossing) * side_px
    sign = np.where(np.arange(x.shape[1]) % 2 == 0, 1.0, -1.0) / SUBROWS
    there = ~np.isnan(x)
    x = x[there].clip(0, side_px)
    weight = np.broadcast_to(sign, there.shape)[there]
    column = x.astype(np.int64)
    part = x - column
    width = side_px + 2  # crossings at the right edge spill into columns nobody sees
    row = ((picture * side_px + line // SUBROWS) * width)[:, None]
    target = np.broadcast_to(row, there.shape)[there] + column
    length = number * side_px * width
    steps = np.bincount(target, weight * (1 - part), length)
    steps += np.bincount(target + 1, weight * part, length)
    filled = steps.reshape(number, side_px, width).cumsum(axis=2)[..., :side_px]
    return filled.clip(0, 1).astype(np.float32)


@cache
def _sections(name: str) -> Floats:
    """Where horizontal lines cross a unit shape, ascending: [SECTIONS,X], NaN where no more."""
    y = ((np.arange(SECTIONS) + 0.5) / SECTIONS * 2 - 1) * REACH
    columns = []
    for outline in SHAPES[name]:
        (x0, y0), (x1, y1) = outline.T, np.roll(outline, -1, axis=0).T
        crosses = (y0 <= y[:, None]) != (y1 <= y[:, None])  # [SECTIONS,E]
        rise = np.where(y1 == y0, 1.0, y1 - y0)
        columns.append(np.where(crosses, x0 + (y[:, None] - y0) * (x1 - x0) / rise, np.nan))
    ordered = np.sort(np.concatenate(columns, axis=1), axis=1)  # NaN last
    table = np.full((SECTIONS, 6), np.nan)
    table[:, : ordered.shape[1]] = ordered[:, :6]
    return table


def _order(name: str, seed: int, block: int, length: int) -> npt.NDArray[np.int64]:
    return np.asarray(rng.permutation(seed, f"{name}/order", block, length), dtype=np.int64)


def _polygon(*points: tuple[float, float]) -> Polygons:
    return (np.array(points, np.float64),)


def _regular(corners: int, radius: float) -> Floats:
    angle = 2 * np.pi * np.arange(corners) / corners
    return radius * np.stack((np.sin(angle), -np.cos(angle)), axis=1)  # first corner on top


def _star() -> Polygons:
    points = _regular(10, 1.12)
    points[1::2] *= 0.45
    return (points,)


def _cross(arm: float) -> Polygons:
    a = arm
    corner = np.array([(-a, -1), (a, -1), (a, -a)])  # the top arm, turned three times
    turn = np.array([(0.0, 1.0), (-1.0, 0.0)])
    return (np.concatenate([corner @ np.linalg.matrix_power(turn, k) for k in range(4)]),)


def _heart() -> Polygons:
    t = 2 * np.pi * np.arange(96) / 96
    x = 16 * np.sin(t) ** 3
    y = -(13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t))
    return (np.stack((x / 16, (y - 2.5) / 16), axis=1),)


SHAPES: Mapping[str, Polygons] = MappingProxyType(
    {
        "circle": (_regular(96, 1.0),),
        "square": _polygon((-0.88, -0.88), (0.88, -0.88), (0.88, 0.88), (-0.88, 0.88)),
        "triangle": (_regular(3, 1.1),),
        "star": _star(),
        "cross": _cross(0.33),
        "heart": _heart(),
        "diamond": _polygon((0, -1.1), (0.8, 0), (0, 1.1), (-0.8, 0)),
        "ring": (_regular(96, 1.0), _regular(96, 0.55)),
    }
)

COLOURS: Mapping[str, Rgb] = MappingProxyType(
    {
        "red": (220, 30, 40),
        "green": (30, 150, 60),
        "blue": (40, 80, 220),
        "yellow": (250, 215, 20),
        "orange": (250, 130, 20),
        "purple": (130, 45, 165),
        "pink": (255, 130, 195),
        "black": (20, 20, 20),
        "brown": (130, 75, 35),
        "cyan": (20, 190, 215),
    }
)

GROUNDS: Mapping[str, Rgb] = MappingProxyType(
    {
        "white": (255, 255, 255),
        "gray": (190, 190, 190),
        "beige": (240, 222, 190),
        "light blue": (185, 215, 250),
        "light green": (190, 235, 200),
    }
)

EASY = Task(
    name="shapes",
    side_px=32,
    shapes=("circle", "square", "triangle", "star", "cross", "heart"),
    colours=("red", "green", "blue", "yellow", "orange", "purple", "pink", "black"),
    sizes=(Size("small", 0.22, 0.25), Size("large", 0.33, 0.37)),
)

HARD = Task(
    name="shapes_hard",
    side_px=64,
    shapes=tuple(SHAPES),
    colours=tuple(COLOURS),
    sizes=(Size("small", 0.16, 0.19), Size("medium", 0.24, 0.28), Size("large", 0.34, 0.38)),
    grounds=tuple(GROUNDS),
)
