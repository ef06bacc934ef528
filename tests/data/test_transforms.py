"""Are pictures cut and scaled as said, by chance that belongs to the sample alone?"""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image

from ldm.data.decode import Encoded, open_picture
from ldm.data.settings import DataConfig, TrainSource
from ldm.data.transforms import Shown, Transform, to_pixels


def picture(height: int, width: int) -> Image.Image:
    """Smooth in both directions, so that resampling errors stay small."""
    y, x = np.mgrid[0:height, 0:width]
    planes = [y / height * 255, x / width * 255, np.full((height, width), 128)]
    return Image.fromarray(np.stack(planes, -1).round().astype(np.uint8))


def draws(top: float = 0.5, left: float = 0.5, flip: float = 0.99, zoom: float = 0.0) -> np.ndarray:
    return np.array([top, left, flip, zoom], dtype=np.float32)


def as_file(image: Image.Image, form: str = "PNG") -> Encoded:
    buffer = io.BytesIO()
    image.save(buffer, form, quality=95)
    return open_picture(buffer.getvalue(), max_pixels=10**6)


def apply(
    transform: Transform,
    image: Image.Image,
    draws: np.ndarray,
    shape: tuple[int, int] | None = None,
) -> Shown:
    return transform.apply(as_file(image), draws, shape)


@pytest.mark.parametrize("crop", ["center", "random"])
def test_right_sized_pictures_are_untouched(crop: str) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    transform = Transform(size=16, crop=crop, max_zoom=3.0)
    shown = apply(transform, Image.fromarray(noise), draws(zoom=0.9))
    assert np.array_equal(shown.pixels, noise)
    assert (shown.original_size, shown.crop) == ((16, 16), (0, 0))


def test_a_right_sized_shorter_side_is_only_cropped() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (16, 41, 3), dtype=np.uint8)
    image = Image.fromarray(noise)
    assert np.array_equal(apply(Transform(size=16), image, draws()).pixels, noise[:, 12:28])
    for u, left in ((0.0, 0), (0.5, 13), (0.9999, 25)):
        shown = apply(Transform(size=16, crop="random"), image, draws(left=u))
        assert shown.crop == (0, left)
        assert np.array_equal(shown.pixels, noise[:, left : left + 16])


@pytest.mark.parametrize(("height", "width"), [(64, 64), (50, 90), (333, 127), (9, 21), (7, 7)])
@pytest.mark.parametrize("crop", ["center", "random"])
def test_crop_of_the_resized_is_resize_then_crop(height: int, width: int, crop: str) -> None:
    """Only the crop is resampled, yet the pixels are those of the whole, resized and cut."""
    image, size = picture(height, width), 16
    shown = apply(Transform(size=size, crop=crop), image, draws(top=0.8, left=0.3))
    scale = size / min(height, width)
    whole = image.resize((round(width * scale), round(height * scale)), Image.Resampling.BICUBIC)
    top, left = shown.crop
    expected = np.asarray(whole)[top : top + size, left : left + size].astype(int)
    assert (
        np.abs(shown.pixels.astype(int) - expected).max() <= 1
    )  # the box is float32 inside Pillow


def test_shrinking_is_antialiased() -> None:
    """Stripes finer than the target average out to grey instead of aliasing."""
    stripes = np.zeros((256, 256, 3), dtype=np.uint8)
    stripes[:, ::2] = 255
    pixels = apply(Transform(size=32), Image.fromarray(stripes), draws()).pixels
    # 6 at the edges, where half of the filter is cut away; aliasing would be 127 off
    assert np.abs(pixels.astype(int) - 127).max() <= 8


def test_very_long_pictures_stay_small() -> None:
    shown = apply(Transform(size=64), Image.new("RGB", (50_000, 1)), draws())
    assert shown.pixels.shape == (64, 64, 3)


