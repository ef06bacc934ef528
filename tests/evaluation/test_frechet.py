"""Is the Fréchet distance that of its formula, also where covariances are singular?"""

from __future__ import annotations

import logging
import os
import tarfile
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torchmetrics.image.fid import FrechetInceptionDistance

from ldm.data.shapes import EASY, render, scenes
from ldm.evaluation.features import load_extractor
from ldm.evaluation.frechet import frechet_distance
from ldm.evaluation.statistics import Moments


def rows(n: int, dim: int, seed: int) -> Tensor:
    """Correlated features with a mean of their own."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(dim, dim, generator=generator, dtype=torch.float64)
    noise = torch.randn(n, dim, generator=generator, dtype=torch.float64)
    return noise @ mixing + torch.randn(dim, generator=generator, dtype=torch.float64)


def distance(reference: Tensor, samples: Tensor) -> float:
    return frechet_distance(Moments.of(reference), Moments.of(samples)).value


def test_gaussians_with_one_axis_have_a_closed_form() -> None:
    """(m1 - m2)² + (s1 - s2)²."""
    one, other = rows(50, 1, 0), rows(60, 1, 1)
    spread = [float(side.std()) for side in (one, other)]
    expected = float((one.mean() - other.mean()) ** 2) + (spread[0] - spread[1]) ** 2
    assert distance(one, other) == pytest.approx(expected, rel=1e-12)


@pytest.mark.reference
@pytest.mark.parametrize(("n", "dim"), [(200, 16), (400, 64)])
def test_it_is_the_published_formula(n: int, dim: int) -> None:
    from scipy.linalg import sqrtm

    one, other = rows(n, dim, 0).numpy(), rows(n + 30, dim, 1).numpy()
    first, second = np.cov(one.T), np.cov(other.T)
    root = np.real(sqrtm(first @ second))
    expected = np.sum((one.mean(0) - other.mean(0)) ** 2) + np.trace(first + second - 2 * root)
    got = distance(torch.from_numpy(one), torch.from_numpy(other))
    assert got == pytest.approx(expected, rel=1e-6)
    assert got == pytest.approx(expected, rel=1e-10)  # what is left is the rounding of sqrtm


def test_torchmetrics_has_the_same_number() -> None:
    class Same(nn.Module):
        num_features = 8

        def forward(self, features: Tensor) -> Tensor:
            return features

    metric = FrechetInceptionDistance(feature=Same()).set_dtype(torch.float64)
    one, other = rows(100, 8, 0), rows(100, 8, 1)
    metric.update(one, real=True)
    metric.update(other, real=False)
    assert distance(one, other) == pytest.approx(float(metric.compute()), rel=1e-9)


@pytest.mark.parametrize(("n", "dim"), [(100, 16), (20, 64), (2, 8)])
def test_a_set_is_at_no_distance_from_itself(n: int, dim: int) -> None:
    values = rows(n, dim, 3)
    assert distance(values, values) <= 1e-9
    assert distance(values, values.flip(0)) <= 1e-9


def test_a_singular_covariance_costs_no_digits() -> None:
    """Features that lie in a plane: the distance is that within the plane.

    The eigenvalues of a product would leave the root of rounding here, 1e-7 an axis.
    """
    one, other = rows(50, 2, 0), rows(50, 2, 1)
    turned, _ = torch.linalg.qr(rows(60, 60, 2))
    wide = [side @ turned[:2] for side in (one, other)]
    assert distance(*wide) == pytest.approx(distance(one, other), abs=1e-11)


def test_sets_of_different_planes_do_not_overlap() -> None:
    """No root of rounding stands in for the directions that a set does not have."""
    turned, _ = torch.linalg.qr(rows(60, 60, 2))
    one, other = rows(50, 2, 0), rows(50, 2, 1)
    wide = [one @ turned[:2], other @ turned[2:4]]
    spread = sum(float(side.var(0).sum()) for side in (one, other))
    expected = float(one.mean(0).square().sum() + other.mean(0).square().sum()) + spread
    assert distance(*wide) == pytest.approx(expected, abs=1e-11)


def test_identical_pictures_are_a_point() -> None:
    one, other = torch.zeros(5, 3), torch.ones(5, 3)
    found = frechet_distance(Moments.of(one), Moments.of(other))
    assert (found.value, found.covariance_part) == (3.0, 0.0)


def test_numbers_say_how_many_pictures_they_are_of() -> None:
    found = frechet_distance(Moments.of(rows(30, 4, 0)), Moments.of(rows(20, 4, 1)))
    assert (found.n_reference, found.n_samples, found.dim) == (30, 20, 4)
    assert "20 samples, 30 references" in str(found)
    assert found.value == found.mean_part + found.covariance_part


def test_too_few_pictures_are_said(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        distance(rows(30, 8, 0), rows(9, 8, 1))
        assert not caplog.records
        distance(rows(30, 8, 0), rows(8, 8, 1))
    assert "8 features from 8 pictures" in caplog.text
    with pytest.raises(ValueError, match="1 picture has no covariance"):
        distance(rows(30, 8, 0), rows(1, 8, 1))
    with pytest.raises(ValueError, match="8 wide, sampled ones 4"):
        distance(rows(30, 8, 0), rows(30, 4, 1))


def noisy(pixels: np.ndarray, sigma: float) -> list[Image.Image]:
    noise = np.random.default_rng(0).normal(scale=sigma, size=pixels.shape)
    return [Image.fromarray(p) for p in np.rint(pixels + noise).clip(0, 255).astype(np.uint8)]


def curve(pixels: np.ndarray) -> list[float]:
    """Heusel et al. 2017, appendix A1: the distance of a set from itself under more noise.

    From other pictures it would start at what the limited number of pictures costs, and noise far
    below that would not be seen.
    """
    extract = load_extractor()
    reference = Moments.of(extract(noisy(pixels, 0)))
    return [
        frechet_distance(reference, Moments.of(extract(noisy(pixels, sigma)))).value
        for sigma in (0, 4, 16, 64)
    ]


def test_more_noise_is_further_away() -> None:
    pixels = render(scenes(EASY, seed=3, index=range(200)), side_px=EASY.side_px)
    found = curve(pixels)
    assert found[0] <= 1e-6
    assert all(later > 2 * earlier for earlier, later in pairwise(found))


@pytest.mark.real_data
def test_more_noise_on_real_pictures_is_further_away() -> None:
    path = sorted(Path(os.environ["LDM_REAL_DATA"], "emoji64").glob("*.tar"))[0]
    with tarfile.open(path) as tar:
        names = [name for name in tar.getnames() if name.endswith(".png")][:200]
        pictures = [Image.open(tar.extractfile(name)).convert("RGB") for name in names]
    found = curve(np.stack([np.asarray(picture) for picture in pictures]))
    assert found[0] <= 1e-6
    assert all(later > 2 * earlier for earlier, later in pairwise(found))
