"""Does the code keep to its layers? Imports, third parties, configs, sizes of files."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

REPOSITORY = Path(__file__).parents[1]
PACKAGE = REPOSITORY / "ldm"
CONF = REPOSITORY / "conf"
SOURCES = sorted(PACKAGE.rglob("*.py"))
MAX_LINES = 400

# what each part may import from ldm, beside itself
BASE = {"types", "rng", "images"}
PIPELINE = BASE | {"io", "models", "adapters", "sampling", "diffusion"}
TRAINING = PIPELINE | {"pipeline", "data"}
EVERYTHING = TRAINING | {"training", "evaluation", "gallery", "page", "cli", "check", "parts"}
LAYERS = {
    "__init__": {"pipeline"},
    "types": set(),
    "rng": set(),
    "images": set(),
    "diffusion": {"types"},
    "sampling": {"diffusion", "types", "rng"},
    "models": {"types"},
    "adapters": {"types"},
    "data": BASE,
    "io": {"types", "models", "adapters", "diffusion"},
    "pipeline": PIPELINE,
    "gallery": {"images"},
    "page": {"images"},
    "evaluation": BASE | {"data", "page"},
    "training": TRAINING,
    "cli": set(),
    "check": set(),
    "parts": EVERYTHING - {"evaluation", "gallery", "page"},
    "app": EVERYTHING,
}
# third parties beside torch
THIRD_PARTIES = {
    "images": {"PIL", "numpy"},
    "data": {
        *("webdataset", "fsspec", "PIL", "simplejpeg", "safetensors", "numpy"),
        *("rich", "pyarrow", "resvg_py"),
    },
    "io": {"safetensors", "huggingface_hub", "yaml"},
    "pipeline": {"PIL"},
    "gallery": {"PIL", "rich"},
    "page": {"PIL", "jinja2", "markupsafe"},
    "evaluation": {"transformers", "torchmetrics", "PIL", "numpy", "rich"},
    "training": {
        *("lightning", "wandb", "tensorboard", "matplotlib", "webdataset"),
        *("PIL", "numpy", "rich", "yaml"),
    },
    "cli": {"hydra", "omegaconf"},
    "check": {"hydra", "yaml"},
    "parts": {"hydra"},
    "app": {"hydra", "omegaconf", "rich", "yaml", "PIL", "numpy"},
}
# the text encoders' folders are read and written where transformers is
TEXT = {"transformers", "tokenizers", "safetensors", "huggingface_hub"}
# extras, and what is heavy: never imported before it is used
ON_USE = {"pyarrow", "resvg_py", "wandb", "tensorboard"}


@dataclass(frozen=True)
class Import:
    """One imported module, and whether it stands at the top level of its file."""

    source: str
    part: str
    module: str
    at_top: bool

    @property
    def top(self) -> str:
        return self.module.partition(".")[0]


def imports_of(path: Path) -> Iterator[Import]:
    """Every import of a file, also those inside functions."""
    source = str(path.relative_to(PACKAGE))
    part = source.partition("/")[0].removesuffix(".py")
    tree = ast.parse(path.read_text())
    top = {id(node) for node in tree.body}
    for node in ast.walk(tree):
        modules: list[str] = []
        if isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{source}: write `from ldm...`, not a relative import"
            whole = node.module or ""
            modules = [f"ldm.{a.name}" for a in node.names] if whole == "ldm" else [whole]
        for module in modules:
            yield Import(source, part, module, id(node) in top)


IMPORTS = [found for path in SOURCES for found in imports_of(path)]


def test_the_walk_sees_the_imports() -> None:
    """Known facts, so that a walk that finds nothing cannot pass."""
    seen = {(i.source, i.module) for i in IMPORTS}
    assert ("training/base.py", "lightning") in seen
    assert ("app/fit.py", "ldm.training.trainer") in seen  # inside a function
    assert ("app/job.py", "ldm.rng") in seen  # from ldm import rng
    assert {i.part for i in IMPORTS} <= set(LAYERS)


@pytest.mark.parametrize("part", LAYERS)
def test_imports_from_ldm_keep_to_the_layers(part: str) -> None:
    wrong = [
        f"{i.source} imports {i.module}"
        for i in IMPORTS
        if i.part == part and i.top == "ldm" and i.module.split(".")[1] not in LAYERS[part] | {part}
    ]
    assert not wrong


@pytest.mark.parametrize("part", LAYERS)
def test_third_parties_keep_to_the_layers(part: str) -> None:
    allowed = {"torch", "ldm", *sys.stdlib_module_names, *THIRD_PARTIES.get(part, set())}
    wrong = [
        f"{i.source} imports {i.module}"
        for i in IMPORTS
        if i.part == part
        and i.top not in allowed
        and not (i.source.startswith("models/text/") and i.top in TEXT)
    ]
    assert not wrong


def test_extras_are_imported_on_use() -> None:
    assert not [f"{i.source} imports {i.module}" for i in IMPORTS if i.at_top and i.top in ON_USE]


def test_import_ldm_is_light() -> None:
    """Neither `import ldm` nor sampling from Python needs lightning or hydra."""
    code = (
        "import sys, ldm\n"
        "def loaded(*names): return sorted(n for n in names if n in sys.modules)\n"
        "print(loaded('lightning', 'hydra', 'omegaconf', 'torch', 'transformers', 'webdataset'))\n"
        "assert ldm.load and ldm.Pipeline\n"
        "print(loaded('lightning', 'hydra', 'omegaconf', 'webdataset', 'wandb'))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split("\n")[:2] == ["[]", "[]"]


# -- configs and code -----------------------------------------------------------------------------

GROUP_FILES = sorted(
    path
    for path in CONF.glob("*/**/*.yaml")
    if path.relative_to(CONF).parts[0] not in ("experiment", "debug")
)


def package_of(group: Path) -> str:
    """conf/models/unet -> ldm.models.unet; conf/training/logger -> ldm.training.loggers."""
    place = PACKAGE / group
    for candidate in (place, place.with_suffix(".py"), place.with_name(f"{place.name}s.py")):
        if candidate.exists():
            return ".".join(("ldm", *candidate.relative_to(PACKAGE).with_suffix("").parts))
    raise AssertionError(f"conf/{group} has no ldm/{group} beside it")


def targets(node: object) -> Iterator[str]:
    """All `_target_`s below a node."""
    if isinstance(node, dict):
        if "_target_" in node:
            yield str(node["_target_"])
        for value in node.values():
            yield from targets(value)
    elif isinstance(node, list):
        for value in node:
            yield from targets(value)


@pytest.mark.parametrize("path", GROUP_FILES, ids=lambda p: str(p.relative_to(CONF)))
def test_a_group_builds_what_its_package_holds(path: Path) -> None:
    package = package_of(path.relative_to(CONF).parent)
    found = list(targets(yaml.safe_load(path.read_text())))
    assert all(target.startswith(f"{package}.") for target in found)
    assert found or path.relative_to(CONF).parts[0] == "sampling"  # plain values, no parts


def test_every_group_is_in_the_check() -> None:
    """A group that train.yaml chooses and the check does not know would go in unchecked."""
    from ldm.parts import GROUPS

    defaults = yaml.safe_load((CONF / "train.yaml").read_text())["defaults"]
    chosen = [key.replace("/", ".") for entry in defaults if entry != "_self_" for key in entry]
    assert sorted(set(chosen) - {"experiment", "debug"}) == sorted(GROUPS)


# -- files ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_a_file_is_short_and_says_which_question_it_answers(path: Path) -> None:
    text = path.read_text()
    assert len(text.splitlines()) <= MAX_LINES
    if path.name != "__init__.py":
        assert text.startswith('"""'), "the first line is a docstring"
        assert len((ast.get_docstring(ast.parse(text)) or "").split("\n")[0].split()) >= 4
