"""Are FLOPs counted as they are published, and shares of a peak what they say?"""

from __future__ import annotations

from itertools import count

import pytest
import torch

GIVEN = {
    ("sd15", 256): 0.5403e12,
    ("sd15", 512): 2.4098e12,
    ("sd21", 256): 0.543e12,  # MosaicML, three digits
    ("sd21", 512): 2.41e12,
}


@pytest.mark.parametrize(("size", "px"), list(GIVEN))
def test_training_flops_of_an_image(size: str, px: int) -> None:
    """Three forwards of the UNet alone: no autoencoder, no text encoder."""
    from flops import training_flops

    assert training_flops(size, px) == pytest.approx(GIVEN[size, px], rel=1.5e-3)


def test_autograd_computes_a_little_less_than_three_forwards() -> None:
    """What is missing: gradients of the latents, of the context and of the time features."""
    from flops import exact_training_flops, training_flops

    assert 0.99 < exact_training_flops("sd15", 256) / training_flops("sd15", 256) < 1


def test_the_same_as_the_cost_model() -> None:
    """Counted on other operators: the fused attention of a GPU, half precision."""
    from flops import training_flops
    from networks import shape

    from ldm.training.estimate import estimate

    found = estimate(shape("sd15"), latent_size=(32, 32), micro_batch=2, tokens=77)
    assert training_flops("sd15", 256) == pytest.approx(found.flops_per_image, rel=1e-9)


def test_utilisation_in_closed_form() -> None:
    from flops import mfu, training_flops

    flops = training_flops("tiny", 64)
    assert mfu("tiny", 64, images_per_s=3.0, peak=6.0 * flops) == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA H200", 989e12),
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA A100-SXM4-40GB", 312e12),
        ("NVIDIA A100 80GB PCIe", 312e12),
        ("NVIDIA H100 PCIe", None),  # slower than the module of that name
        ("NVIDIA A1000", None),
        ("AMD EPYC", None),
    ],
)
def test_data_sheets(name: str, peak: float | None) -> None:
    from flops import data_sheet_peak

    assert data_sheet_peak(name) == peak


def test_the_matrix_peak_by_a_clock_that_we_know(monkeypatch: pytest.MonkeyPatch) -> None:
    """Half a second a product: 2 n^3 FLOPs of n x n matrices."""
    import flops

    monkeypatch.setitem(flops.SIDES, "cpu", (8, 16))
    ticks = count(0.0, 0.5)
    found = flops.matmul_peak("cpu", torch.bfloat16, seconds=0.0, now=lambda: next(ticks))
    assert found == {8: 2 * 8**3 / 0.5, 16: 2 * 16**3 / 0.5}
