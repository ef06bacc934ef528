"""Is the crop of a resized picture what Pillow makes of it?"""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from ldm.data import resize
from ldm.data.resize import resized_crop


def noise(height: int, width: int) -> np.ndarray:
    """Nothing is harder on rounded weights; on photographs they are off by 1 in one of ten."""
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def by_pillow(pixels: np.ndarray, resized: tuple[int, int], resample: str) -> np.ndarray:
    kind = Image.Resampling[resample.upper()]
    return np.asarray(Image.fromarray(pixels).resize(resized[::-1], kind)).astype(int)


@pytest.mark.parametrize("resample", ["bicubic", "lanczos"])
@pytest.mark.parametrize(
    ("native", "resized"),
    [
        ((128, 128), (64, 64)),
        ((96, 200), (64, 133)),
        ((333, 127), (168, 64)),
        ((50, 40), (80, 64)),
        ((65, 64), (64, 64)),
    ],
)
def test_pixels_are_those_of_pillow(
    native: tuple[int, int], resized: tuple[int, int], resample: str
) -> None:
    pixels = noise(*native)
    corner = ((resized[0] - 64) // 2, (resized[1] - 64) // 3)
    got = resized_crop(pixels, resized=resized, corner=corner, shape=(64, 64), resample=resample)
    whole = by_pillow(pixels, resized, resample)
    error = got - whole[corner[0] : corner[0] + 64, corner[1] : corner[1] + 64]
    assert got.shape == (64, 64, 3)
    assert np.abs(error).max() <= 2
    assert np.mean(error**2) < 0.25  # the other filter: 27 and more


def test_a_large_whole_is_not_made_for_a_small_crop(monkeypatch: pytest.MonkeyPatch) -> None:
    """Above that area Pillow computes the crop alone: the same filter, up to rounding."""
    pixels = noise(80, 80)
    how = {"resized": (60, 60), "corner": (7, 30), "shape": (20, 20), "resample": "bicubic"}
    monkeypatch.setattr(resize, "_MUCH", 10)
    by_torch = resized_crop(pixels, **how).astype(int)
    monkeypatch.undo()
    monkeypatch.setattr(resize.torch.nn.functional, "interpolate", None)
    assert np.abs(resized_crop(pixels, **how) - by_torch).max() <= 2


def test_a_giant_is_never_made() -> None:
    """Whole, this would have 64 x 3,200,000 px."""
    shape = (64, 64)
    wide = noise(1, 50_000)
    got = resized_crop(
        wide, resized=(64, 3_200_000), corner=(0, 1_600_000), shape=shape, resample="bicubic"
    )
    assert got.shape == (64, 64, 3)


def test_the_filters_differ() -> None:
    pixels = noise(64, 64)
    one, other = (
        resized_crop(pixels, resized=(32, 32), corner=(0, 0), shape=(32, 32), resample=name)
        for name in resize.FILTERS
    )
    assert np.mean((one.astype(int) - other) ** 2) > 25


def test_a_picture_of_the_right_size_is_only_cut() -> None:
    pixels = noise(20, 30)
    got = resized_crop(pixels, resized=(20, 30), corner=(2, 9), shape=(16, 16), resample="bicubic")
    assert np.array_equal(got, pixels[2:18, 9:25])


def test_pixels_lie_together() -> None:
    """Planes would make the resize slower by a quarter, and batching it by twice that."""
    how = {"corner": (0, 0), "shape": (32, 32), "resample": "bicubic"}
    assert resized_crop(noise(64, 64), resized=(32, 32), **how).flags.c_contiguous
    wide = resized_crop(noise(64, 80), resized=(32, 40), **how)
    assert wide.strides == (3 * 40, 3, 1)
