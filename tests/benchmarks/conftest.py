"""How do tests import the scripts of benchmarks/?"""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(autouse=True)
def on_the_path(monkeypatch: pytest.MonkeyPatch) -> None:
    """As when a script of that folder is started."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))


@pytest.fixture
def script_module(name: str) -> ModuleType:
    """The script of that name."""
    return importlib.import_module(name)
