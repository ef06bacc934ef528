"""Does a run that asks too much of its device train what it can, say so once, and write it down?"""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from torch import nn

from ldm.training import capabilities

TWO_STEPS = ("training.max_samples=16", "training.save_every=16")


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [
        record.getMessage()
        for record in caplog.records
        if record.name.startswith("ldm") and record.levelno >= logging.WARNING
    ]


def value(run_dir: Path, key: str) -> Any:
    """Of config.yaml: what has run."""
    node = yaml.safe_load((run_dir / "config.yaml").read_text())
    for name in key.split("."):
        node = node[name]
    return node


def without_compilers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    return "no C++ compiler found"


def without_the_package(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    return "pip install bitsandbytes"


def on_a_cpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    monkeypatch.setattr(capabilities, "cpu_has_bf16", lambda: True)
    return "GPU"


@pytest.mark.parametrize(
    ("change", "here", "key", "asked", "runs"),
    [
        ("training.compile=true", without_compilers, "training.compile", True, False),
        (
            "training/optim=adamw8bit",
            without_the_package,
            "training.optim.eight_bit",
            True,
            False,
        ),
        (
            "training.trainer.precision=transformer-engine",
            on_a_cpu,
            "training.trainer.precision",
            "transformer-engine",
            "bf16-mixed",
        ),
        (
            "training.trainer.precision=16-mixed",
            on_a_cpu,
            "training.trainer.precision",
            "16-mixed",
            "32-true",
        ),
    ],
)
def test_two_steps_with_what_is_there(
    tiny_run: Callable[..., Path],
    document: Callable[[Path], dict[str, Any]],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    tmp_path: Path,
    change: str,
    here: Callable[..., str],
    key: str,
    asked: Any,
    runs: Any,
) -> None:
    reason = here(monkeypatch, tmp_path)
    run_dir = tiny_run(tmp_path / "run", change, "training.optim.lr=0.002", *TWO_STEPS)
    (warning,) = warnings(caplog)
    assert f"{key}={str(asked).lower()} does not run here" in warning
    assert reason in warning
    assert f"The run takes {key}={str(runs).lower()}" in warning

    assert value(run_dir, key) == runs
    assert f"{key}={str(runs).lower()}" in (run_dir / "plan.txt").read_text()
    for card in (json.loads((run_dir / "card.json").read_text()), document(run_dir)["card"]):
        (kept,) = card["fallbacks"]
        assert (kept["key"], kept["asked"], kept["runs"]) == (key, asked, runs)
        assert reason in kept["reason"]
    assert document(run_dir)["samples_seen"] == 16


def test_a_run_that_gets_what_it_asks_for_says_nothing(
    finished_run: Path, document: Callable[[Path], dict[str, Any]]
) -> None:
    assert "fallbacks" not in json.loads((finished_run / "card.json").read_text())
    assert "fallbacks" not in document(finished_run)["card"]
    assert "instead" not in (finished_run / "plan.txt").read_text()


def test_the_run_goes_on_with_the_same_command_line(
    tiny_run: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """config.yaml has the settings that ran, and they are found again."""
    without_the_package(monkeypatch, tmp_path)
    line = ("training/optim=adamw8bit", "training.optim.lr=0.002", "resume=auto")
    for length in (16, 32):
        tiny_run(tmp_path / "run", *line, f"training.max_samples={length}")
    assert not value(tmp_path / "run", "training.optim.eight_bit")


def test_a_network_whose_compilation_fails_trains_all_the_same(
    tiny_run: Callable[..., Path],
    document: Callable[[Path], dict[str, Any]],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    tmp_path: Path,
) -> None:
    """The compiler works, but not on this network: known at the first step only."""
    from torch._dynamo.exc import TorchDynamoException

    def compile(network: nn.Module) -> None:
        def fails(*args: Any, **kwargs: Any) -> None:
            raise TorchDynamoException("LoweringException: no such kernel\nmuch more")

        network._compiled_call_impl = fails

    monkeypatch.setattr(capabilities, "compile_problem", lambda device: None)
    monkeypatch.setattr(nn.Module, "compile", compile)
    run_dir = tiny_run(tmp_path / "run", "training.compile=true", *TWO_STEPS)
    (warning,) = warnings(caplog)
    assert "the compiler: LoweringException: no such kernel. The run takes" in warning
    for card in (json.loads((run_dir / "card.json").read_text()), document(run_dir)["card"]):
        assert [kept["key"] for kept in card["fallbacks"]] == ["training.compile"]


def test_a_wrong_value_stays_an_error(
    tiny_run: Callable[..., Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    wrong = ("training.trainer.precision=fp8", "training.compile=perhaps")
    with pytest.raises(ValueError, match="the configuration has problems") as error:
        tiny_run(tmp_path / "run", *wrong)
    assert "transformer-engine" in str(error.value)  # among what is allowed
    assert "training.compile" in str(error.value)
    assert not (tmp_path / "run").exists()
    assert warnings(caplog) == []


@pytest.mark.slow
def test_two_processes_decide_alike_and_one_warns(
    script: Callable[..., Any], tmp_path: Path
) -> None:
    run_dir = tmp_path / "run"
    changes = ("training.trainer.devices=2", "training.trainer.precision=16-mixed", *TWO_STEPS)
    done = script("train", *changes, f"run_dir={run_dir}", cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stderr.count("does not run here") == 1
    assert value(run_dir, "training.trainer.precision") == "32-true"
