"""Does every parameter learn at the rate of its group, and not at all where the factor is 0?"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ldm.app.job import build_job
from ldm.training.ema import EMA
from ldm.training.groups import freeze, problems_of
from ldm.training.optim import OptimSettings, build_optimizer


@pytest.fixture
def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.ModuleDict(
        {"one": nn.Linear(3, 3), "two": nn.Linear(3, 3), "three": nn.Conv2d(2, 2, 1)}
    )


def settings(groups: dict[str, Any], **others: Any) -> OptimSettings:
    return OptimSettings(lr=0.5, groups=groups, **others)


def step(network: nn.Module, chosen: OptimSettings) -> dict[str, Tensor]:
    """How far each parameter goes with the gradient 1 everywhere: Adam's first step is lr."""
    before = {name: p.detach().clone() for name, p in network.named_parameters()}
    optimizer = build_optimizer(chosen, network.named_parameters(), fused=False)
    for parameter in network.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    return {name: (before[name] - p).detach() for name, p in network.named_parameters()}


def test_updates_scale_by_the_factor(network: nn.Module) -> None:
    way = step(network, settings({"two.*": {"lr": 0.1}, "*.bias": {"lr": 2}}, weight_decay=0.0))
    rates = {"one.weight": 0.5, "one.bias": 1.0, "two.weight": 0.05, "two.bias": 0.05}
    for name, rate in rates.items():  # the first glob counts: two.bias is of two.*
        torch.testing.assert_close(way[name], torch.full_like(way[name], rate), msg=name)


def test_what_is_frozen_is_nowhere(network: nn.Module) -> None:
    groups = {"two.*": {"lr": 0}, "one.bias": {"lr": 0.0}}
    freeze(groups, network.named_parameters())
    average = EMA(network.named_parameters(), half_life=1.0)
    assert sorted(average.shadows) == ["one.weight", "three.bias", "three.weight"]
    way = step(network, settings(groups))
    assert [name for name, value in way.items() if not value.any()] == [
        "one.bias",
        "two.weight",
        "two.bias",
    ]
    optimizer = build_optimizer(settings(groups), network.named_parameters(), fused=False)
    assert sum(len(group["params"]) for group in optimizer.param_groups) == 3


def test_a_group_decays_and_averages_as_it_says(network: nn.Module) -> None:
    """Norms and biases never decay, whatever the group says; group 0 has the run's rate."""
    groups = {"two.*": {"weight_decay": 0.3}, "three.*": {"lr": 0.1, "betas": [0.5, 0.9]}}
    optimizer = build_optimizer(
        settings(groups, weight_decay=0.07), network.named_parameters(), fused=False
    )
    found = [
        (group["lr"], group["weight_decay"], group["betas"], group["params"][0].ndim)
        for group in optimizer.param_groups
    ]
    usual = (0.9, 0.999)
    assert found == [
        (0.5, 0.07, usual, 2),
        (0.5, 0.0, usual, 1),
        (0.5, 0.3, usual, 2),
        (0.5, 0.0, usual, 1),
        (0.05, 0.07, (0.5, 0.9), 4),
        (0.05, 0.0, (0.5, 0.9), 1),
    ]


def test_a_glob_that_names_nothing_is_an_error_with_the_nearest(network: nn.Module) -> None:
    with pytest.raises(ValueError, match=r"'tow\.weight' names nothing .* nearest: two\.weight"):
        freeze({"tow.weight": {"lr": 0}}, network.named_parameters())
    network["one"].requires_grad_(False)
    groups = {"one.*": {"lr": 0.1}, "two.*": {"lr": 0.5}, "two.bias": {"lr": 0}}
    with pytest.raises(ValueError, match="names nothing") as caught:
        freeze(groups, network.named_parameters())
    text = str(caught.value)
    assert "'one.*' names nothing that is trained" in text
    assert "'two.bias' names nothing that 'two.*' has not taken" in text
    assert all(p.requires_grad for p in network["two"].parameters())  # nothing was done


def test_something_has_to_be_left(network: nn.Module) -> None:
    with pytest.raises(ValueError, match="nothing would be trained"):
        freeze({"*": {"lr": 0}}, network.named_parameters())


def test_every_problem_is_named() -> None:
    bad = {
        "a": {"lr": -1},
        "b": {"rate": 1},
        "c": 3,
        "d": {"betas": [0.9]},
        "e": {"weight_decay": True},
        "f": {},
        7: {"lr": 1},
    }
    text = "\n".join(problems_of(bad, "groups"))
    for part in (
        "groups[a].lr=-1; a number, 0 or more",
        "groups[b].rate is unknown; known here: lr, weight_decay, betas",
        "groups[c]=3",
        "groups[d].betas=[0.9]",
        "groups[e].weight_decay=True",
        "groups[f]={}",
        "groups[7]",
    ):
        assert part in text
    assert problems_of({"a.*": {"lr": 0, "weight_decay": 1, "betas": [0, 0.9]}}, "groups") == []
    assert "training.optim.groups[a].lr" in settings({"a": {"lr": "x"}}).problems()[0]


def test_the_summary_names_the_groups() -> None:
    groups = {"a.*": {"lr": 0}, "b.*": {"lr": 0.1, "weight_decay": 0, "betas": [0.5, 0.9]}}
    assert settings(groups).summary() == (
        "0.5; a.*: frozen; b.*: x 0.1, weight decay 0, betas 0.5 and 0.9"
    )


def test_a_diffusion_run_freezes_and_resumes_exactly(
    tiny_cfg: Callable[..., dict[str, Any]],
    tiny_run: Callable[..., Path],
    tmp_path: Path,
    document: Callable[[Path], dict[str, Any]],
    differences: Callable[..., list[str]],
) -> None:
    groups = "training.optim.groups={unet.down_blocks.*:{lr:0},*.attn2.*:{lr:0.1}}"
    whole = document(tiny_run(tmp_path / "whole", groups, "resume=auto"))
    for length in (16, 32):
        tiny_run(tmp_path / "parts", groups, "resume=auto", f"training.max_samples={length}")
    for key in ("state_dict", "ema", "optimizer_states", "lr_schedulers"):
        assert differences(whole[key], document(tmp_path / "parts")[key]) == [], key
    start = build_job(tiny_cfg(tmp_path / "new", groups)).module.state_dict()
    frozen = {name for name in start if name.startswith("unet.down_blocks.")}
    same = {n for n, value in whole["state_dict"].items() if torch.equal(value, start[n])}
    assert same == frozen
    assert whole["ema"]["shadows"].keys() == start.keys() - frozen
    assert len(whole["optimizer_states"][0]["state"]) == len(start) - len(frozen)
    plan = (tmp_path / "whole" / "plan.txt").read_text()
    assert "unet.down_blocks.*: frozen; *.attn2.*: x 0.1" in plan
