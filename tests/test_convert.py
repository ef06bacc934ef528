"""Does `python scripts/convert.py` show what it did, and refuse what it cannot do?"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ldm import app
from ldm.cli import ConfigError
from ldm.io.convert import Row

Config = dict[str, Any]


def test_the_command_prints_the_table(
    script: Callable[..., Any], finished_run: Path, tmp_path: Path
) -> None:
    """Paths are free text: commas, quotes and equals signs are part of a name."""
    output = tmp_path / "it's a=b, c.safetensors"
    line = (f"input={finished_run}", f"output={output}", "format=single")
    done = script("convert", *line)
    assert done.returncode == 0, done.stderr
    assert output.is_file()
    for word in ("unet", "vae", "text", "matched", "missing", "unexpected", "verified"):
        assert word in done.stdout
    assert "loaded" in done.stderr  # how many tensors of how many
    again = script("convert", *line)
    assert again.returncode == 1
    assert "exists; overwrite=true" in again.stderr
    assert "Traceback" not in again.stderr


def test_what_is_not_equal_ends_with_1(
    composed: Callable[..., Config],
    finished_run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    bad = Row("unet", 3, ("a",), (), (), None)
    monkeypatch.setattr("ldm.io.convert.verify", lambda *_: [bad])
    line = (f"input={finished_run}", f"output={tmp_path / 'o'}", "format=native")
    assert app.convert(composed(*line, config="convert")) == 1
    assert "NOT equal" in capsys.readouterr().out


def test_verify_can_be_left_out(
    composed: Callable[..., Config],
    finished_run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("ldm.io.convert.verify", lambda *_: pytest.fail("it verified"))
    line = (f"input={finished_run}", f"output={tmp_path / 'o'}", "format=native", "verify=false")
    assert app.convert(composed(*line, config="convert")) == 0
    assert (tmp_path / "o" / "README.md").is_file()


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (["output=x", "format=native"], ["input"]),
        (["input=tiny", "output=x", "format=navite"], ["navite", "single, diffusers, native"]),
        (["input=tiny", "output=x", "format=native", "verify=7"], ["verify"]),
        (["input=tiny", "output=x", "format=native", "size=big"], ["size"]),
        (["input=tiny", "output=x", "format=native", "weights=best"], ["ema, raw"]),
        (["input=tiny", "output=x", "format=native", "prediction=v"], ["has a card"]),
        (["input=/nowhere", "output=x", "format=native"], ["/nowhere does not exist"]),
        (["input=tiny", "output=x", "format=native", "dtyp=fp16"], ["dtyp", "dtype"]),
    ],
)
def test_bad_options(
    composed: Callable[..., Config],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    line: list[str],
    words: list[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError) as error:
        app.convert(composed(*line, config="convert"))
    assert all(word in str(error.value) for word in words), str(error.value)
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("option", ["scale=0.3", "schedule=linear", "size=256", "tokenizer=/x"])
def test_hints_reach_the_file(composed: Callable[..., Config], tmp_path: Path, option: str) -> None:
    """Each one is refused by a model of ours, which says all that itself."""
    line = ("input=tiny", f"output={tmp_path / 'o'}", "format=native", option)
    with pytest.raises(ConfigError, match="has a card"):
        app.convert(composed(*line, config="convert"))
