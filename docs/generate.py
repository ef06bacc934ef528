"""Which keys does conf/ have, and what do they mean? Makes docs/config.md from their comments.

A leaf is written `key: value  # [unit] meaning`. Files of conf/experiment and conf/debug are
diffs: their keys are explained where they are defined.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import yaml

REPOSITORY = Path(__file__).parents[1]
CONF = REPOSITORY / "conf"
OUT = REPOSITORY / "docs" / "config.md"
DIFFS = ("experiment", "debug")
FIRST = (
    "train"  # the primary configuration that comes first and whose defaults are a group's default
)
_UNIT = re.compile(r"\[([^\]]*)\]\s*(.*)")

HEAD = """\
# Configuration

Made from the comments in `conf/` by `python scripts/config_docs.py`; edit those, not this file.

- `key=value` on the command line changes a key, `group=NAME` chooses a file of a group:
  `python scripts/train.py models/unet=mini training.batch_size=32`.
- `experiment=NAME` is a named set of changes; what the command line says comes after it and wins.
- `--cfg job` prints the whole configuration and does nothing else.
- Amounts are samples (pictures seen), not steps: `20000`, `1e6`, or epochs as `2ep`. `null` is none
  or never, `???` has to be given.
- Of a group the default file is listed in full, of the others what differs from it.
"""


@dataclass(frozen=True)
class Leaf:
    """One key with its value as written and what the comment beside it says."""

    key: str
    value: str
    unit: str
    meaning: str
    line: int


def document(conf: Path) -> str:
    """All of docs/config.md."""
    primaries = sorted(conf.glob("*.yaml"), key=lambda path: (path.stem != FIRST, path.stem))
    chosen = {path: default_choices(path) for path in primaries}
    defaults: dict[str, str] = {}
    for choices in chosen.values():
        for group, name in choices.items():
            defaults.setdefault(group, name)
    parts = [HEAD]
    for path in primaries:
        parts += [f"## {path.stem}.yaml", description(path), _choices(conf, chosen[path])]
        parts += [_table(leaves(path))]
    parts += ["# Groups"]
    named = [group for group in defaults if group in groups(conf)]
    for group in [*named, *(other for other in groups(conf) if other not in named)]:
        parts += [f"## {group}", *_group(conf / group, defaults.get(group))]
    for group in DIFFS:
        parts += [f"# {group}=NAME", _diffs(conf / group)]
    return "\n\n".join(part.strip("\n") for part in parts if part) + "\n"


def leaves(path: Path) -> list[Leaf]:
    """Every leaf of a file under its full key, in order."""
    text = path.read_text()
    root = yaml.compose(text, Loader=yaml.SafeLoader)
    return [] if root is None else list(_walk(root, prefix(path), text))


def prefix(path: Path) -> str:
    """Where a file's keys lie: `models.unet` for conf/models/unet/tiny.yaml, or its @package."""
    package = re.search(r"^# @package (\S+)", path.read_text(), re.MULTILINE)
    if package:
        return "" if package[1] == "_global_" else package[1]
    return ".".join(path.relative_to(_root(path)).parent.parts)


def description(path: Path) -> str:
    """The comment at the top of a file, else the one beside its `_target_`."""
    lines = []
    for line in path.read_text().splitlines():
        if not line.startswith("#"):
            break
        if "@package" not in line:
            lines.append(line.removeprefix("#").removeprefix(" "))
    beside = re.search(r"^_target_: \S+ +# (.*)", path.read_text(), re.MULTILINE)
    return "\n".join(lines) or (beside[1] if beside else "")


def groups(conf: Path) -> list[str]:
    """Every folder that holds files to choose from, `models/unet`, but for the diffs."""
    found = {str(path.parent.relative_to(conf)) for path in conf.glob("*/**/*.yaml")}
    return sorted(found - set(DIFFS))


def default_choices(path: Path) -> dict[str, str]:
    """The groups of a primary configuration, with the file each takes; `null` for none."""
    loaded = yaml.safe_load(path.read_text()) or {}
    entries = [entry for entry in loaded.get("defaults", []) if isinstance(entry, dict)]
    pairs = [(str(key), value) for entry in entries for key, value in entry.items()]
    return {
        key.removeprefix("override ").removeprefix("/").partition("@")[0]: str(value or "null")
        for key, value in pairs
    }


