"""Does what a device lacks fall back to what it has, with the reason?"""

from __future__ import annotations

from typing import Any

import pytest

from ldm.models import dtypes
from ldm.training import capabilities
from ldm.training.support import Asked, agreed, cpu_notes, fallbacks

NOTHING: dict[str, Any] = {
    "device": "cpu",
    "precision": "32-true",
    "compile": False,
    "channels_last": False,
    "eight_bit": False,
    "dtypes": {},
}


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """A machine that can do everything; tests take something away. Nothing is really tried."""
    monkeypatch.setattr(capabilities, "cpu_has_bf16", lambda: True)
    monkeypatch.setattr(dtypes, "bf16_problem", lambda device: None)
    for name in ("compile_problem", "eight_bit_problem"):
        monkeypatch.setattr(capabilities, name, lambda device: None)
    return monkeypatch


def found(**asked: Any) -> dict[str, tuple[Any, str]]:
    """What runs instead, and why, by key."""
    return {f.key: (f.runs, f.reason) for f in fallbacks(Asked(**NOTHING | asked))}


def test_a_machine_that_can_runs_what_is_asked(machine: pytest.MonkeyPatch) -> None:
    everything = {"compile": True, "channels_last": True, "eight_bit": True}
    dtypes = {"models.vae_dtype": "bf16"}
    for precision in ("32-true", "bf16-mixed", "16-mixed"):
        assert found(device="cuda", precision=precision, dtypes=dtypes, **everything) == {}


def test_nothing_is_tried_that_is_not_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    def tried(device: str) -> str:
        raise AssertionError

    monkeypatch.setattr(capabilities, "compile_problem", tried)
    monkeypatch.setattr(capabilities, "eight_bit_problem", tried)
    assert found() == {}


@pytest.mark.parametrize(
    ("device", "asked", "fp16", "lacking", "runs"),
    [
        ("cpu", "16-mixed", True, "", "32-true"),
        ("cpu", "transformer-engine", True, "", "bf16-mixed"),
        ("cpu", "transformer-engine", True, "cpu_has_bf16", "32-true"),  # emulated: slower
        ("cpu", "bf16-mixed", True, "cpu_has_bf16", None),  # slow, but it is what was asked
        ("cuda", "transformer-engine", True, "", "bf16-mixed"),
        ("cuda", "transformer-engine", True, "bf16", "16-mixed"),
        ("cuda", "bf16-mixed", True, "bf16", "16-mixed"),
        ("cuda", "bf16-mixed", False, "bf16", "32-true"),  # a loss that float16 would break
        ("cuda", "16-mixed", True, "bf16", None),
    ],
)
def test_precision_falls_to_the_next_that_runs(
    machine: pytest.MonkeyPatch, device: str, asked: str, fp16: bool, lacking: str, runs: str | None
) -> None:
    if lacking == "bf16":
        machine.setattr(dtypes, "bf16_problem", lambda device: "capability 7.5 has no bf16")
    if lacking == "cpu_has_bf16":
        machine.setattr(capabilities, "cpu_has_bf16", lambda: False)
    got = found(device=device, precision=asked, fp16=fp16)
    assert {key: value for key, (value, _) in got.items()} == (
        {} if runs is None else {"training.trainer.precision": runs}
    )
    if lacking == "bf16" and runs is not None:
        assert "7.5" in got["training.trainer.precision"][1]


def test_frozen_parts_take_fp32_where_there_is_no_bf16(machine: pytest.MonkeyPatch) -> None:
    machine.setattr(dtypes, "bf16_problem", lambda device: "no bf16")
    asked = {"models.vae_dtype": "bf16", "models.text.dtype": "fp16"}
    assert found(device="cuda", dtypes=asked) == {"models.vae_dtype": ("fp32", "no bf16")}


@pytest.mark.parametrize(
    ("option", "probe", "key"),
    [
        ("compile", "compile_problem", "training.compile"),
        ("eight_bit", "eight_bit_problem", "training.optim.eight_bit"),
    ],
)
def test_an_option_is_left_out_for_the_reason_found(
    machine: pytest.MonkeyPatch, option: str, probe: str, key: str
) -> None:
    machine.setattr(capabilities, probe, lambda device: f"{device} lacks it")
    (fallback,) = fallbacks(Asked(**NOTHING | {option: True}))
    assert str(fallback) == f"{key}=true does not run here: cpu lacks it. The run takes {key}=false"


def test_options_of_the_diffusion_network_are_of_no_other(machine: pytest.MonkeyPatch) -> None:
    got = found(compile=True, channels_last=True, network=False)
    assert got.keys() == {"training.compile", "training.channels_last"}
    assert all("task=diffusion" in reason for _, reason in got.values())


def test_a_cpu_says_what_bf16_would_bring(machine: pytest.MonkeyPatch) -> None:
    note, warning = cpu_notes("cpu", "32-true")
    assert "1.4 times as fast" in (note or "")
    assert warning is None
    assert cpu_notes("cpu", "bf16-mixed") == cpu_notes("cuda", "32-true") == (None, None)
    machine.setattr(capabilities, "cpu_has_bf16", lambda: False)
    note, warning = cpu_notes("cpu", "bf16-mixed")
    assert note is None
    assert "emulated" in (warning or "")
    assert cpu_notes("cpu", "32-true") == (None, None)


# -- several processes ----------------------------------------------------------------------------

NO_COMPILER = {"key": "training.compile", "asked": True, "runs": False, "reason": "no g++"}
NO_BF16 = {
    "key": "training.trainer.precision",
    "asked": "bf16-mixed",
    "runs": "16-mixed",
    "reason": "no bf16",
}


def test_what_one_process_cannot_compile_none_does() -> None:
    assert agreed([[], [NO_COMPILER], []]) == [NO_COMPILER]
    assert agreed([[NO_BF16], [NO_BF16, NO_COMPILER]]) == [NO_BF16, NO_COMPILER]


def test_the_reasons_may_differ() -> None:
    other = NO_BF16 | {"reason": "another GPU without"}
    assert agreed([[NO_BF16], [other]]) == [NO_BF16]


@pytest.mark.parametrize("other", [[], [NO_BF16 | {"runs": "32-true"}]])
def test_what_is_too_late_to_change_ends_the_run_with_what_to_do(other: list[Any]) -> None:
    with pytest.raises(ValueError, match="precision=16-mixed for all, or machines that are alike"):
        agreed([other, [NO_BF16]]) if not other else agreed([[NO_BF16], other])
