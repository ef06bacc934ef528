"""Are exactly the rows of the mask replaced, and nothing else?"""

from __future__ import annotations

import torch
from torch import Tensor

from ldm.training.dropout import drop_context
from ldm.types import Conditioning


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


COND = Conditioning(
    drawn(4, 5, 3),
    torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0], [1, 0, 0, 0, 0], [1, 1, 1, 1, 0]]).bool(),
    drawn(4, 2, 8, 8, seed=1),
)
NULL = Conditioning(drawn(1, 5, 3, seed=2), torch.tensor([[1, 1, 0, 0, 0]]).bool())
SOME = torch.tensor([False, True, False, True])


def test_no_row_no_change() -> None:
    got = drop_context(COND, NULL, torch.zeros(4, dtype=torch.bool))
    assert torch.equal(got.context, COND.context)
    assert torch.equal(got.mask, COND.mask)


def test_every_row_becomes_the_null_context() -> None:
    got = drop_context(COND, NULL, torch.ones(4, dtype=torch.bool))
    assert torch.equal(got.context, NULL.context.expand(4, -1, -1))
    assert torch.equal(got.mask, NULL.mask.expand(4, -1))


def test_each_row_goes_its_own_way() -> None:
    got = drop_context(COND, NULL, SOME)
    for row, dropped in enumerate(SOME.tolist()):
        source, at = (NULL, 0) if dropped else (COND, row)
        assert torch.equal(got.context[row], source.context[at])
        assert torch.equal(got.mask[row], source.mask[at])


def test_the_arguments_are_not_changed() -> None:
    before = COND.context.clone(), NULL.context.clone()
    drop_context(COND, NULL, SOME)
    assert torch.equal(COND.context, before[0])
    assert torch.equal(NULL.context, before[1])


def test_the_latents_of_inpainting_stay() -> None:
    assert drop_context(COND, NULL, SOME).concat is COND.concat


def test_a_shorter_null_is_continued_by_its_last_token() -> None:
    short = Conditioning(NULL.context[:, :2])
    got = drop_context(Conditioning(COND.context), short, SOME)
    expected = torch.cat([short.context[0], short.context[0, -1:].expand(3, -1)])
    assert torch.equal(got.context[1], expected)
    assert got.mask is None


def test_a_longer_null_is_cut() -> None:
    long = Conditioning(drawn(1, 9, 3, seed=3))
    got = drop_context(Conditioning(COND.context), long, SOME)
    assert torch.equal(got.context[3], long.context[0, :5])


def test_a_null_without_a_mask_is_attended_to_everywhere() -> None:
    got = drop_context(COND, Conditioning(NULL.context), SOME)
    assert got.mask[1].all()
    assert torch.equal(got.mask[0], COND.mask[0])


def test_without_captions_there_is_nothing_to_drop() -> None:
    cond = Conditioning(concat=COND.concat)
    assert drop_context(cond, Conditioning(), SOME) is cond
