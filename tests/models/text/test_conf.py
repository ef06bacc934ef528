"""The files of conf/models/text name every argument of what they build, and explain each."""

from __future__ import annotations

import importlib
import inspect
from pathlib import Path
from typing import Any

import pytest
import yaml

FOLDER = Path(__file__).parents[3] / "conf" / "models" / "text"
FILES = sorted(FOLDER.glob("*.yaml"))


def nodes(node: dict[str, Any]) -> list[dict[str, Any]]:
    return [node] + [n for v in node.values() if isinstance(v, dict) for n in nodes(v)]


def target(node: dict[str, Any]) -> Any:
    module, name = node["_target_"].rsplit(".", 1)
    return getattr(importlib.import_module(module), name)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_argument_is_there_and_no_other(path):
    for node in nodes(yaml.safe_load(path.read_text())):
        assert set(node) - {"_target_"} == set(inspect.signature(target(node)).parameters)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_line_says_what_it_means(path):
    for line in path.read_text().splitlines():
        if not line.lstrip().startswith(("#", "_target_")) and not line.endswith(":"):
            assert "# [" in line, line


def test_there_is_a_file_for_each_encoder():
    assert {path.stem for path in FILES} == {
        "auto",
        "bert",
        "clip_l",
        "none",
        "openclip_h",
        "tiny",
        "tiny_clip",
    }
