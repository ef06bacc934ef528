"""Is a configuration right? Every problem at once, with the nearest valid name, before any work."""

from __future__ import annotations

import inspect
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Union, get_args, get_origin

import yaml
from hydra.utils import get_object

Node = Mapping[str, Any]
_META = frozenset({"_target_", "_partial_", "_convert_", "_recursive_"})


def unknown_keys(node: Node, allowed: Sequence[str], path: str) -> list[str]:
    """A problem for each key that is not allowed, naming the nearest that is."""
    return [
        f"{_join(path, key)} is unknown{nearest(key, allowed)}; "
        f"known here: {', '.join(sorted(allowed))}"
        for key in node
        if key not in allowed
    ]


def primary_problems(cfg: Node, primary: Path) -> list[str]:
    """Compares the keys of a flat configuration with those of its primary file."""
    known = yaml.safe_load(primary.read_text(encoding="utf-8"))
    return unknown_keys(cfg, [key for key in known if key != "defaults"], "")


def missing_values(node: Any, path: str) -> list[str]:
    """A problem for each value that the configuration leaves to the user (`???`)."""
    if isinstance(node, Mapping):
        return [p for key, value in node.items() for p in missing_values(value, _join(path, key))]
    return [f"{path} is required; give {path}=..."] if node == "???" else []


def nearest(name: object, known: Sequence[str]) -> str:
    """`, did you mean 'x'?` or nothing."""
    close = get_close_matches(str(name), list(known), n=1, cutoff=0.5)
    return f" (did you mean {close[0]!r}?)" if close else ""


def group_problems(cfg: Node, groups: Sequence[str]) -> list[str]:
    """Groups that are not nodes: `models.unet=tiny` replaces a node by a word, unasked."""
    found = []
    for group in groups:
        node: Any = cfg
        for part in group.split("."):
            node = node.get(part) if isinstance(node, Mapping) else None
        if not isinstance(node, Mapping):
            slashed = group.replace(".", "/")
            found.append(
                f"{group}={node!r} is not a configuration group; write {slashed}={node}"
                if isinstance(node, str)
                else f"{group} is missing; choose one with {slashed}=NAME"
            )
    return found


def target_problems(node: Any, path: str) -> list[str]:
    """Compares every node below that has a `_target_` with the signature it will be called with."""
    if isinstance(node, list):
        return [p for i, item in enumerate(node) for p in target_problems(item, f"{path}[{i}]")]
    if not isinstance(node, Mapping):
        return []
    found = []
    if "_target_" in node:
        found += _signature_problems(node, path)
    for key, value in node.items():
        found += target_problems(value, _join(path, key))
    return found


def field_problems(node: Node, cls: type, path: str, *, extra: Sequence[str] = ()) -> list[str]:
    """Compares a plain node with the fields of a dataclass; `extra` keys are checked elsewhere."""
    hints = typing.get_type_hints(cls)
    names = [f.name for f in fields(cls)]
    found = unknown_keys(node, [*names, *extra], path)
    for name in names:
        if name in node:
            found += type_problem(node[name], hints[name], _join(path, name))
    return found


def _signature_problems(node: Node, path: str) -> list[str]:
    target = str(node["_target_"])
    if not target.startswith("ldm."):
        return [f"{path}._target_={target!r}; only parts of ldm are built from a configuration"]
    try:
        built = get_object(target)
    except Exception as error:
        return [f"{path}._target_={target!r} cannot be found: {error}"]
    signature = inspect.signature(built)
    hints = _hints(built)
    names = [n for n, p in signature.parameters.items() if p.kind is not p.VAR_KEYWORD]
    given = {key: value for key, value in node.items() if key not in _META}
    found = unknown_keys(given, names, path)
    for name, parameter in signature.parameters.items():
        if name in given:
            found += type_problem(given[name], hints.get(name, Any), _join(path, name))
        elif parameter.default is parameter.empty and not node.get("_partial_"):
            found.append(f"{_join(path, name)} is missing; {target} needs it")
    return found


def _hints(built: Callable[..., Any]) -> dict[str, Any]:
    source = built.__init__ if inspect.isclass(built) else built
    try:
        return typing.get_type_hints(source)
    except (NameError, TypeError):
        return {}


def type_problem(value: Any, hint: Any, path: str) -> list[str]:
    """One problem when a value cannot be of the annotated type; nodes are checked on their own."""
    if isinstance(value, Mapping) and "_target_" in value:
        return []
    if _fits(value, hint):
        return []
    return [f"{path}={value!r} is a {type(value).__name__}; allowed: {_readable(hint)}"]


def _fits(value: Any, hint: Any) -> bool:
    origin = get_origin(hint)
    if hint is Any or isinstance(hint, typing.TypeVar):
        return True
    if origin in (Union, types.UnionType):
        return any(_fits(value, part) for part in get_args(hint))
    if hint is None or hint is type(None):
        return value is None
    if origin is typing.Literal:
        return value in get_args(hint)
    if isinstance(value, bool):
        return hint is bool
    if hint is float:
        return isinstance(value, (int, float))
    if origin in (tuple, list, Sequence) or hint in (tuple, list):
        return _fits_sequence(value, origin, get_args(hint))
    if origin in (dict, Mapping) or hint in (dict, Mapping):
        return isinstance(value, Mapping)
    if isinstance(hint, type) and hint in (int, str, bool):
        return isinstance(value, hint)
    return not isinstance(value, (str, int, float, list)) or value is None  # an object: from a node


def _fits_sequence(value: Any, origin: Any, parts: tuple[Any, ...]) -> bool:
    if not isinstance(value, (list, tuple)):
        return False
    if not parts:
        return True
    if origin is tuple and parts[-1] is not Ellipsis:
        return len(value) == len(parts) and all(map(_fits, value, parts))
    return all(_fits(item, parts[0]) for item in value)


def _readable(hint: Any) -> str:
    if get_origin(hint) is typing.Literal:
        return ", ".join(map(str, get_args(hint)))
    text = str(hint) if get_origin(hint) else getattr(hint, "__name__", str(hint))
    return text.replace("NoneType", "null").replace("None", "null").replace("typing.", "")


def _join(path: str, key: object) -> str:
    return f"{path}.{key}" if path else str(key)
