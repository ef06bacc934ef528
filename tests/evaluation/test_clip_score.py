"""Is the CLIP score that of Hessel et al.?"""

from __future__ import annotations

import pytest
import torch

from ldm.evaluation.clip_score import clip_score
from ldm.evaluation.statistics import Features


def of(*rows: list[float], index: tuple[int, ...] = ()) -> Features:
    values = torch.tensor(rows)
    return Features.of(torch.tensor(index or tuple(range(len(rows)))), values)


def test_it_is_a_hundred_cosines_none_below_zero() -> None:
    pictures = of([2.0, 0.0], [1.0, 1.0], [1.0, 0.0], [0.0, 3.0])
    captions = of([1.0, 0.0], [1.0, 0.0], [-5.0, 0.0], [1.0, 0.0])
    found = clip_score(pictures, captions, seed=0)
    expected = torch.tensor([100, 100 / 2**0.5, 0, 0], dtype=torch.float64)
    torch.testing.assert_close(found.scores, expected, rtol=0, atol=1e-12)
    assert found.value == pytest.approx(float(expected.mean()))  # cut pair by pair, then averaged
    assert found.interval.n == 4
    assert found.interval.low < found.value < found.interval.high


def test_rows_belong_together_by_their_index() -> None:
    pictures = of([1.0, 0.0], [0.0, 1.0], index=(7, 3))
    captions = of([0.0, 1.0], [1.0, 0.0], index=(3, 7))
    assert clip_score(pictures, captions, seed=0).value == pytest.approx(100)
    with pytest.raises(ValueError, match="2 pictures of 2 features and 2 captions of 2"):
        clip_score(pictures, of([0.0, 1.0], [1.0, 0.0], index=(3, 8)), seed=0)


def test_what_has_no_direction_is_named() -> None:
    with pytest.raises(ValueError, match=r"1 pairs have all-zero features \(the first: 1\)"):
        clip_score(of([1.0, 0.0], [0.0, 0.0]), of([1.0, 0.0], [0.0, 1.0]), seed=0)
    with pytest.raises(ValueError, match="N of 2 or more"):
        clip_score(of([1.0, 0.0]), of([1.0, 0.0]), seed=0)
