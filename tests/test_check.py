"""Does the check find every problem, name the nearest valid name, and accept what is right?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest

from ldm.check import (
    field_problems,
    group_problems,
    missing_values,
    nearest,
    primary_problems,
    target_problems,
    type_problem,
    unknown_keys,
)

SCHEDULE = "ldm.diffusion.schedules.ScaledLinear"


def test_an_unknown_key_gets_the_nearest_known() -> None:
    (problem,) = unknown_keys({"batchsize": 1, "seed": 0}, ["seed", "batch_size"], "training")
    assert problem == (
        "training.batchsize is unknown (did you mean 'batch_size'?); known here: batch_size, seed"
    )
    (far,) = unknown_keys({"xyzzy": 1}, ["seed"], "")
    assert far == "xyzzy is unknown; known here: seed"
    assert unknown_keys({"seed": 0}, ["seed"], "") == []


def test_nearest_says_nothing_when_nothing_is_near() -> None:
    assert nearest("dddim", ["ddim", "plms"]) == " (did you mean 'ddim'?)"
    assert nearest(17, ["ddim"]) == ""


def test_a_group_that_became_a_word_says_what_to_write() -> None:
    """`models.unet=tiny` replaces the node by a string, which hydra does not mind."""
    cfg = {"models": {"unet": "tiny", "vae": {"x": 1}}, "data": "emoji"}
    dot, missing, top = group_problems(cfg, ["models.unet", "models.vae", "training.optim", "data"])
    assert dot == "models.unet='tiny' is not a configuration group; write models/unet=tiny"
    assert "training.optim is missing; choose one with training/optim=NAME" in missing
    assert "write data=emoji" in top


def test_every_node_is_compared_with_its_signature() -> None:
    node = {
        "a": [{"_target_": SCHEDULE, "beta_strt": 0.1}],
        "b": {"_target_": SCHEDULE, "num_train_steps": "many"},
        "c": {"_target_": "ldm.diffusion.schedules.ScaledLinearr"},
        "d": {"_target_": "os.system", "command": "true"},
        "e": {"deep": {"_target_": "ldm.training.optim.OptimSettings"}},
        "f": {"_target_": SCHEDULE, "_partial_": True},
        "g": 3,
    }
    problems = target_problems(node, "x")
    found = {problem.split()[0].partition("=")[0]: problem for problem in problems}
    assert set(found) == {
        "x.a[0].beta_strt",
        "x.b.num_train_steps",
        "x.c._target_",
        "x.d._target_",
        "x.e.deep.lr",
    }
    assert "did you mean 'beta_start'" in found["x.a[0].beta_strt"]
    assert "'many' is a str; allowed: int" in found["x.b.num_train_steps"]
    assert "cannot be found" in found["x.c._target_"]
    assert "only parts of ldm" in found["x.d._target_"]
    assert "is missing" in found["x.e.deep.lr"]


def test_what_is_not_ours_is_not_even_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "foreign_module.py").write_text("raise SystemExit('imported')\n")
    (problem,) = target_problems({"_target_": "foreign_module.x"}, "n")
    assert "only parts of ldm" in problem


@pytest.mark.parametrize(
    ("value", "hint"),
    [
        (1, int),
        (1, float),
        (1.5, float),
        ("x", str),
        (True, bool),
        (None, int | None),
        (3, int | None),
        ([1, 2], list[int]),
        ([1, 2], tuple[int, int]),
        ([1, 2, 3], tuple[int, ...]),
        (["a"], Sequence[str]),
        ("a", str | Sequence[str]),
        ({"a": 1}, Mapping[str, object]),
        ("a", Literal["a", "b"]),
        (object(), Any),
        ({"_target_": "anything"}, Path),
    ],
)
def test_what_fits_is_no_problem(value: object, hint: object) -> None:
    assert type_problem(value, hint, "k") == []


@pytest.mark.parametrize(
    ("value", "hint", "allowed"),
    [
        ("x", int, "int"),
        (1.5, int, "int"),
        (True, int, "int"),
        (1, bool, "bool"),
        (None, int, "int"),
        ("1e-3", float, "float"),
        (1, str, "str"),
        ("x", int | None, "int | null"),
        ([1], tuple[int, int], "tuple[int, int]"),
        (["a"], list[int], "list[int]"),
        ("ab", list[str], "list[str]"),
        ("c", Literal["a", "b"], "a, b"),
        ([1], Mapping[str, object], "Mapping"),
    ],
)
def test_what_does_not_fit_says_what_came_and_what_is_allowed(
    value: object, hint: object, allowed: str
) -> None:
    (problem,) = type_problem(value, hint, "some.key")
    assert problem.startswith(f"some.key={value!r} is a {type(value).__name__}; allowed: ")
    assert allowed in problem


@dataclass(frozen=True, kw_only=True)
class Settings:
    steps: int
    names: list[str] = field(default_factory=list)


def test_a_plain_node_is_compared_with_its_fields() -> None:
    assert (
        field_problems({"steps": 1, "names": ["a"], "more": {}}, Settings, "s", extra=["more"])
        == []
    )
    stpes, steps = field_problems({"stpes": 1, "steps": "x"}, Settings, "s")
    assert "s.stpes is unknown (did you mean 'steps'?)" in stpes
    assert "s.steps='x' is a str" in steps


def test_values_left_to_the_user_are_named() -> None:
    node = {"data": {"train": {"shards": "???"}}, "init_from": "???", "seed": 0}
    assert missing_values(node, "") == [
        "data.train.shards is required; give data.train.shards=...",
        "init_from is required; give init_from=...",
    ]


def test_a_flat_configuration_is_compared_with_its_file(tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_text("defaults: [a]\nprompt: null\nsteps: 3\n")
    assert primary_problems({"prompt": "a", "steps": 1}, tmp_path / "x.yaml") == []
    (problem,) = primary_problems({"promt": "a"}, tmp_path / "x.yaml")
    assert "did you mean 'prompt'" in problem
