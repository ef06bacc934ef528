"""Does the judge see what is there, and nothing where nothing is?"""

from __future__ import annotations

import time

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from ldm.data import shapes
from ldm.data.shapes import EASY, HARD, Task
from ldm.evaluation.shapes_judge import NONE, judge, judge_accuracy, score
from ldm.images import from_uint8, to_pil

SEED = 2**40 + 17  # no data set that anybody trains on


def renders(n: int, task: Task = EASY, seed: int = SEED) -> tuple[Tensor, list[str]]:
    scenes = shapes.scenes(task, seed=seed, index=range(n))
    pixels = from_uint8(torch.from_numpy(shapes.render(scenes, side_px=task.side_px)))
    return pixels, [task.caption(scene) for scene in scenes]


def blurred(pixels: Tensor, sigma: float) -> Tensor:
    place = torch.arange(-4, 5, dtype=torch.float32)
    kernel = torch.exp(-place.square() / (2 * sigma**2))
    kernel = (kernel / kernel.sum()).expand(3, 1, 1, 9)
    wide = F.pad(pixels, (4, 4, 4, 4), mode="replicate")
    return F.conv2d(F.conv2d(wide, kernel, groups=3), kernel.transpose(2, 3), groups=3)


def noise(*size: int, seed: int = 0) -> Tensor:
    return torch.randn(*size, generator=torch.Generator().manual_seed(seed))


def masks(names: list[str], radii: list[float], centres: list[tuple[float, float]]) -> Tensor:
    drawn = shapes.coverage(names, radius=np.array(radii), centre=np.array(centres), side_px=32)
    return torch.from_numpy(drawn)


def painted(mask: Tensor, colour: str = "blue") -> Tensor:
    """[B,H,W] coverage -> pixels on white."""
    rgb = torch.tensor(shapes.COLOURS[colour], dtype=torch.float32)[:, None, None] / 127.5 - 1
    return 1 + (rgb - 1) * mask[:, None]


def test_true_renders_are_seen_as_what_they_are():
    got = judge_accuracy(2000, SEED)
    assert got.n == 2000
    assert min(got.colour, got.shape, got.size) >= 0.995
    assert got.all >= 0.99


def test_blur_and_noise_of_a_decoder_do_not_matter():
    pixels, captions = renders(960)
    soft = blurred(pixels, 0.5) + 0.06 * noise(*pixels.shape)  # 0.03 of the range, twice as wide
    got = score(soft, captions)
    assert min(got.colour, got.shape, got.size) >= 0.995


@pytest.mark.parametrize("side_px", [24, 64, 96])
def test_pictures_of_other_sizes_are_judged_too(side_px):
    scenes = shapes.scenes(EASY, seed=SEED, index=range(192))
    pixels = from_uint8(torch.from_numpy(shapes.render(scenes, side_px=side_px)))
    assert score(pixels, [EASY.caption(scene) for scene in scenes]).all >= 0.99


def test_the_hard_task_is_judged_with_its_backgrounds():
    pixels, captions = renders(600, HARD)
    assert score(pixels, captions, task=HARD).all >= 0.99


def lowpass(cells: int) -> Tensor:
    coarse = torch.rand(200, 3, cells, cells, generator=torch.Generator().manual_seed(cells))
    return F.interpolate(coarse * 2 - 1, size=32, mode="bicubic").clamp(-1, 1)


def blobs() -> Tensor:
    place = torch.arange(32.0) - 15.5
    square = place[:, None] ** 2 + place**2
    return painted(torch.stack([torch.exp(-square / (2 * s**2)) for s in (2, 3, 4, 5, 6, 8)]))


NOTHING = {
    "a trace of a circle": painted(0.1 * masks(["circle"], [0.35], [(0.5, 0.5)])),
    "white": torch.ones(4, 3, 32, 32),
    "nearly white": 1 - 0.1 * noise(200, 3, 32, 32).abs(),
    "one colour": torch.rand(200, 3, 1, 1).mul(2).sub(1).expand(-1, -1, 32, 32),
    "noise": noise(200, 3, 32, 32).clamp(-1, 1),
    "clouds 3": lowpass(3),
    "clouds 6": lowpass(6),
    "blobs": blobs(),
    "not a number": torch.full((2, 3, 32, 32), float("nan")),
}


@pytest.mark.parametrize("name", NOTHING)
def test_where_no_object_is_no_shape_is_seen(name):
    assert [verdict.shape for verdict in judge(NOTHING[name])] == [None] * len(NOTHING[name])


