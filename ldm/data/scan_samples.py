"""What does a sample hold, once its members are read, and what does its picture look like?"""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ldm.data.alike import Looks, look
from ldm.data.arrays import Floats, is_finite
from ldm.data.captions import BadSampleError
from ldm.data.decode import decode
from ldm.data.latents import CONTEXT_EXT, arrays_of
from ldm.data.picture_size import LATENT_EXTS, PICTURE_EXTS
from ldm.data.settings import DataConfig
from ldm.data.table import Table
from ldm.types import Skipped

Layout = tuple[str, tuple[int, ...], tuple[int, ...] | None]  # kind, shape, shape of the context


@dataclass
class Samples:
    """What some samples hold, in their order. digests: [n] of the bytes of picture or latents, 0
    where unusable; looks: [n,2]; sizes: [n,2] (width, height), nan where unusable.

    sums: [3,C] count, sum and sum of squares of the values of the latents' channels.
    """

    digests: NDArray[np.uint64]
    looks: Looks
    sizes: NDArray[np.float64]
    bad: list[Skipped] = field(default_factory=list)
    captions: Counter[str] = field(default_factory=Counter)
    layouts: Counter[Layout] = field(default_factory=Counter)
    sums: dict[int, NDArray[np.float64]] = field(default_factory=dict)  # by C

    @staticmethod
    def empty(count: int) -> Samples:
        """Nothing read yet of this many samples."""
        digests, looks = (np.zeros(shape, dtype=np.uint64) for shape in (count, (count, 2)))
        return Samples(digests, looks, np.full((count, 2), np.nan))


def read_samples(
    shard: str, path: Path, table: Table, rows: Sequence[int], config: DataConfig
) -> Samples:
    """Decodes the samples in these rows of a shard's table; path: of its local file."""
    found = Samples.empty(len(rows))
    captions = config.captions()
    latent = config.format == "latents"
    exts = (*(LATENT_EXTS if latent else PICTURE_EXTS), CONTEXT_EXT, *captions.exts)
    handle = os.open(path, os.O_RDONLY)
    try:
        for number, row in enumerate(rows):
            members = {
                ext: os.pread(handle, length, offset)
                for ext, (offset, length) in table.members(row).items()
                if ext in exts
            }
            try:
                if latent:
                    data = _latent(members, found)
                else:
                    data, image = _picture(members, config.max_pixels)
                    found.sizes[number] = image.size
                    found.looks[number] = look(image)
                found.captions[captions.choose(members, 0.0)] += 1
                found.digests[number] = digest(data)
            except BadSampleError as error:
                found.looks[number] = 0
                found.sizes[number] = np.nan
                found.bad.append(Skipped(shard, table.key(row), str(error)))
    finally:
        os.close(handle)
    return found


def digest(data: bytes) -> int:
    """64 bits of a hash of the bytes, never 0."""
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little") or 1


def _picture(members: Mapping[str, bytes], max_pixels: int) -> tuple[bytes, Image.Image]:
    data = next(members[ext] for ext in PICTURE_EXTS if ext in members)
    return data, decode(data, max_pixels=max_pixels)


def _latent(members: Mapping[str, bytes], found: Samples) -> bytes:
    """The bytes of the latents, whose layout and sums are taken up."""
    kind, array, context = arrays_of(members)
    if array.ndim != 3 or not array.size:
        raise BadSampleError(f"the {kind} are {list(array.shape)}; three axes are expected")
    if not is_finite(array) or (context is not None and not is_finite(context)):
        raise BadSampleError("the latents or their context are not finite")
    found.layouts[(kind, array.shape, None if context is None else context.shape)] += 1
    mean = _mean_part(kind, array)
    flat = mean.reshape(len(mean), -1).astype(np.float64)
    part = np.stack([np.full(len(flat), flat.shape[1]), flat.sum(1), np.square(flat).sum(1)])
    found.sums[len(flat)] = found.sums.get(len(flat), 0) + part
    return array.tobytes()


def _mean_part(kind: str, array: Floats) -> Floats:
    """[2C,h,w] moments or [C,h,w] latents -> [C,h,w]."""
    return array[: len(array) // 2] if kind == "moments" else array