def test_flip_is_a_mirror_with_its_probability() -> None:
    image = picture(16, 16)
    transform = Transform(size=16, flip=0.3)
    plain = apply(transform, image, draws(flip=0.31)).pixels
    assert np.array_equal(apply(transform, image, draws(flip=0.29)).pixels, plain[:, ::-1])
    u = transform.draws(0, torch.arange(10_000))[:, 2]
    assert abs((u < 0.3).mean() - 0.3) < 0.02  # four standard deviations
    never = Transform(size=16, flip=0.0)
    assert np.array_equal(apply(never, image, draws(flip=0.0)).pixels, plain)


@pytest.mark.parametrize(
    ("native", "zoom_u", "shorter"),
    [(64, 0.0, 16), (64, 0.5, 32), (64, 1.0, 48), (20, 0.5, 20), (16, 0.9, 16), (8, 0.9, 16)],
)
def test_zoom_never_goes_above_the_native_size(native: int, zoom_u: float, shorter: int) -> None:
    transform = Transform(size=16, crop="random", max_zoom=3.0)
    assert transform._covering((native, native), (16, 16), zoom_u) == (shorter, shorter)
    shown = apply(transform, picture(native, 2 * native), draws(0.999, 0.999, zoom=zoom_u))
    assert shown.pixels.shape == (16, 16, 3)
    assert shown.crop == (shorter - 16, 2 * shorter - 16)


def test_draws_belong_to_the_sample() -> None:
    transform = Transform(size=16)
    whole = transform.draws(4, torch.arange(100))
    assert np.array_equal(transform.draws(4, torch.tensor([70, 3])), whole[[70, 3]])
    assert not np.array_equal(transform.draws(5, torch.arange(100)), whole)
    assert np.abs(np.corrcoef(whole.T) - np.eye(4)).max() < 0.45


def test_random_crops_reach_every_corner() -> None:
    transform = Transform(size=16, crop="random")
    image = picture(18, 16)
    tops = [apply(transform, image, row).crop[0] for row in transform.draws(0, torch.arange(300))]
    counts = np.bincount(tops, minlength=3)
    assert counts.min() > 70  # 100 each, standard deviation 8


def test_pixels_are_between_minus_one_and_one() -> None:
    values = np.arange(256, dtype=np.uint8).repeat(3).reshape(16, 16, 3)
    pixels = to_pixels([values, values[::-1]])
    assert pixels.shape == (2, 3, 16, 16)
    assert pixels.dtype == torch.float32
    assert pixels.is_contiguous()
    expected = torch.from_numpy(values.astype(np.float64)).permute(2, 0, 1) / 127.5 - 1
    torch.testing.assert_close(pixels[0].double(), expected, rtol=0, atol=1e-7)  # float32 rounding
    assert (pixels.min().item(), pixels.max().item()) == (-1, 1)


def test_many_pictures_are_each_by_itself() -> None:
    """Mirrored and cut ones are views with strides of their own."""
    noise = np.random.default_rng(0).integers(0, 256, (3, 8, 9, 3), dtype=np.uint8)
    pictures = [noise[0, :, :6], noise[1, :, 2:8][:, ::-1], noise[2, :, 3:]]
    expected = np.stack(pictures).astype(np.float32) / np.float32(127.5) - np.float32(1.0)
    assert np.array_equal(to_pixels(pictures).numpy(), expected.transpose(0, 3, 1, 2))


@pytest.mark.parametrize("native", [(64, 64), (96, 64), (40, 50)])
def test_dct_scaling_changes_little_but_the_pixels(native: tuple[int, int]) -> None:
    """Size, crop and mirroring are those of the whole picture."""
    file = as_file(picture(*native), "JPEG")
    chance = draws(top=0.8, left=0.3, flip=0.0, zoom=0.2)
    common = {"size": 16, "crop": "random", "flip": 0.5, "max_zoom": 1.5}
    exact = Transform(**common).apply(file, chance)
    scaled = Transform(**common, dct_scaling=True).apply(file, chance)
    assert (scaled.original_size, scaled.crop) == (exact.original_size, exact.crop) != ((), (0, 0))
    difference = np.abs(scaled.pixels.astype(int) - exact.pixels)
    assert difference.mean() < 3
    assert difference.max() > 0


