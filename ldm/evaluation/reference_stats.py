"""Which reference statistics are kept on disk, and may these numbers be compared?

One .npz holds the statistics and, as JSON text, what they were made of; arrays only, no pickles.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
import zipfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ldm.data.shards import ShardIndex
from ldm.evaluation.features import ExtractorSpec
from ldm.evaluation.statistics import Features, Moments

FORMAT = "ldm-reference/1"
_MOMENTS = ("mean", "scatter", "count")
_FEATURES = ("index", "values")


@dataclass(frozen=True, kw_only=True)
class MadeOf:
    """What statistics are of. data: for people; resize, size_px, centre_crop: of the data.

    count: the pictures asked for; unreadable ones are missing from the statistics' own count.
    """

    data: str
    data_hash: str
    count: int
    size_px: int
    resize: str
    centre_crop: bool
    extractor: ExtractorSpec

    def path(self, folder: Path) -> Path:
        """Where these statistics are kept: unlike ones have unlike names."""
        text = json.dumps(_compared(self), sort_keys=True)
        return folder / f"{hashlib.blake2b(text.encode(), digest_size=10).hexdigest()}.npz"


@dataclass(frozen=True, eq=False)
class ReferenceStats:
    """features: [N,D] for KID, CMMD and neighbours; with 0 rows when only moments were kept."""

    made_of: MadeOf
    moments: Moments
    features: Features


def save(stats: ReferenceStats, folder: Path) -> Path:
    """Written at once or not at all; by one rank. Returns the file's path."""
    folder.mkdir(parents=True, exist_ok=True)
    said = json.dumps({"format": FORMAT, **asdict(stats.made_of)}, ensure_ascii=False, indent=1)
    arrays: dict[str, Any] = {
        "made_of": np.frombuffer(said.encode(), dtype=np.uint8),
        "count": np.int64(stats.moments.count),
        "mean": stats.moments.mean.cpu().numpy(),
        "scatter": stats.moments.scatter.cpu().numpy(),
        "index": stats.features.index.cpu().numpy(),
        "values": stats.features.values.cpu().numpy(),
    }
    path = stats.made_of.path(folder)
    with tempfile.NamedTemporaryFile(dir=folder, prefix=".tmp-", delete=False) as file:
        np.savez(file, **arrays)
        file.flush()
        os.fsync(file.fileno())
    Path(file.name).chmod(0o644)
    os.replace(file.name, path)
    return path


def load(path: Path, expected: MadeOf) -> ReferenceStats:
    """Raises FileNotFoundError, or ValueError for a damaged file or statistics of other things."""
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: measure the reference ({_words(expected)})")
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in ("made_of", *_MOMENTS, *_FEATURES)}
        said = json.loads(arrays.pop("made_of").tobytes())
        found = _made_of(said)
        stats = _stats(found, {name: torch.from_numpy(array) for name, array in arrays.items()})
    except (KeyError, TypeError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(
            f"{path} holds no reference statistics that can be read ({error}): delete it, and they "
            "are measured again"
        ) from error
    differing = _unlike(found, expected, ("data_hash", "count", *_SEEN))
    if differing:
        raise ValueError(f"{path} is of other things: {differing}; delete it to measure again")
    return stats


def check_comparable(reference: MadeOf, samples: MadeOf) -> None:
    """Raises ValueError unless both are of pictures of one size, seen by one extractor."""
    differing = _unlike(reference, samples, ("size_px", "extractor"))
    if differing:
        raise ValueError(
            f"reference ({_words(reference)}) and samples ({_words(samples)}) cannot be compared: "
            f"{differing}; measure both alike"
        )


def check_same_reference(first: MadeOf, second: MadeOf) -> None:
    """Raises ValueError unless two models' distances are from the same reference."""
    differing = _unlike(first, second, ("data_hash", "count", *_SEEN))
    if differing:
        raise ValueError(
            f"distances from reference ({_words(first)}) and from ({_words(second)}) cannot be "
            f"compared: {differing}; measure both against one reference"
        )


def shards_hash(index: ShardIndex) -> str:
    """Of which samples of which version of which shards are used; nothing is read."""
    digest = hashlib.blake2b(digest_size=16)
    for number, (shard, stamp) in enumerate(zip(index.shards, index.stamps, strict=True)):
        digest.update(f"{shard.rpartition('/')[2]}\0{stamp}\0".encode())
        digest.update(index.used_rows(number).tobytes())
    return digest.hexdigest()


_SEEN = ("size_px", "resize", "centre_crop", "extractor")


def _compared(made_of: MadeOf) -> dict[str, Any]:
    """All but the names, which are for people."""
    said = asdict(made_of)
    del said["data"], said["extractor"]["name"]
    return said


def _unlike(one: MadeOf, other: MadeOf, names: Sequence[str]) -> str:
    """Where two differ, with both values; "" when they do not."""
    first, second = _compared(one), _compared(other)
    pairs = [(name, first[name], second[name]) for name in names]
    return ", ".join(f"{name} {a!r} and {b!r}" for name, a, b in pairs if a != b)


def _words(made_of: MadeOf) -> str:
    return (
        f"{made_of.count} of {made_of.data} at {made_of.size_px} px, by {made_of.extractor.name} "
        f"{made_of.extractor.hash[:8]}"
    )


def _made_of(said: dict[str, Any]) -> MadeOf:
    if said.pop("format") != FORMAT:
        raise ValueError(f"not of format {FORMAT}")
    extractor = ExtractorSpec(**said.pop("extractor"))
    made_of = MadeOf(**said, extractor=extractor)
    types = {"str": str, "int": int, "bool": bool, "ExtractorSpec": ExtractorSpec}
    wrong = [
        field.name
        for part in (made_of, extractor)
        for field in fields(part)
        if type(getattr(part, field.name)) is not types[str(field.type)]
    ]
    if wrong:
        raise ValueError(f"{', '.join(wrong)} of the wrong type")
    return made_of


def _stats(made_of: MadeOf, arrays: dict[str, Tensor]) -> ReferenceStats:
    mean, scatter, count = (arrays[name] for name in _MOMENTS)
    index, values = (arrays[name] for name in _FEATURES)
    dim = made_of.extractor.dim
    shapes = [tuple(part.shape) for part in (mean, scatter, count)]
    if shapes != [(dim,), (dim, dim), ()] or {mean.dtype, scatter.dtype} != {torch.float64}:
        raise ValueError(f"mean, scatter, count are {shapes}")
    if values.ndim != 2 or values.shape[1] != dim or len(values) not in (0, int(count)):
        raise ValueError(f"features are {tuple(values.shape)}")
    features = Features.of(index, values)
    return ReferenceStats(made_of, Moments(int(count), mean, scatter), features)
