"""Are the reasons for what a machine cannot do the true ones?"""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from ldm.training import capabilities, eight_bit


def test_the_reason_without_a_compiler(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    name = {"win32": "cl", "darwin": "clang++"}.get(sys.platform, "g++")
    reason = capabilities.compile_problem("cpu") or ""
    assert reason.startswith(f"no C++ compiler found: {name} is not on the PATH")
    monkeypatch.setenv("CXX", "nothing++")
    assert "$CXX is nothing++" in (capabilities.compile_problem("cpu") or "")


def test_the_compiler_is_really_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that is there may be broken: no headers, no linker, no triton."""

    def broken(function: Any) -> Any:
        raise RuntimeError(
            "backend='inductor' raised:\nCppCompileError: C++ compile error\n\nCommand:\ng++\n"
            "a.cpp:1:10: fatal error: Python.h: No such file\n compilation terminated"
        )

    monkeypatch.setattr(capabilities, "_no_cxx", lambda: None)
    monkeypatch.setattr(torch, "compile", broken)
    reason = capabilities.compile_problem("cpu")
    assert reason == (
        "torch.compile fails here: CppCompileError: C++ compile error: "
        "a.cpp:1:10: fatal error: Python.h: No such file"
    )
    monkeypatch.setattr(torch, "compile", lambda function: function)
    assert capabilities.compile_problem("cpu") is None


@pytest.mark.parametrize(
    ("found", "has"),
    [
        ({"architecture": "x86_64", "avx512_f": True, "avx512_bf16": True}, True),
        ({"architecture": "x86_64", "avx512_f": True, "avx512_bf16": False}, False),  # emulated
        ({"architecture": "aarch64"}, True),
    ],
)
def test_instructions_of_their_own(
    monkeypatch: pytest.MonkeyPatch, found: dict[str, Any], has: bool
) -> None:
    says = SimpleNamespace(_is_mkldnn_bf16_supported=lambda: True)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: True)
    monkeypatch.setattr(torch.ops, "mkldnn", says)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: found)
    assert capabilities.cpu_has_bf16() is has
    says._is_mkldnn_bf16_supported = lambda: False
    assert not capabilities.cpu_has_bf16()


def test_eight_bits_need_the_package_and_its_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, eight_bit.PACKAGE, None)
    assert "pip install bitsandbytes" in (capabilities.eight_bit_problem("cpu") or "")

    class Optimizer:
        fails = True

        def __init__(self, params: Any, **settings: Any) -> None:
            assert params[0].numel() >= 4096  # smaller ones are not quantised

        def step(self) -> None:
            if self.fails:
                raise RuntimeError("\nno kernel for cpu\nmore")

    monkeypatch.setattr(capabilities, "is_installed", lambda: True)
    monkeypatch.setattr(capabilities, "eight_bit_adamw", lambda: Optimizer)
    reason = capabilities.eight_bit_problem("cpu")
    assert reason == "bitsandbytes fails on cpu: no kernel for cpu"
    Optimizer.fails = False
    assert capabilities.eight_bit_problem("cpu") is None


def test_the_names_of_torch_that_we_rely_on_exist() -> None:
    assert isinstance(torch.ops.mkldnn._is_mkldnn_bf16_supported(), bool)
    assert "architecture" in torch.cpu.get_capabilities()
