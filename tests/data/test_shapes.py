"""Are the drawn pictures what their captions say, and always the same?"""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from ldm.data import shapes
from ldm.data.shapes import EASY, HARD, Scene


def one(shape: str, *, radius: float, centre: tuple[float, float], side_px: int) -> np.ndarray:
    mask = shapes.coverage(
        [shape], radius=np.array([radius]), centre=np.array([centre]), side_px=side_px
    )
    return mask[0].astype(np.float64)


def test_there_are_96_captions_and_each_block_holds_all_of_them():
    assert len(set(EASY.captions)) == len(EASY.captions) == 6 * 8 * 2
    drawn = Counter(EASY.caption(s) for s in shapes.scenes(EASY, seed=5, index=range(96 * 4)))
    assert drawn == dict.fromkeys(EASY.captions, 4)


def test_blocks_are_in_different_orders():
    first, second = (
        [EASY.caption(s) for s in shapes.scenes(EASY, seed=5, index=range(b * 96, b * 96 + 96))]
        for b in (0, 1)
    )
    assert first != second
    assert sorted(first) == sorted(second)


def test_a_picture_depends_on_seed_and_index_only():
    index = [7, 3, 900, 95, 96]
    together = shapes.render(shapes.scenes(EASY, seed=1, index=index), side_px=32)
    for i, picture in zip(index, together, strict=True):
        alone = shapes.render(shapes.scenes(EASY, seed=1, index=[i]), side_px=32)[0]
        np.testing.assert_array_equal(picture, alone)
    others = shapes.scenes(EASY, seed=2, index=index)
    assert all(
        a != b for a, b in zip(shapes.scenes(EASY, seed=1, index=index), others, strict=True)
    )


def test_the_pictures_of_seed_0_stay_what_they_are():
    """A golden value: shards, scores and weights measured before are comparable while it holds."""
    pixels = shapes.render(shapes.scenes(EASY, seed=0, index=range(96)), side_px=32)
    assert hashlib.sha256(pixels.tobytes()).hexdigest()[:16] == "5ae5eb195bf3e71d"


@pytest.mark.parametrize("side_px", [32, 65])
@pytest.mark.parametrize(
    ("shape", "area"),
    [
        ("circle", 48 * np.sin(2 * np.pi / 96)),  # the 96-gon, 0.07 % below pi
        ("square", (2 * 0.88) ** 2),
        ("triangle", 0.75 * np.sqrt(3) * 1.1**2),
        ("cross", 4 * 2 * 0.33 - 4 * 0.33**2),
        ("diamond", 2 * 1.1 * 0.8),
        ("ring", 48 * np.sin(2 * np.pi / 96) * (1 - 0.55**2)),
        ("star", 10 * 0.5 * 1.12 * (0.45 * 1.12) * np.sin(np.pi / 5)),
    ],
)
def test_the_area_is_that_of_the_closed_form(shape, area, side_px):
    drawn = one(shape, radius=0.31, centre=(0.47, 0.52), side_px=side_px).mean()
    # along y the outline is sampled 16 times a pixel, so a straight edge is off by 1/32 px at most
    edge = 2 * 2 * 0.31 / (32 * side_px)
    assert abs(drawn - area * 0.31**2) < edge


def test_every_shape_stays_in_the_picture():
    for shape in shapes.SHAPES:
        for centre in ((0.42, 0.42), (0.58, 0.58), (0.42, 0.58)):
            inside = one(shape, radius=0.37, centre=centre, side_px=64).sum()
            padded = one(shape, radius=0.185, centre=(0.5, 0.5), side_px=128).sum()
            assert inside == pytest.approx(padded, abs=8)  # nothing is cut off; else over 20 px


def test_a_whole_pixel_shift_shifts_the_mask():
    before = one("heart", radius=0.3, centre=(0.5, 0.5), side_px=32)
    after = one("heart", radius=0.3, centre=(0.5 + 2 / 32, 0.5 - 1 / 32), side_px=32)
    np.testing.assert_allclose(np.roll(before, (-1, 2), (0, 1)), after, atol=2e-3)  # table lookups


def test_the_cross_has_its_four_symmetries():
    mask = one("cross", radius=0.3, centre=(0.5, 0.5), side_px=32)
    np.testing.assert_allclose(mask, mask[:, ::-1], atol=1e-6)
    np.testing.assert_allclose(mask, mask[::-1], atol=1e-6)
    np.testing.assert_allclose(mask, mask.T, atol=1 / 16)  # 16 rows against exact columns


def test_inside_is_the_colour_outside_the_ground_and_edges_lie_between():
    scene = Scene("square", "blue", "large", "beige", 0.3, (0.5, 0.5))
    picture = shapes.render([scene], side_px=32)[0].astype(int)
    ground, colour = np.array(shapes.GROUNDS["beige"]), np.array(shapes.COLOURS["blue"])
    assert tuple(picture[16, 16]) == tuple(colour)
    assert tuple(picture[0, 0]) == tuple(ground)
    share = (picture - ground) @ (colour - ground) / ((colour - ground) @ (colour - ground))
    off = picture - ground - share[..., None] * (colour - ground)
    assert np.abs(off).max() <= 1  # on the line between both, up to rounding
    assert ((share > 0.1) & (share < 0.9)).any()


def test_radii_and_places_fill_their_ranges():
    scenes = shapes.scenes(EASY, seed=3, index=range(960))
    centres = np.array([scene.centre for scene in scenes])
    assert centres.min() >= 0.42
    assert centres.max() <= 0.58
    assert centres.std() == pytest.approx(0.16 / np.sqrt(12), rel=0.05)  # uniform
    for size in EASY.sizes:
        radii = [scene.radius for scene in scenes if scene.size == size.name]
        assert size.smallest <= min(radii) < size.smallest + 0.002
        assert size.largest - 0.002 < max(radii) <= size.largest


@pytest.mark.parametrize("task", [EASY, HARD], ids=["easy", "hard"])
def test_captions_are_parsed_to_what_made_them(task):
    for combination in task.combinations:
        assert task.parse(task.caption(combination)) == combination


def test_the_hard_task_is_balanced_and_its_grounds_differ_from_its_colours():
    assert len(HARD.combinations) == 8 * 10 * 3 * 5
    for colour in shapes.COLOURS.values():
        for ground in shapes.GROUNDS.values():
            assert np.linalg.norm(np.subtract(colour, ground)) > 80


def test_held_out_pairs_are_left_out_or_the_only_ones():
    pairs = (("red", "star"), ("blue", "circle"))
    seen = replace(EASY, held_out=pairs)
    unseen = replace(EASY, held_out=pairs, only_held_out=True)
    assert not {(c.colour, c.shape) for c in seen.combinations} & set(pairs)
    assert {(c.colour, c.shape) for c in unseen.combinations} == set(pairs)
    assert sorted(seen.captions + unseen.captions) == sorted(EASY.captions)
    assert seen.parse("a small red star").shape == "star"  # it can still be asked for


def test_what_is_wrong_is_said_at_once():
    with pytest.raises(ValueError, match=r"'red moon' .* side_px=4 .*\n?.*only_held_out|red moon"):
        replace(EASY, held_out=(("red", "moon"),), side_px=4)
    with pytest.raises(ValueError, match="not one of the task"):
        EASY.parse("a dog on a mat")
