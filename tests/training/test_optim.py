"""Is the learning rate a function of samples alone, and which weights decay?"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from ldm.training.optim import OptimSettings, build_optimizer, lr_factor

LINEAR = OptimSettings(lr=2.0, warmup=100, shape="linear", decay_start=0.6, final=0.1)


def test_the_warm_up_is_linear_and_ends_at_the_peak() -> None:
    factor = lr_factor(LINEAR, 1000)
    assert [factor(n) for n in (1, 25, 50, 99, 100)] == [0.01, 0.25, 0.5, 0.99, 1.0]


def test_linear_falls_from_decay_start_to_final() -> None:
    factor = lr_factor(LINEAR, 1000)
    assert factor(600) == 1.0
    assert factor(800) == pytest.approx(0.55)  # half way between 1 and 0.1
    assert factor(1000) == pytest.approx(0.1)
    assert factor(1064) == pytest.approx(0.1)  # the last batch may go beyond the horizon


def test_cosine_is_a_half_wave() -> None:
    factor = lr_factor(replace(LINEAR, shape="cosine", decay_start=0.0, final=0.0), 1100)
    for n in (100, 350, 600, 850, 1100):  # it begins where the warm-up ends
        assert factor(n) == pytest.approx(0.5 * (1 + math.cos(math.pi * (n - 100) / 1000)))


def test_constant_stays() -> None:
    factor = lr_factor(OptimSettings(lr=1.0, decay_start=0.5), 100)
    assert {factor(n) for n in (1, 50, 100, 1000)} == {1.0}


def test_matrices_decay_and_vectors_do_not() -> None:
    module = nn.Sequential(nn.Conv2d(2, 2, 3), nn.GroupNorm(1, 2))
    module[0].bias.requires_grad_(False)
    settings = OptimSettings(lr=0.3, betas=(0.5, 0.6), eps=1e-3, weight_decay=0.07)
    optimizer = build_optimizer(settings, module.named_parameters(), fused=False)
    found = {
        group["weight_decay"]: [tuple(p.shape) for p in group["params"]]
        for group in optimizer.param_groups
    }
    assert found == {0.07: [(2, 2, 3, 3)], 0.0: [(2,), (2,)]}
    for group in optimizer.param_groups:
        assert (group["lr"], group["betas"], group["eps"]) == (0.3, (0.5, 0.6), 1e-3)


def test_a_step_without_gradient_is_the_decay_alone() -> None:
    """Loshchilov & Hutter 2019: w <- (1 - lr · decay) w."""
    module = nn.Linear(2, 2)
    module.weight.data.fill_(1.0)
    settings = OptimSettings(lr=0.1, weight_decay=0.5)
    optimizer = build_optimizer(settings, module.named_parameters(), fused=False)
    module.weight.grad, module.bias.grad = torch.zeros(2, 2), torch.zeros(2)
    bias = module.bias.detach().clone()
    optimizer.step()
    assert torch.allclose(module.weight, torch.full((2, 2), 0.95))
    assert torch.equal(module.bias, bias)


def test_every_problem_is_named() -> None:
    bad = OptimSettings(lr=0, warmup=-1, shape="square", decay_start=2.0, final=-0.5)
    text = "\n".join(bad.problems())
    for name in ("lr=0", "warmup=-1", "shape='square'", "decay_start=2.0", "final=-0.5"):
        assert name in text
    assert "constant, cosine, linear" in text
    assert LINEAR.problems() == []


def test_the_summary_says_the_course() -> None:
    assert LINEAR.summary() == "warm-up over 100 samples, 2, linear to 0.2 from 60% on"
    assert OptimSettings(lr=1e-4).summary() == "0.0001"


def test_a_run_follows_the_course_whatever_the_accumulation(
    tiny_run: Callable[..., Path], tmp_path: Path, metrics: Callable[..., list[dict[str, float]]]
) -> None:
    """The rate after n samples is that of the step that ends at n + B samples."""
    course = (
        "training.optim.shape=linear",
        "training.optim.warmup=16",
        "training.optim.decay_start=0.5",
        "training.optim.final=0.25",
        "training.save_every=null",
    )
    whole = metrics(tiny_run(tmp_path / "whole", *course))
    parts = metrics(tiny_run(tmp_path / "parts", *course, "training.micro_batch=2"))
    factor = lr_factor(
        OptimSettings(lr=2e-3, shape="linear", warmup=16, decay_start=0.5, final=0.25), 32
    )
    assert [row["lr"] for row in whole] == [row["lr"] for row in parts]
    assert [row["lr"] for row in whole] == [
        pytest.approx(2e-3 * factor(int(row["samples_seen"]) + 8)) for row in whole
    ]
    assert len({row["lr"] for row in whole}) > 2
