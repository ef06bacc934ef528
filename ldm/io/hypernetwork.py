"""How is a hypernetwork kept in the file that the web UIs read?

A pickled dict of plain values (torch.save): {context width: (weights before to_k, before to_v)},
and beside them its structure and where it comes from. Only `weights_only=True` reads it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ldm.adapters.hypernetwork import ContextTransform, Hypernetwork, HypernetworkConfig

# the first files' names, which knew one hidden layer and nothing between
OLD_NAMES = {"linear1.": "linear.0.", "linear2.": "linear.1."}
OLD_DROPOUT = 0.3  # what `use_dropout` meant before `dropout_structure`
ABOUT = ("name", "step", "sd_checkpoint", "sd_checkpoint_name", "optional_info")


@dataclass(frozen=True)
class HypernetworkFile:
    """What a file holds. about: of ABOUT what is there: name, steps trained, the model's hash."""

    path: Path
    network: Hypernetwork
    about: dict[str, str | int]


def read_hypernetwork(path: str | Path) -> HypernetworkFile:
    """A web UI's hypernetwork, in fp32.

    Raises FileNotFoundError, or ValueError listing what is wrong with the file.
    """
    path = Path(path)
    content = _open(path)
    pairs = {width: pair for width, pair in content.items() if type(width) is int}
    if not pairs:
        raise ValueError(
            f"{path} is no hypernetwork: it has no weights by context width; its entries are "
            f"{', '.join(ascii(key) for key in list(content)[:8])}"
        )
    try:
        config = _config(content)
        with torch.device("meta"):  # nothing is drawn
            network = Hypernetwork(sorted(pairs), config)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path}: {error}") from error
    problems: list[str] = []
    for width, pair in pairs.items():
        if not (isinstance(pair, (tuple, list)) and len(pair) == 2):
            problems.append(f"{width} has no pair of weights, before to_k and before to_v")
            continue
        for name, transform, state in zip("kv", network.pair(width), pair, strict=True):
            problems += [f"{width} {name} {told}" for told in _take(transform, state)]
    if problems:
        raise ValueError(
            f"{path} does not hold what its structure says: " + "; ".join(problems[:8])
        )
    about = {k: content[k] for k in ABOUT if isinstance(content.get(k), (str, int))}
    return HypernetworkFile(path, network, about)


def write_hypernetwork(
    path: str | Path,
    network: Hypernetwork,
    *,
    name: str,
    step: int = 0,
    sd_checkpoint: str | None = None,
    sd_checkpoint_name: str | None = None,
) -> None:
    """Writes the file, atomically. name: what web UIs list it under; step: optimiser steps trained;
    sd_checkpoint: the short hash of the model that it was trained on, and that model's name."""
    config = network.config
    dropout = config.dropout or (0.0,) * len(config.layer_structure)
    content: dict[Any, Any] = {
        width: tuple(
            {key: value.detach().cpu().clone() for key, value in transform.state_dict().items()}
            for transform in network.pair(width)
        )
        for width in network.widths
    }
    content |= {
        "step": step,
        "name": name,
        "layer_structure": list(config.layer_structure),
        "activation_func": config.activation,
        "is_layer_norm": config.layer_norm,
        "weight_initialization": "Normal",
        "sd_checkpoint": sd_checkpoint,
        "sd_checkpoint_name": sd_checkpoint_name,
        "activate_output": config.activate_output,
        "use_dropout": any(dropout),
        "dropout_structure": list(dropout),
        "last_layer_dropout": dropout[-2] != 0,
        "optional_info": None,
    }
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".tmp-{path.name}")
    torch.save(content, temporary)
    temporary.replace(path)


def _open(path: Path) -> dict[Any, Any]:
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist; give a hypernetwork's .pt file")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged pickle can fail in any way
        told = (str(error) or type(error).__name__).splitlines()[0]
        raise ValueError(f"{path} is no file of plain tensors ({told})") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} is no hypernetwork but a {type(content).__name__}")
    return content


def _config(content: Mapping[Any, Any]) -> HypernetworkConfig:
    """The structure, with the meaning that absent entries have in older files."""
    structure = _numbers(content, "layer_structure") or (1, 2, 1)
    dropout = _numbers(content, "dropout_structure")
    if not dropout and content.get("use_dropout", False):
        last = OLD_DROPOUT if content.get("last_layer_dropout", False) else 0.0
        dropout = (0.0, *[OLD_DROPOUT] * (len(structure) - 3), last, 0.0)
    return HypernetworkConfig(
        layer_structure=structure,
        activation=str(content.get("activation_func") or "linear").lower(),
        layer_norm=bool(content.get("is_layer_norm", False)),
        activate_output=bool(content.get("activate_output", True)),
        dropout=dropout,
    )


def _numbers(content: Mapping[Any, Any], key: str) -> tuple[float, ...]:
    value = content.get(key) or ()
    if not isinstance(value, (list, tuple)) or not all(isinstance(v, (int, float)) for v in value):
        raise ValueError(f"{key}={value!r}; a list of numbers belongs there")
    return tuple(value)


def _take(transform: ContextTransform, state: Any) -> list[str]:
    """Gives the weights to the transform; what does not fit is told instead."""
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
        return ["is no dict of tensors"]
    named = {_today(str(key)): value for key, value in state.items()}
    own = transform.state_dict()
    told = [f"lacks {key}" for key in own.keys() - named.keys()]
    told += [f"has an unknown {key!a}" for key in named.keys() - own.keys()]
    for key in own.keys() & named.keys():
        value = named[key]
        if value.shape != own[key].shape:
            told.append(f"{key} is {tuple(value.shape)}, expected {tuple(own[key].shape)}")
        elif not value.is_floating_point() or not value.isfinite().all():
            told.append(f"{key} holds what is no finite number")
    if not told:
        values = {key: value.to(torch.float32) for key, value in named.items()}
        transform.load_state_dict(values, strict=True, assign=True)
    return sorted(told)


def _today(key: str) -> str:
    for old, new in OLD_NAMES.items():
        if key.startswith(old):
            return new + key.removeprefix(old)
    return key
