"""Is the deviation of cached latents measured right, and the same by whoever measures it?"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from ldm.data.buckets import Buckets
from ldm.data.latents import measured_std, scale_problems
from ldm.data.reader import Reader
from ldm.data.settings import DataConfig, TrainSource, ValSource
from ldm.data.source import open_data

Write = Callable[..., Path]


def reader_of(shard: Path, *, max_aspect: float = 1.0, seed: int = 0) -> Reader:
    config = DataConfig(
        train=TrainSource(shards=str(shard)),
        val=ValSource(shards=str(shard)),
        format="latents",
        size=32,
        buckets=Buckets(max_aspect=max_aspect, step=8),
        num_workers=0,
    )
    reader = open_data(config, seed=seed, batch_size=4).train
    assert isinstance(reader, Reader)
    return reader


def std_of(reader: Reader) -> float:
    return measured_std(reader.batch, len(reader.order))


@pytest.fixture
def foreign(
    tmp_path: Path, write_latents: Write, npy: Callable[..., bytes]
) -> Callable[..., tuple[Path, np.ndarray]]:
    """foreign(shapes…): 40 samples [C,h,w] of float32, around 3 with a deviation of 7."""

    def make(*shapes: tuple[int, int, int]) -> tuple[Path, np.ndarray]:
        draws = np.random.default_rng(0)
        values = [3 + 7 * draws.standard_normal(shapes[n % len(shapes)]) for n in range(40)]

        def extra(n: int) -> dict[str, bytes]:
            return {"moments.npy": b"", "npy": npy(values[n], np.float32)}

        shard = write_latents(tmp_path / f"{len(shapes)}.tar", 40, extra=extra)
        return shard, np.concatenate([value.ravel() for value in values])

    return make


def test_it_is_numpys(foreign: Callable[..., tuple[Path, np.ndarray]]) -> None:
    """Of all samples, in whatever order: six digits of it."""
    shard, values = foreign((16, 4, 4))
    stds = {std_of(reader_of(shard, seed=seed)) for seed in range(3)}
    assert stds == {float(f"{values.std():.6g}")}


def test_sizes_may_differ(foreign: Callable[..., tuple[Path, np.ndarray]]) -> None:
    """In buckets a batch at a time could not be made of the first samples."""
    shard, values = foreign((4, 4, 4), (4, 2, 8))
    assert std_of(reader_of(shard, max_aspect=4.0)) == pytest.approx(values.std(), rel=1e-5)


def test_the_variance_of_the_posterior_counts(
    tmp_path: Path, write_latents: Write, npy: Callable[..., bytes]
) -> None:
    """mean ~ N(0, 4), variance 9 and more than anybody has: var = 4 + 9."""
    draws = np.random.default_rng(0)

    def extra(n: int) -> dict[str, bytes]:
        mean = 2 * draws.standard_normal((4, 8, 8))
        return {"moments.npy": npy(np.concatenate([mean, np.full_like(mean, np.log(9.0))]))}

    shard = write_latents(tmp_path / "a.tar", 40, extra=extra)
    assert std_of(reader_of(shard)) == pytest.approx(13**0.5, rel=0.01)  # 10,240 draws


def test_unusable_samples_do_not_count(
    tmp_path: Path, write_latents: Write, npy: Callable[..., bytes]
) -> None:
    values = np.random.default_rng(0).standard_normal((40, 4, 4, 4))
    values[1::4] = np.nan

    def extra(n: int) -> dict[str, bytes]:
        return {"moments.npy": b"", "npy": npy(values[n], np.float32)}

    shard = write_latents(tmp_path / "a.tar", 40, extra=extra)
    # a stand-in counts twice: close, and finite
    assert std_of(reader_of(shard)) == pytest.approx(np.nanstd(values), rel=0.05)


def test_latents_that_do_not_vary_are_none(
    tmp_path: Path, write_latents: Write, npy: Callable[..., bytes]
) -> None:
    same = {"moments.npy": b"", "npy": npy(np.full((4, 4, 4), 5.0))}
    shard = write_latents(tmp_path / "a.tar", 12, extra=lambda n: same)
    with pytest.raises(ValueError, match="first 12 latents do not vary"):
        std_of(reader_of(shard))


@pytest.mark.parametrize(("std", "scale", "good"), [(5.5, 0.18, True), (5.5, 1.0, False)])
def test_a_wrong_scale_is_found(std: float, scale: float, good: bool) -> None:
    assert (scale_problems(std, scale) == []) == good
    assert scale_problems(1.0, 0.18215) != []  # scaled twice
