"""Which drawn shapes go into shards?"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from PIL import Image

from ldm.data import shapes
from ldm.data.make.sample import LeftOut, Plain, Sample

_BATCH = 256  # pictures drawn at once
LICENSE = "CC0-1.0"


class ShapesSource:
    """Pictures start … start + count - 1 of a seed: every caption equally often."""

    def __init__(
        self,
        *,
        hard: bool = False,
        count: int = 12_000,
        seed: int = 0,
        start: int = 0,
        side_px: int | None = None,
        held_out: Sequence[str] = (),
        only_held_out: bool = False,
    ) -> None:
        if count < 1 or start < 0:
            raise ValueError(f"count={count}, start={start}: use count >= 1 and start >= 0")
        task = shapes.HARD if hard else shapes.EASY
        self.task = replace(
            task,
            side_px=task.side_px if side_px is None else side_px,
            held_out=tuple(_pair(words) for words in held_out),
            only_held_out=only_held_out,
        )
        self.count, self.seed, self.start = count, seed, start

    def __len__(self) -> int:
        return self.count

    def items(self, start: int = 0) -> Iterator[Sample | LeftOut]:
        """Draws in batches; picture i is the same whatever the batch."""
        stop = self.start + self.count
        for first in range(self.start + start, stop, _BATCH):
            index = range(first, min(first + _BATCH, stop))
            found = shapes.scenes(self.task, seed=self.seed, index=index)
            pixels = shapes.render(found, side_px=self.task.side_px)
            for scene, picture in zip(found, pixels, strict=True):
                meta: dict[str, Plain] = {
                    "shape": scene.shape,
                    "colour": scene.colour,
                    "size": scene.size,
                    "ground": scene.ground,
                    "radius": round(scene.radius, 4),
                    "centre": [round(place, 4) for place in scene.centre],
                    "license": LICENSE,
                }
                name = f"{scene.size}-{scene.colour}-{scene.shape}"
                yield Sample(name, Image.fromarray(picture), self.task.caption(scene), meta)

    def spec(self) -> dict[str, Plain]:
        return {
            "source": self.task.name,
            "count": self.count,
            "seed": self.seed,
            "start": self.start,
            "side_px": self.task.side_px,
            "held_out": [" ".join(pair) for pair in self.task.held_out],
            "only_held_out": self.task.only_held_out,
            "license": LICENSE,
        }


def _pair(words: str) -> tuple[str, str]:
    colour, _, shape = words.rpartition(" ")
    return colour, shape