def test_the_filter_is_the_one_asked_for() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    image = Image.fromarray(noise)
    lanczos = np.asarray(image.resize((16, 16), Image.Resampling.LANCZOS))
    got = apply(Transform(size=16, resample="lanczos"), image, draws()).pixels
    assert np.array_equal(got, lanczos)
    assert not np.array_equal(apply(Transform(size=16), image, draws()).pixels, lanczos)


def test_all_problems_are_said_at_once() -> None:
    with pytest.raises(ValueError, match="size=0") as caught:
        Transform(size=0, crop="middle", flip=2.0, max_zoom=0.5, resample="nearest")
    text = str(caught.value)
    for part in (
        *("crop='middle'", "center, random", "flip=2.0", "max_zoom=0.5"),
        "resample='nearest' is unknown; use bicubic or lanczos",
    ):
        assert part in text


@pytest.mark.parametrize("shape", [(16, 24), (24, 16), (8, 40), (16, 16)])
@pytest.mark.parametrize(("height", "width"), [(64, 64), (50, 90), (333, 127), (9, 21), (16, 24)])
def test_a_bucket_is_covered_and_the_aspect_kept(
    shape: tuple[int, int], height: int, width: int
) -> None:
    """The resized picture touches the bucket on one side and stands over on the other."""
    image = picture(height, width)
    for crop in ("center", "random"):
        transform = Transform(size=16, crop=crop)
        shown = apply(transform, image, draws(top=0.8, left=0.3), shape)
        resized = transform._covering((height, width), shape, 0.0)
        assert shown.pixels.shape == (*shape, 3)
        assert resized[0] == shape[0] or resized[1] == shape[1]
        assert resized[0] >= shape[0]
        assert resized[1] >= shape[1]
        assert abs(resized[0] / height * width - resized[1]) <= max(1.0, width / height) / 2 + 0.5
        whole = image.resize(resized[::-1], Image.Resampling.BICUBIC)
        top, left = shown.crop
        expected = np.asarray(whole)[top : top + shape[0], left : left + shape[1]].astype(int)
        assert np.abs(shown.pixels.astype(int) - expected).max() <= 1  # as above


def test_the_crop_of_a_bucket_is_central_or_by_chance() -> None:
    image = picture(32, 96)
    assert apply(Transform(size=16), image, draws(), (32, 64)).crop == (0, 16)
    for u, left in ((0.0, 0), (0.5, 16), (0.9999, 32)):
        shown = apply(Transform(size=16, crop="random"), image, draws(left=u), (32, 64))
        assert shown.crop == (0, left)


def test_zoom_and_flip_act_on_buckets_too() -> None:
    image = picture(64, 96)
    transform = Transform(size=16, crop="random", max_zoom=2.0)
    assert transform._covering((64, 96), (16, 24), 0.5) == (24, 36)
    assert transform._covering((20, 30), (16, 24), 1.0) == (20, 30)  # its native size
    straight = apply(Transform(size=16), image, draws(), (16, 24)).pixels
    flipped = apply(Transform(size=16, flip=1.0), image, draws(), (16, 24)).pixels
    assert np.array_equal(flipped, straight[:, ::-1])


def test_the_configuration_reaches_training_and_validation() -> None:
    """Validation decodes in full, so that runs with and without dct_scaling can be compared."""
    options = {"size": 64, "resample": "lanczos", "dct_scaling": True}
    config = DataConfig(train=TrainSource(shards="x.tar"), **options)
    assert config.transform() == Transform(**options)
    assert config.val_transform() == Transform(size=64, resample="lanczos")
    with pytest.raises(ValueError, match=r"resample=lanczos is .*; data.dct_scaling=True is for"):
        DataConfig(train=TrainSource(shards="x.tar"), format="latents", **options)
    with pytest.raises(ValueError, match="resample='area' is unknown; use bicubic or lanczos"):
        DataConfig(train=TrainSource(shards="x.tar"), resample="area")
