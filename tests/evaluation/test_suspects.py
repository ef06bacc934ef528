"""Do scores follow their definitions, and are copies told from pictures that are merely alike?"""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from ldm.evaluation.copies import find_copies, find_neighbours, usual_distance
from ldm.evaluation.suspects import Losses, robust_z, score

N, A, K = 40, 3, 4


def random(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def losses(wrong: tuple[int, ...] = ()) -> Losses:
    """The own caption makes the loss e times smaller than others do, none is in the middle."""
    base = torch.exp(0.1 * random(N, K)) * torch.tensor([1.0, 0.1, 0.01, 0.001])
    noise = torch.exp(0.02 * random(N, A, K).flip(0))
    others = base[:, None] * math.e * noise
    none = base * math.exp(0.5)
    own = base.clone()
    for row in wrong:
        own[row] = base[row] * math.e
    return Losses(own=own, none=none, others=others)


def neighbours(count: int = 3) -> Tensor:
    return (torch.arange(N)[:, None] + torch.arange(1, count + 1)) % N


def test_scores_are_logarithms_of_ratios() -> None:
    found = score(losses(), neighbours())
    assert torch.allclose(found.gain, torch.full((N,), 0.5, dtype=torch.float64))
    assert torch.allclose(found.advantage, torch.ones(N, dtype=torch.float64), atol=0.05)
    assert torch.allclose(found.fit, (found.gain + found.advantage) / 2)
    assert torch.equal(found.share, torch.full((N,), 1 / (A + 1)))


def test_a_scale_of_the_losses_at_a_level_changes_nothing() -> None:
    """Levels with large losses do not outvote the others."""
    one = losses((5,))
    scale = torch.tensor([100.0, 1.0, 0.01, 7.0], dtype=torch.float64)
    other = Losses(own=one.own * scale, none=one.none * scale, others=one.others * scale)
    a, b = score(one, neighbours()), score(other, neighbours())
    assert torch.allclose(a.fit_z, b.fit_z)
    assert torch.allclose(a.hard_z, b.hard_z)


def test_wrong_captions_are_flagged_and_no_others() -> None:
    wrong = (3, 17)
    found = score(losses(wrong), neighbours())
    assert found.flags(3.0)["mislabelled"].nonzero().flatten().tolist() == list(wrong)
    assert (found.share[list(wrong)] > 1 / (A + 1)).any()


def test_the_nearest_caption_is_the_one_with_the_smallest_loss() -> None:
    one = losses()
    others = one.others.clone()
    others[:, 1] /= 2
    assert (
        score(Losses(own=one.own, none=one.none, others=others), neighbours()).nearest.eq(1).all()
    )


def test_hard_and_easy() -> None:
    """One far above all; one far below its neighbours in a place where all are low."""
    one = losses()
    scale = torch.ones(N, 1, dtype=torch.float64)
    scale[9], scale[30] = 10.0, 0.2
    scaled = Losses(own=one.own * scale, none=one.none * scale, others=one.others * scale[:, None])
    flags = score(scaled, neighbours()).flags(3.0)
    assert flags["hard"][9]
    assert flags["easy"][30]
    assert not flags["mislabelled"].any()  # whatever the caption: it is the picture


def test_deviations_are_those_of_the_bulk() -> None:
    values = random(1001)
    assert robust_z(values).std() == pytest.approx(1, abs=0.1)
    values[:100] += 1000  # as many outliers do not widen what a deviation is
    assert float(robust_z(values)[100:].std()) == pytest.approx(1, abs=0.25)
    assert torch.equal(robust_z(torch.ones(20)), torch.zeros(20))
    mostly = torch.zeros(20)
    mostly[0] = 1
    assert robust_z(mostly)[0] > 3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"none": torch.ones(N, K + 1)}, "none"),
        ({"others": torch.ones(N, 0, K)}, "A of 1 or more"),
        ({"others": torch.ones(N + 1, A, K)}, "not one N and K"),
        ({"own": torch.full((N, K), math.nan)}, "40 pictures have losses that are not finite"),
        ({"own": torch.zeros(N, K)}, "not finite and positive"),
    ],
)
def test_losses_are_checked(changes: dict[str, Tensor], message: str) -> None:
    good = {"own": torch.ones(N, K), "none": torch.ones(N, K), "others": torch.ones(N, A, K)}
    with pytest.raises(ValueError, match=message):
        Losses(**{**good, **changes})


def test_few_pictures_are_too_few() -> None:
    with pytest.raises(ValueError, match="9 pictures are too few"):
        Losses(own=torch.ones(9, K), none=torch.ones(9, K), others=torch.ones(9, A, K))


# -- copies ---------------------------------------------------------------------------------------

NO_LOOKS = np.zeros((N, 2), dtype=np.uint64)


def latents() -> Tensor:
    return random(N, 16).float()


def test_neighbours_are_the_nearest_by_brute_force() -> None:
    points = latents()
    found = find_neighbours(points, count=3)
    for row in range(N):
        distance = (points - points[row]).norm(dim=1)
        distance[row] = math.inf
        assert found.rows[row].tolist() == distance.argsort()[:3].tolist()
    assert float(found.distance.median()) < 1  # shares of the usual distance


def test_copies_are_grouped_and_the_usual_is_none() -> None:
    points = latents()
    points[20] = points[4] + 1e-3
    points[30] = points[20] - 1e-3
    points[39] = points[11]
    groups = find_copies(points, NO_LOOKS, find_neighbours(points), near=0.1)
    assert [group.rows for group in groups] == [(4, 20, 30), (11, 39)]
    assert groups[1].distance == 0
    assert groups[0].distance < 0.01


def test_a_hash_alone_is_no_copy_but_it_helps() -> None:
    """Looks are the same in both pairs; only the one with near latents as well counts."""
    points = latents()
    usual = usual_distance(points)
    step = torch.zeros(16)
    step[0] = 0.15 * usual  # beyond `near`, within twice that
    points[20] = points[4] + step
    looks = NO_LOOKS.copy()
    looks[[4, 20]] = (0x00FF00FF00FF00FF, 0x808080)
    looks[[6, 7]] = (0x0F0F0F0F0F0F0F0F, 0x101010)
    neighbours = find_neighbours(points)
    assert [g.rows for g in find_copies(points, looks, neighbours, near=0.1)] == [(4, 20)]
    assert find_copies(points, NO_LOOKS, neighbours, near=0.1) == []
