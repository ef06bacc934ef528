"""The contrastive loss in closed form."""

from __future__ import annotations

import math

import torch
from torch.nn import functional
from torch.testing import assert_close

from ldm.models.text.contrastive import contrastive_loss, same_caption

NAMES = ["a", "b", "c", "d", "e"]


def unit(rows: int, width: int = 8, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return functional.normalize(torch.randn(rows, width, generator=generator), dim=-1)


def test_no_information_costs_log_of_the_batch():
    same = unit(1).expand(5, -1)
    assert_close(contrastive_loss(same, same, torch.tensor(7.0), NAMES), torch.tensor(math.log(5)))


def test_orthogonal_pairs():
    """log(e^s + 4) - s on both sides."""
    eye = torch.eye(5)
    expected = math.log(math.exp(3.0) + 4) - 3.0
    assert_close(contrastive_loss(eye, eye, torch.tensor(3.0), NAMES), torch.tensor(expected))


def test_both_directions_count():
    """All pictures alike, captions orthogonal: row softmax and column softmax differ."""
    image = torch.eye(5)[:1].expand(5, -1)
    s = 2.0
    # logits: column 0 is s, the rest 0
    to_text = (4 * math.log(math.exp(s) + 4) + math.log(math.exp(s) + 4) - s) / 5
    to_image = math.log(5)
    got = contrastive_loss(image, torch.eye(5), torch.tensor(s), NAMES)
    assert_close(got, torch.tensor((to_text + to_image) / 2))


def test_one_caption_has_no_negatives():
    loss = contrastive_loss(unit(4), unit(4, seed=1), torch.tensor(50.0), ["same"] * 4)
    assert_close(loss, torch.tensor(0.0))


def test_a_repeated_caption_is_left_out_of_the_sums():
    image, text = unit(3), unit(3, seed=1)
    logits = 5 * image @ text.T
    rows, columns = [], []
    for own in range(3):
        allowed = [j for j in range(3) if j == own or "aba"[j] != "aba"[own]]
        rows.append(logits[own, allowed].logsumexp(0) - logits[own, own])
        columns.append(logits[allowed, own].logsumexp(0) - logits[own, own])
    expected = (torch.stack(rows).mean() + torch.stack(columns).mean()) / 2
    assert_close(contrastive_loss(image, text, torch.tensor(5.0), list("aba")), expected)


def test_gradients_are_finite_with_repeats():
    image = unit(4).requires_grad_()
    contrastive_loss(image, unit(4, seed=1), torch.tensor(5.0), list("aabb")).backward()
    assert torch.isfinite(image.grad).all()
    assert image.grad.abs().sum() > 0


def test_fp32_whatever_the_towers_compute_in():
    image, text = unit(5).bfloat16(), unit(5, seed=1).bfloat16()
    loss = contrastive_loss(image, text, torch.tensor(9.0), NAMES)
    assert loss.dtype == torch.float32
    assert_close(loss, contrastive_loss(image.float(), text.float(), torch.tensor(9.0), NAMES))


def test_same_caption():
    expected = [[True, False, True], [False, True, False], [True, False, True]]
    assert same_caption(["x", "y", "x"]).tolist() == expected