def problems(conf: Path) -> list[str]:
    """Leaves without a comment, and keys of diffs that no file defines."""
    found, known = [], {}
    for path in sorted(conf.rglob("*.yaml")):
        if path.relative_to(conf).parts[0] in DIFFS:
            continue
        for leaf in leaves(path):
            known[leaf.key] = leaf.value
            if not leaf.meaning:
                found.append(f"{_name(path)}:{leaf.line}: {leaf.key} has no comment")
    for group in DIFFS:
        for path in sorted((conf / group).glob("*.yaml")):
            for leaf in leaves(path):
                if leaf.key not in known and not _in_open_mapping(leaf.key, known):
                    found.append(f"{_name(path)}:{leaf.line}: no file defines {leaf.key}")
    return found


def _in_open_mapping(key: str, known: dict[str, str]) -> bool:
    """Whether the key lies in one like `filter: {}`, which takes any names."""
    parts = key.split(".")
    return any(known.get(".".join(parts[:count])) == "{}" for count in range(1, len(parts)))


def _walk(node: yaml.Node, path: str, text: str) -> Iterator[Leaf]:
    assert isinstance(node, yaml.MappingNode)
    for key_node, value in node.value:
        name = str(key_node.value)
        if name in ("_target_", "defaults"):
            continue
        key = f"{path}.{name}" if path else name
        if isinstance(value, yaml.MappingNode) and value.value:
            yield from _walk(value, key, text)
            continue
        start, end = value.start_mark.index, value.end_mark.index
        rest = text[end : text.find("\n", end) if "\n" in text[end:] else len(text)].strip()
        comment = rest.removeprefix("#").strip() if rest.startswith("#") else ""
        unit = _UNIT.fullmatch(comment)
        yield Leaf(
            key=key,
            value=text[start:end] or "null",
            unit=unit[1] if unit else "",
            meaning=unit[2] if unit else comment,
            line=key_node.start_mark.line + 1,
        )


def _choices(conf: Path, choices: dict[str, str]) -> str:
    if not choices:
        return ""
    rows = ["| group | default | files |", "|---|---|---|"]
    for group, name in choices.items():
        files = sorted(path.stem for path in (conf / group).glob("*.yaml"))
        rows.append(f"| `{group}` | `{name}` | {', '.join(f'`{file}`' for file in files)} |")
    return "\n".join(rows)


def _group(folder: Path, default: str | None) -> list[str]:
    """The default file in full; of others with the same keys only what differs from it."""
    files = sorted(folder.glob("*.yaml"), key=lambda path: (path.stem != default, path.stem))
    base = {leaf.key: (leaf.value, leaf.unit, leaf.meaning) for leaf in leaves(files[0])}
    parts = []
    for path in files:
        own = leaves(path)
        if path is not files[0] and base.keys() <= {leaf.key for leaf in own}:
            own = [x for x in own if base.get(x.key) != (x.value, x.unit, x.meaning)]
        told = [f"**`{path.stem}`**{' (default)' if path.stem == default else ''}"]
        told += [description(path).replace("\n", " ")]
        parts += [" · ".join(part for part in told if part), _table(own)]
    return parts


def _diffs(folder: Path) -> str:
    rows = ["| name | what | groups |", "|---|---|---|"]
    for path in sorted(folder.glob("*.yaml")):
        chosen = default_choices(path)
        takes = ", ".join(f"`{group}={name}`" for group, name in chosen.items())
        what = " ".join(line.strip() for line in description(path).splitlines())
        rows.append(f"| `{path.stem}` | {_cell(what)} | {takes} |")
    return "\n".join(rows)


def _table(own: list[Leaf]) -> str:
    if not own:
        return ""
    rows = ["| key | default | unit | meaning |", "|---|---|---|---|"]
    for leaf in own:
        value = " ".join(leaf.value.split())
        cells = (_code(leaf.key), _code(value), _cell(leaf.unit), _cell(leaf.meaning))
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)


def _cell(text: str) -> str:
    """Text that a table shows as it is: no bar ends the cell, no <name> is taken for HTML."""
    return text.replace("|", "\\|").replace("<", "\\<")


def _code(text: str) -> str:
    escaped = text.replace("|", "\\|")
    return f"`{escaped}`"


def _root(path: Path) -> Path:
    return next(parent for parent in path.parents if parent.name == "conf")


def _name(path: Path) -> str:
    return str(path.relative_to(_root(path).parent))


def main() -> None:
    OUT.write_text(document(CONF))


if __name__ == "__main__":
    main()
