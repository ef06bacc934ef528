"""Are cached statistics those that were asked for, and only those?"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ldm.data.shards import build_index
from ldm.evaluation.features import ExtractorSpec
from ldm.evaluation.reference_stats import (
    MadeOf,
    ReferenceStats,
    check_comparable,
    check_same_reference,
    load,
    save,
    shards_hash,
)
from ldm.evaluation.statistics import Features, Moments

EXTRACTOR = ExtractorSpec(name="tiny", dim=3, resize="Pillow bilinear to 64x64", hash="abc123")
MADE_OF = MadeOf(
    data="shapes é",
    data_hash="0011",
    count=5,
    size_px=32,
    resize="Pillow lanczos",
    centre_crop=True,
    extractor=EXTRACTOR,
)
UNLIKE = [
    replace(MADE_OF, data_hash="2233"),
    replace(MADE_OF, count=6),
    replace(MADE_OF, size_px=64),
    replace(MADE_OF, resize="Pillow bicubic"),
    replace(MADE_OF, centre_crop=False),
    replace(MADE_OF, extractor=replace(EXTRACTOR, hash="def456")),
    replace(MADE_OF, extractor=replace(EXTRACTOR, resize="Pillow bicubic to 64x64")),
]


class Touch:
    """Unpickling it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


@pytest.fixture
def stats() -> ReferenceStats:
    values = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
    features = Features.of(torch.arange(5), values)
    return ReferenceStats(MADE_OF, Moments.of(values), features)


def test_what_was_saved_comes_back(stats: ReferenceStats, tmp_path: Path) -> None:
    path = save(stats, tmp_path / "new")
    assert path == MADE_OF.path(tmp_path / "new")
    back = load(path, MADE_OF)
    assert back.made_of == MADE_OF
    assert back.moments.count == 5
    for name in ("mean", "scatter"):
        assert torch.equal(getattr(back.moments, name), getattr(stats.moments, name))
    assert torch.equal(back.features.values, stats.features.values)
    assert [file.name for file in path.parent.iterdir()] == [path.name]  # nothing half written


def test_moments_may_be_kept_alone(stats: ReferenceStats, tmp_path: Path) -> None:
    none = Features.of(torch.arange(0), torch.zeros(0, 3))
    back = load(save(replace(stats, features=none), tmp_path), MADE_OF)
    assert back.features.count == 0
    assert torch.equal(back.moments.scatter, stats.moments.scatter)


@pytest.mark.parametrize("other", UNLIKE)
def test_statistics_of_other_things_are_an_error_that_names_both(
    stats: ReferenceStats, other: MadeOf, tmp_path: Path
) -> None:
    path = save(stats, tmp_path)
    assert other.path(tmp_path) != path
    with pytest.raises(FileNotFoundError, match="measure the reference"):
        load(other.path(tmp_path), other)
    with pytest.raises(ValueError, match=r"is of other things: .* and "):
        load(path, other)


def test_names_are_for_people(stats: ReferenceStats, tmp_path: Path) -> None:
    path = save(stats, tmp_path)
    renamed = replace(MADE_OF, data="here", extractor=replace(EXTRACTOR, name="./clip"))
    assert load(renamed.path(tmp_path), renamed).made_of.data == "shapes é"
    assert path == renamed.path(tmp_path)


def test_samples_are_compared_with_references_seen_alike() -> None:
    samples = replace(MADE_OF, data="samples", data_hash="", count=9, centre_crop=False)
    check_comparable(MADE_OF, samples)
    with pytest.raises(ValueError, match=r"shapes é at 32 px.*samples at 64 px.*size_px 32 and 64"):
        check_comparable(MADE_OF, replace(samples, size_px=64))
    unlike = replace(samples, extractor=replace(EXTRACTOR, hash="def456"))
    with pytest.raises(ValueError, match=r"abc123.*def456"):
        check_comparable(MADE_OF, unlike)


def test_two_models_are_compared_from_one_reference() -> None:
    check_same_reference(MADE_OF, replace(MADE_OF, data="the same elsewhere"))
    for other in UNLIKE:
        with pytest.raises(ValueError, match="cannot be compared"):
            check_same_reference(MADE_OF, other)


@pytest.mark.parametrize("damage", ["truncated", "flipped", "pickled", "shape", "type", "empty"])
def test_a_damaged_file_is_an_error_that_says_what_to_do(
    stats: ReferenceStats, damage: str, tmp_path: Path
) -> None:
    path = save(stats, tmp_path)
    data = bytearray(path.read_bytes())
    if damage == "truncated":
        path.write_bytes(data[: len(data) // 2])
    elif damage == "empty":
        path.write_bytes(b"")
    elif damage == "flipped":
        at = data.find(stats.moments.scatter.numpy().tobytes())
        data[at + 3] ^= 1
        path.write_bytes(data)
    else:
        with np.load(path) as file:
            arrays = dict(file)
        if damage == "pickled":
            arrays["mean"] = np.array([Touch(tmp_path / "run"), 1, 2], dtype=object)
        elif damage == "shape":
            arrays["scatter"] = np.zeros((2, 2))
        else:
            text = arrays["made_of"].tobytes().replace(b'"size_px": 32', b'"size_px": "32"')
            arrays["made_of"] = np.frombuffer(text, np.uint8)
        np.savez(path, **arrays)
    with pytest.raises(ValueError, match=r"can be read .*delete it"):
        load(path, MADE_OF)
    assert not (tmp_path / "run").exists()


def test_the_data_hash_is_of_the_samples_used(train_shards: Path, val_shards: Path) -> None:
    shards = [str(path) for path in sorted(train_shards.glob("*.tar"))]
    whole = shards_hash(build_index(shards))
    assert whole == shards_hash(build_index(shards))
    assert whole != shards_hash(build_index(shards[:1]))
    assert whole != shards_hash(build_index([str(next(val_shards.glob("*.tar")))]))
    index = build_index(shards)
    fewer = replace(index, rows=(np.arange(5, dtype=np.int32), None), sizes=(5, index.sizes[1]))
    assert whole != shards_hash(fewer)
