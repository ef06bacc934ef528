"""Is a picture prepared as its preprocessor_config.json says?"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import CLIPImageProcessorPil

from ldm.evaluation.preprocessing import preprocessing_from

STATS = {"image_mean": [0.48, 0.46, 0.41], "image_std": [0.27, 0.26, 0.28]}
CLIP: dict[str, Any] = {
    "size": {"shortest_edge": 24},
    "crop_size": {"height": 24, "width": 24},
    "resample": 3,
    **STATS,
}


def picture(width: int, height: int) -> Image.Image:
    values = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(values)


@pytest.mark.parametrize("size", [(24, 24), (60, 40), (37, 91), (10, 12)])
@pytest.mark.parametrize(
    "config",
    [
        CLIP,
        {**CLIP, "size": {"height": 24, "width": 24}, "do_center_crop": False, "resample": 2},
        {**CLIP, "size": {"shortest_edge": 30}},
    ],
    ids=["clip", "tiny", "dinov2"],
)
def test_transformers_makes_the_same_of_it(config: dict[str, Any], size: tuple[int, int]) -> None:
    image = picture(*size)
    expected = CLIPImageProcessorPil(**config)(image, return_tensors="pt")["pixel_values"][0]
    got = preprocessing_from(config, where="test")(image)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-5)


def test_it_says_what_it_does() -> None:
    made = preprocessing_from(CLIP, where="test")
    assert made.words == "Pillow bicubic to 24 short side, centre crop 24x24"
    assert made(picture(30, 40)).shape == (3, 24, 24)
    plain = preprocessing_from({**CLIP, "size": 24, "crop_size": 24}, where="test")  # older files
    assert plain == made


def test_transparency_is_laid_over_white() -> None:
    clear = Image.new("RGBA", (24, 24), (0, 0, 0, 0))
    made = preprocessing_from({**CLIP, "do_normalize": False}, where="test")
    torch.testing.assert_close(made(clear), torch.ones(3, 24, 24))


def test_all_that_cannot_be_followed_is_said_at_once() -> None:
    bad = {
        "do_pad": True,
        "size": {"longest_edge": 24},
        "crop_size": -1,
        "resample": 9,
        "rescale_factor": 0.0,
        "image_mean": [0.5],
        "image_std": [0.0, 0.0, 0.0],
    }
    with pytest.raises(ValueError, match=r"x\.json: ") as caught:
        preprocessing_from(bad, where="x.json")
    for name in ("do_pad", "size=", "crop_size=-1", "resample=9", "rescale_factor", "image_mean"):
        assert name in str(caught.value)
    assert "image_std=(0.0, 0.0, 0.0) is not positive" in str(caught.value)


def test_pictures_would_differ_in_size_without_a_crop() -> None:
    with pytest.raises(ValueError, match="without a crop"):
        preprocessing_from({**CLIP, "do_center_crop": False}, where="test")
    with pytest.raises(ValueError, match="larger than size"):
        preprocessing_from({**CLIP, "crop_size": 25}, where="test")
