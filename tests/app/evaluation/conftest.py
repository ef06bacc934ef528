"""Evaluations of a tiny run on its eleven validation shapes, in this process."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ldm import app

Config = dict[str, Any]
SMALL = (
    "samples=6",
    "evaluation.loss_images=4",
    "batch_size=4",
    "strips=1",
    "device=cpu",
)


@pytest.fixture(scope="session")
def small_line(
    finished_run: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., list[str]]:
    """small_line("key=value", …): the command line of a small evaluation of the finished run."""
    cache = tmp_path_factory.mktemp("cache")

    def line(*changes: str) -> list[str]:
        given = {change.partition("=")[0] for change in changes}
        own = (*SMALL, f"cache_dir={cache}", f"checkpoint={finished_run}")
        return [a for a in own if a.partition("=")[0] not in given] + list(changes)

    return line


@pytest.fixture(scope="session")
def evaluated(
    composed: Callable[..., Config], small_line: Callable[..., list[str]]
) -> Callable[..., Config]:
    """evaluated(out, "key=value", …): metrics.json of a small evaluation, without the page."""

    def run(out: Path, *changes: str) -> Config:
        cfg = composed(*small_line(*changes, f"out={out}"), config="evaluate")
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("ldm.evaluation.page.write_report", lambda folder: folder / "index.html")
            assert app.evaluate(cfg) == 0
        found: Config = json.loads((out / "metrics.json").read_text(encoding="utf-8"))
        return found

    return run