def test_two_objects_are_not_one():
    names = [name for name in EASY.shapes for _ in EASY.shapes]
    others = [name for _ in EASY.shapes for name in EASY.shapes]
    left = masks(names, [0.2] * 36, [(0.27, 0.45)] * 36)
    right = masks(others, [0.2] * 36, [(0.73, 0.55)] * 36)
    assert {verdict.shape for verdict in judge(painted(left + right))} == {None}


def test_a_half_red_half_blue_circle_has_no_colour():
    mask = masks(["circle"], [0.35], [(0.5, 0.5)])
    picture = painted(mask, "red")
    picture[..., 16:] = painted(mask, "blue")[..., 16:]
    assert judge(picture)[0].colour is None


def test_a_blend_of_two_shapes_is_neither_and_a_slight_one_is_the_stronger():
    pairs = [(a, b) for a in EASY.shapes for b in EASY.shapes if a != b]
    radii, centres = [0.35] * len(pairs), [(0.51, 0.48)] * len(pairs)
    first = masks([a for a, _ in pairs], radii, centres)
    second = masks([b for _, b in pairs], radii, centres)
    even = [verdict.shape for verdict in judge(painted(0.5 * first + 0.5 * second))]
    assert even.count(None) >= 0.85 * len(pairs)  # half a square round a cross is a cross to it
    slight = [verdict.shape for verdict in judge(painted(0.85 * first + 0.15 * second))]
    assert slight == [a for a, _ in pairs]


def test_sizes_between_and_beyond_the_named_ones():
    radii = [0.10, 0.21, 0.25, 0.26, 0.32, 0.37, 0.39]
    seen = [v.size for v in judge(painted(masks(["circle"] * 7, radii, [(0.5, 0.5)] * 7)))]
    assert seen == [None, "small", "small", "small", "large", "large", "large"]


def test_off_colours_are_named_when_near_and_not_when_far():
    mask = masks(["square"], [0.35], [(0.5, 0.5)])
    near = painted(mask, "red") + 0.1 * mask[:, None]
    assert judge(near)[0].colour == "red"
    green_grey = 1 + (torch.tensor([0.45, 0.75, 0.68])[:, None, None] * 2 - 2) * mask[:, None]
    assert judge(green_grey)[0].colour is None
    assert judge(green_grey)[0].shape == "square"


def test_the_score_counts_each_property_and_the_confusion():
    mask = masks(["circle", "star", "heart"], [0.35, 0.35, 0.23], [(0.5, 0.5)] * 3)
    pixels = torch.cat([painted(mask, "blue"), torch.ones(1, 3, 32, 32)])
    asked = ["a large blue circle", "a large red star", "a large blue cross", "a small red heart"]
    got = score(pixels, asked)
    assert (got.colour, got.shape, got.size, got.all, got.n) == (0.5, 0.5, 0.5, 0.25, 4)
    assert got.confusion["cross"]["heart"] == 1
    assert got.confusion["heart"][NONE] == 1
    assert sum(sum(row.values()) for row in got.confusion.values()) == 4
    assert str(got) == "colour 50.0%, shape 50.0%, size 50.0%, all 25.0% of 4 pictures"


def test_pictures_are_judged_as_tensors_are():
    pixels, _ = renders(12)
    assert judge(to_pil(pixels)) == judge(pixels)


def test_a_verdict_does_not_depend_on_the_batch():
    pixels, _ = renders(300)
    alone = [judge(pixels[i : i + 1])[0] for i in (0, 299)]
    together = judge(pixels)
    for one, other in zip(alone, (together[0], together[299]), strict=True):
        assert (one.shape, one.colour, one.size) == (other.shape, other.colour, other.size)
        assert one.confidence == pytest.approx(other.confidence, abs=1e-5)  # order of summation


def test_384_pictures_take_less_than_two_seconds():
    pixels, _ = renders(384)
    judge(pixels[:1])  # draws the masks
    start = time.process_time()
    judge(pixels)
    assert time.process_time() - start < 2.0


def test_wrong_input_is_named():
    with pytest.raises(ValueError, match="2 pictures, 1 captions"):
        score(torch.ones(2, 3, 32, 32), ["a small red heart"])
    with pytest.raises(ValueError, match="square"):
        judge(torch.ones(2, 3, 32, 48))
