"""Does a model get a dtype that its device computes in?"""

from __future__ import annotations

import logging

import pytest
import torch

import ldm
from ldm.models import dtypes
from ldm.models.dtypes import bf16_problem, dtype_here


@pytest.fixture
def turing(monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU before bf16."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: False)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (7, 5))
    dtypes._warn.cache_clear()


@pytest.mark.usefixtures("turing")
@pytest.mark.parametrize(("device", "has"), [("cpu", True), ("cuda", False), ("cuda:1", False)])
def test_bf16_begins_at_a_compute_capability(device: str, has: bool) -> None:
    reason = bf16_problem(device)
    assert has == (reason is None)
    assert has or "compute capability 7.5 has no bf16" in str(reason)


@pytest.mark.usefixtures("turing")
def test_a_gpu_without_bf16_computes_in_fp32_and_says_so_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    assert dtype_here("auto", "cuda") == torch.float32  # nobody asked: nothing to say
    assert not caplog.records
    assert {dtype_here("bf16", "cuda:0") for _ in range(3)} == {torch.float32}
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert "dtype=bf16 does not run here: this GPU's compute capability 7.5" in record.getMessage()
    assert dtype_here("fp16", "cuda") == torch.float16
    assert dtype_here("bf16", "cpu") == torch.bfloat16


def test_a_gpu_with_bf16_takes_it_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: True)
    assert dtype_here("auto", "cuda") == dtype_here("bf16", "cuda:1") == torch.bfloat16
    assert dtype_here("auto", "cpu") == torch.float32


@pytest.mark.usefixtures("turing")
def test_the_other_processes_of_a_machine_are_silent(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert dtype_here("bf16", "cuda") == torch.float32
    assert not caplog.records


def test_a_gpu_that_is_not_there_is_another_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert bf16_problem("cuda") is None


def test_an_unknown_dtype_is_named() -> None:
    with pytest.raises(ValueError, match="dtype='half'; allowed: auto, fp32, bf16, fp16"):
        ldm.load("tiny", dtype="half")


def test_a_pipeline_is_in_the_dtype_that_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    assert next(ldm.load("tiny", dtype="bf16").unet.parameters()).dtype == torch.bfloat16
    monkeypatch.setattr(dtypes, "bf16_problem", lambda device: "as on a GPU without it")
    assert next(ldm.load("tiny", dtype="bf16").unet.parameters()).dtype == torch.float32
