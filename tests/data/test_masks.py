"""Are the masks of sample i its own alone, of the kinds asked for, and whole?"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from ldm.data import masks
from ldm.data.masks import BOX_SIDE, random_masks

BOXES: dict[str, float] = {"full": 0.0, "boxes": 1.0}
STROKES: dict[str, float] = {"full": 0.0, "boxes": 0.0}
MIX: dict[str, float] = {"full": 0.25, "boxes": 0.375}


def drawn(count: int, size: tuple[int, int] = (32, 32), **mix: Any) -> Tensor:
    return random_masks(3, "mask", torch.arange(count), size, **{**MIX, **mix})


@pytest.mark.parametrize("mix", [BOXES, STROKES, MIX])
def test_a_mask_depends_on_its_index_alone(mix: dict[str, float]) -> None:
    """Bitwise: whatever is beside it, wherever it stands, on however many ranks."""
    whole = drawn(24, **mix)
    assert torch.equal(whole, drawn(24, **mix))
    for rank in range(3):
        index = torch.arange(23 - rank, -1, -3)
        assert torch.equal(random_masks(3, "mask", index, (32, 32), **mix), whole[index])


def test_seeds_purposes_and_samples_have_masks_of_their_own() -> None:
    index = torch.arange(64)
    one = random_masks(3, "mask", index, (32, 32), **BOXES)
    for other in (
        random_masks(4, "mask", index, (32, 32), **BOXES),
        random_masks(3, "val-mask", index, (32, 32), **BOXES),
        random_masks(3, "mask", index + 64, (32, 32), **BOXES),
    ):
        assert sum(torch.equal(a, b) for a, b in zip(one, other, strict=True)) <= 1


@pytest.mark.parametrize("size", [(32, 32), (24, 48), (40, 16)])
@pytest.mark.parametrize("mix", [BOXES, STROKES, MIX])
def test_masks_are_binary_and_never_empty(mix: dict[str, float], size: tuple[int, int]) -> None:
    mask = drawn(200, size, **mix)
    assert mask.shape == (200, 1, *size)
    assert mask.dtype == torch.float32
    assert set(mask.unique().tolist()) == {0.0, 1.0}
    assert mask.flatten(1).any(1).all()


@pytest.mark.parametrize(
    ("mix", "full"), [(MIX, 0.25), ({"full": 1.0, "boxes": 0.0}, 1.0), (BOXES, 0.0)]
)
def test_everything_is_hidden_as_often_as_asked(mix: dict[str, float], full: float) -> None:
    share = float(drawn(1600, **mix).flatten(1).all(1).float().mean())
    # four standard deviations of a share of 1,600; boxes and strokes hardly ever cover all
    assert share == pytest.approx(full, abs=4 * math.sqrt(0.25 * 0.75 / 1600))


def test_the_kinds_are_those_of_their_own_draws() -> None:
    """A mask of the mix is the box mask or the stroke mask of that index, or full."""
    mixed, boxes, strokes = drawn(400), drawn(400, **BOXES), drawn(400, **STROKES)
    kinds = [
        "full" if m.all() else "box" if torch.equal(m, b) else "stroke"
        for m, b in zip(mixed, boxes, strict=True)
    ]
    for kind, mask, stroke in zip(kinds, mixed, strokes, strict=True):
        assert kind != "stroke" or torch.equal(mask, stroke)
    assert 400 * 0.3 < kinds.count("box") < 400 * 0.45
    assert 400 * 0.3 < kinds.count("stroke") < 400 * 0.45


def test_one_box_is_a_rectangle_of_the_sizes_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(masks, "BOXES", 1)
    for mask in drawn(100, (64, 96), **BOXES)[:, 0]:
        rows, columns = mask.any(1), mask.any(0)
        assert torch.equal(mask, torch.outer(rows.float(), columns.float()))
        for line in (rows, columns):
            side = int(line.sum())
            assert round(BOX_SIDE[0] * 64) <= side <= round(BOX_SIDE[1] * 64)
            assert int(line.nonzero().max() - line.nonzero().min()) == side - 1


def test_a_segment_is_a_capsule() -> None:
    """Its area is that of a rectangle and a disc, whichever way it runs."""
    start = torch.tensor([[40.0, 40.0], [40.0, 40.0], [100.0, 60.0]])
    end = torch.tensor([[40.0, 100.0], [110.0, 80.0], [100.0, 60.0]])  # the last one is a point
    radius = torch.tensor([9.0, 12.0, 15.0])
    near = masks._near(start.unbind(1), end.unbind(1), radius, (150, 150))
    length = (end - start).norm(dim=1)
    assert_close(
        near.flatten(1).sum(1).float(),
        2 * radius * length + math.pi * radius**2,
        rtol=0.02,  # whole pixels
        atol=0,
    )
    assert near[0, 40, 40 - 9]
    assert not near[0, 40, 40 - 10]


@pytest.mark.parametrize("mix", [BOXES, STROKES])
def test_a_mask_has_the_same_shape_at_every_resolution(mix: dict[str, float]) -> None:
    small, large = drawn(32, (48, 64), **mix), drawn(32, (192, 256), **mix)
    shrunk = torch.nn.functional.avg_pool2d(large, 4)
    assert float((small - shrunk).abs().mean()) < 0.02  # their edges


def test_most_masks_are_of_middling_size() -> None:
    for mix in (BOXES, STROKES):
        covered = drawn(500, **mix).mean((1, 2, 3))
        assert 0.2 < float(covered.mean()) < 0.5
        assert float((covered > 0.95).float().mean()) < 0.05
