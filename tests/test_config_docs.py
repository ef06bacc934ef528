"""Does docs/config.md say what conf/ says, and does every key there say what it means?"""

from __future__ import annotations

import importlib.util
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import hydra
import pytest
from omegaconf import OmegaConf

REPOSITORY = Path(__file__).parents[1]
CONF = REPOSITORY / "conf"


@pytest.fixture(scope="module")
def generate() -> Iterator[ModuleType]:
    """docs/generate.py, which belongs to no package."""
    spec = importlib.util.spec_from_file_location("generate", REPOSITORY / "docs" / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["generate"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    yield module
    del sys.modules["generate"]


def names(node: Any, path: str = "") -> set[str]:
    """The full keys of all leaves of a composed configuration."""
    if not isinstance(node, dict) or not node:
        return {path}
    return {
        found
        for key, value in node.items()
        if key != "_target_"
        for found in names(value, f"{path}.{key}" if path else key)
    }


def test_the_page_is_current(generate: ModuleType) -> None:
    current = generate.document(CONF)
    assert generate.OUT.read_text() == current, "stale: run python scripts/config_docs.py"


def test_every_key_has_a_comment_and_every_diff_changes_a_known_key(generate: ModuleType) -> None:
    assert generate.problems(CONF) == []


def test_the_page_has_every_key_that_training_has(generate: ModuleType) -> None:
    """What Hydra composes and what the comments were read from are the same keys."""
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        composed = OmegaConf.to_container(hydra.compose("train"), resolve=False)
    chosen = generate.default_choices(CONF / "train.yaml")
    files = [CONF / group / f"{name}.yaml" for group, name in chosen.items() if name != "null"]
    read = {leaf.key for path in (CONF / "train.yaml", *files) for leaf in generate.leaves(path)}
    assert read == names(composed)


def test_a_changed_comment_and_a_new_file_make_the_page_stale(
    generate: ModuleType, tmp_path: Path
) -> None:
    copy = Path(shutil.copytree(CONF, tmp_path / "conf"))
    assert generate.document(copy) == generate.document(CONF)
    ema = copy / "training" / "ema" / "default.yaml"
    ema.write_text(ema.read_text().replace("counts half", "counts a half"))
    changed = generate.document(copy)
    assert changed != generate.document(CONF)
    shutil.copy(ema, ema.with_name("slow.yaml"))
    assert "**`slow`**" in generate.document(copy)
    assert generate.document(copy) != changed


def test_what_a_leaf_is(generate: ModuleType, tmp_path: Path) -> None:
    path = tmp_path / "conf" / "models" / "unet" / "odd.yaml"
    path.parent.mkdir(parents=True)
    path.write_text(
        "# first line\n# second line\n_target_: a.B  # not a leaf\n"
        'text: "a # b"  # [text|null] says <this>\n'
        "nested:\n  list: [1,\n    2]  # no unit\n"
        '"null": ~\nopen: {}  # [names] any'
    )
    found = [(x.key, x.value, x.unit, x.meaning, x.line) for x in generate.leaves(path)]
    assert found == [
        ("models.unet.text", '"a # b"', "text|null", "says <this>", 4),
        ("models.unet.nested.list", "[1,\n    2]", "", "no unit", 6),
        ("models.unet.null", "~", "", "", 8),
        ("models.unet.open", "{}", "names", "any", 9),
    ]
    assert generate.description(path) == "first line\nsecond line"
    page = generate.document(tmp_path / "conf")
    assert '| `models.unet.text` | `"a # b"` | text\\|null | says \\<this> |' in page
    assert generate.problems(tmp_path / "conf") == [
        "conf/models/unet/odd.yaml:8: models.unet.null has no comment"
    ]
    diff = tmp_path / "conf" / "experiment" / "x.yaml"
    diff.parent.mkdir()
    diff.write_text(
        "# @package _global_\nmodels:\n  unet:\n    txt: 1\n    open:\n      whatever: 2\n"
    )
    assert generate.problems(tmp_path / "conf")[1:] == [
        "conf/experiment/x.yaml:4: no file defines models.unet.txt"
    ]


PAGES = ("coming-from.md", "scaling-up.md")
OURS = ("data", "models", "diffusion", "sampling", "training")
ASSIGNMENT = re.compile(r"(?<![\w./-])([a-z_]+(?:[./][a-z_0-9]+)*)=([\w./-]*)")
NAME = re.compile(r"`([a-z_]+(?:\.[a-z_0-9]+)+)`")


def said(page: str) -> Iterator[tuple[str, str]]:
    """(key, value) of all that a page tells to type; the left column of a table is others'."""
    for line in (REPOSITORY / "docs" / page).read_text().splitlines():
        text = line.partition(" | ")[2] if line.startswith("|") else line
        yield from ASSIGNMENT.findall(text)
        yield from ((name, "") for name in NAME.findall(text))


@pytest.mark.parametrize("page", PAGES)
def test_keys_and_files_named_in_the_pages_exist(generate: ModuleType, page: str) -> None:
    chosen = [*generate.groups(CONF), *generate.DIFFS]
    files = [path for path in CONF.rglob("*.yaml") if path.parent.name not in generate.DIFFS]
    known = {leaf.key for path in files for leaf in generate.leaves(path)}
    wrong = []
    for key, value in said(page):
        if key in chosen and not (CONF / key / f"{value}.yaml").exists():
            wrong.append(f"{key}={value}")
        if key not in chosen and key.split(".")[0] in OURS and key not in known:
            wrong.append(key)
    assert wrong == []
    assert len(set(said(page))) > 25  # the walk sees them
