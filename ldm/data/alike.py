"""Which pictures look alike, as recompressed and resized copies do?

A difference hash (Krawetz 2013): which of 8 x 8 greys are darker than their right neighbour. Two
pictures look alike when few of the 64 bits differ and their mean colours are near; of a plain
drawing, whose hash has few bits set, fewer may differ.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

_SAME_GREY = 3  # neighbouring greys whose difference is no edge but the noise of a codec
_BITS = 3  # that may differ at most
_SET = 8  # bits that are set for each that may differ
_COLOUR = 16  # that each of the mean red, green and blue may differ, of 255
_WINDOW = 32  # neighbours in the order of the hashes that each picture is compared with
Looks = NDArray[np.uint64]  # [n,2]: hash, mean colour as 0xRRGGBB; hash 0: none, or a flat picture


def look(image: Image.Image) -> tuple[int, int]:
    """(hash, mean colour) of an RGB picture; (0, 0) for a flat one."""
    small = image.resize((9, 8), Image.Resampling.BOX, reducing_gap=2.0)
    grey = np.asarray(small.convert("L"), dtype=np.int16)
    darker = grey[:, 1:] - grey[:, :-1] > _SAME_GREY  # [8,8]
    if not darker.any():
        return 0, 0
    red, green, blue = np.asarray(small, dtype=np.float64).mean(axis=(0, 1)).round().astype(int)
    bits = int.from_bytes(np.packbits(darker).tobytes(), "big")
    return bits, int(red) << 16 | int(green) << 8 | int(blue)


def alike(looks: Looks) -> list[list[int]]:
    """Groups of rows that look alike, the first rows first.

    Of two hashes with at most three different bits one quarter is equal (the pigeonhole principle),
    so that they are near each other when all are sorted beginning with that quarter. Of very many
    with one quarter only the nearest in that order are compared.
    """
    rows = np.flatnonzero(looks[:, 0])
    parent = {int(row): int(row) for row in rows}

    def root(row: int) -> int:
        while parent[row] != row:
            parent[row] = parent[parent[row]]
            row = parent[row]
        return row

    for one, other in _pairs(looks[rows, 0], looks[rows, 1]).tolist():
        a, b = sorted((root(int(rows[one])), root(int(rows[other]))))
        parent[b] = a
    groups: dict[int, list[int]] = {}
    for row in parent:
        groups.setdefault(root(row), []).append(row)
    return [group for group in groups.values() if len(group) > 1]


def _pairs(hashes: NDArray[np.uint64], colours: NDArray[np.uint64]) -> NDArray[np.int64]:
    """[p,2] rows whose hashes and colours are near."""
    found = [np.zeros((0, 2), dtype=np.int64)]
    for quarter in range(4):
        turned = hashes << np.uint64(16 * quarter) | hashes >> np.uint64((64 - 16 * quarter) % 64)
        order = np.argsort(turned if quarter else hashes, kind="stable")
        for shift in range(1, min(_WINDOW, len(order) - 1) + 1):
            one, other = order[:-shift], order[shift:]
            differ = np.bitwise_count(hashes[one] ^ hashes[other])
            set_bits = np.bitwise_count(hashes[one] | hashes[other])
            near = (differ <= _BITS) & (differ <= set_bits // _SET)
            near &= _colour_distance(colours[one], colours[other]) <= _COLOUR
            found.append(np.stack([one[near], other[near]], axis=1))
    return np.concatenate(found)


def _colour_distance(one: NDArray[np.uint64], other: NDArray[np.uint64]) -> NDArray[np.int64]:
    """The largest difference of red, green and blue."""
    shifts = np.array([[16], [8], [0]], dtype=np.uint64)
    channels = [((value >> shifts) & np.uint64(255)).astype(np.int64) for value in (one, other)]
    return np.abs(channels[0] - channels[1]).max(axis=0)
