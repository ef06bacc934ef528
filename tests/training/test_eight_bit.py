"""Is AdamW with 8-bit moments there only with its package, and does it drop a broken step?"""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import nn

from ldm.training.optim import OptimSettings, build_optimizer

SETTINGS = OptimSettings(lr=0.1, betas=(0.8, 0.9), eps=1e-6, eight_bit=True)


class Pretended(torch.optim.AdamW):
    """bitsandbytes.optim.AdamW8bit as far as it is used: no `fused`, deaf to found_inf."""

    def __init__(self, params: Any, lr: float, betas: Any, eps: float, weight_decay: float = 0.01):
        super().__init__(params, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay)
        del self.defaults["fused"]

    def step(self, closure: Any = None) -> Any:
        flag = self.__dict__.pop("found_inf", None)  # torch's own would heed it
        loss = super().step(closure)
        self.found_inf = flag
        return loss


@pytest.fixture
def pretended(monkeypatch: pytest.MonkeyPatch) -> None:
    package, inner = ModuleType("bitsandbytes"), ModuleType("bitsandbytes.optim")
    package.__spec__ = ModuleSpec("bitsandbytes", None)
    inner.AdamW8bit = Pretended  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "bitsandbytes", package)
    monkeypatch.setitem(sys.modules, "bitsandbytes.optim", inner)


@pytest.fixture
def absent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)


def test_without_the_package_nothing_else_is_built(absent: None) -> None:
    """A run takes AdamW instead, and says so: app/support.py."""
    parameters = nn.Linear(2, 2).named_parameters()
    with pytest.raises(ModuleNotFoundError, match="adamw8bit needs the package bitsandbytes"):
        build_optimizer(SETTINGS, parameters, fused=False)


def test_settings_reach_it(pretended: None) -> None:
    module = nn.Linear(2, 2)
    optimizer = build_optimizer(SETTINGS, module.named_parameters(), fused=True)
    assert isinstance(optimizer, Pretended)
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.01, 0.0]
    for group in optimizer.param_groups:
        assert (group["lr"], group["betas"], group["eps"]) == (0.1, (0.8, 0.9), 1e-6)
    assert SETTINGS.problems() == []
    assert SETTINGS.summary() == "0.1; 8-bit moments"


def test_a_step_that_is_not_finite_leaves_no_trace(pretended: None) -> None:
    """found_inf is known only when the closure has run, as Lightning does it."""
    module = nn.Linear(2, 2)
    optimizer: Any = build_optimizer(SETTINGS, module.named_parameters(), fused=True)
    calls = []

    def closure(bad: bool) -> str:
        for parameter in module.parameters():
            parameter.grad = torch.full_like(parameter, float("nan") if bad else 1.0)
        optimizer.found_inf = torch.tensor(float(bad))
        calls.append(bad)
        return "loss"

    before = module.weight.detach().clone()
    assert optimizer.step(lambda: closure(True)) == "loss"
    assert torch.equal(module.weight, before)
    assert not optimizer.state
    assert optimizer.step(lambda: closure(False)) == "loss"
    assert not torch.equal(module.weight, before)
    assert torch.isfinite(module.weight).all()
    assert calls == [True, False]


def test_a_run_with_it_is_interrupted_and_resumed_exactly(
    pretended: None,
    tiny_run: Callable[..., Path],
    tmp_path: Path,
    document: Callable[[Path], dict[str, Any]],
    differences: Callable[..., list[str]],
) -> None:
    changes = ("training/optim=adamw8bit", "training.optim.lr=0.002", "resume=auto")
    for length in (16, 32):
        tiny_run(tmp_path / "parts", *changes, f"training.max_samples={length}")
    whole = document(tiny_run(tmp_path / "whole", *changes))
    parts = document(tmp_path / "parts")
    for key in ("state_dict", "ema", "optimizer_states", "lr_schedulers"):
        assert differences(whole[key], parts[key]) == [], key
    assert "8-bit moments" in (tmp_path / "whole" / "plan.txt").read_text()
