"""Does the collector rest while much is imported, and only then?"""

from __future__ import annotations

import gc
import subprocess
import sys
from types import ModuleType

import pytest

from ldm.app.startup import MANY, without_sweeps


@pytest.fixture
def frozen(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    calls: list[bool] = []
    monkeypatch.setattr(gc, "freeze", lambda: calls.append(True))
    return calls


def test_it_rests_inside_and_works_again_after(frozen: list[bool]) -> None:
    assert gc.isenabled()
    with without_sweeps():
        assert not gc.isenabled()
        with without_sweeps():
            pass
        assert not gc.isenabled()  # whoever began ends it
    assert gc.isenabled()
    with pytest.raises(ValueError, match="a problem"), without_sweeps():
        raise ValueError("a problem")
    assert gc.isenabled()


def test_only_imports_are_kept_from_it_for_good(
    frozen: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second run of the same process imports nothing, and must not keep the first one's model."""
    with without_sweeps():
        pass
    assert frozen == []
    with without_sweeps():
        for number in range(MANY + 1):
            monkeypatch.setitem(sys.modules, f"pretended{number}", ModuleType("pretended"))
    assert frozen == [True]


def test_the_scripts_begin_so() -> None:
    """`import ldm.app` brings torch: its objects are frozen, and the collector is on."""
    code = "import gc, ldm.app; print(gc.get_freeze_count() > 50_000, gc.isenabled())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True", "True"]
