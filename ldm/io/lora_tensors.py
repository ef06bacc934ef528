"""What tensors does a LoRA file hold, and are they sound?"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ldm.adapters.lora_layer import LoRAWeights
from ldm.io.kinds import kind_of, kind_words
from ldm.io.lora_alpha import Alpha
from ldm.io.lora_names import THEIR_PARTS, Key, parse, technique_of

PEFT_FILES = ("adapter_model.safetensors", "adapter_config.json")
DIFFUSERS_FILE = "pytorch_lora_weights.safetensors"
DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
SHOWN = 8  # names in an error


def places(path: Path) -> tuple[Path, Path | None]:
    """The tensors' file, and the configuration that belongs to it when it is PEFT's."""
    if path.is_file() or not path.is_dir():
        if not path.exists():
            raise FileNotFoundError(f"{path} does not exist; give a LoRA file or a PEFT folder")
        beside = path.with_name(PEFT_FILES[1])
        return path, beside if path.name == PEFT_FILES[0] and beside.is_file() else None
    weights, config = (path / name for name in PEFT_FILES)
    if weights.is_file() and config.is_file():
        return weights, config
    if (path / DIFFUSERS_FILE).is_file():
        return path / DIFFUSERS_FILE, None
    raise FileNotFoundError(
        f"{path} holds neither {' and '.join(PEFT_FILES)} (PEFT) nor {DIFFUSERS_FILE} (diffusers)"
    )


def open_lora(path: Path) -> tuple[dict[str, Tensor], dict[str, Key], dict[str, str]]:
    """The tensors, what their names say, and the header's texts.

    Raises ValueError that tells what the file is instead; a whole model is not read for that.
    """
    try:
        with safe_open(path, framework="pt") as file:
            names = file.keys()
            keys = {name: key for name in names if (key := parse(name))}
            if len(keys) < len(names) or not names:
                shapes = {name: tuple(file.get_slice(name).get_shape()) for name in names}
                raise ValueError(_no_lora(path, shapes, [n for n in names if n not in keys]))
            return {n: file.get_tensor(n) for n in names}, keys, file.metadata() or {}
    except SafetensorError as error:
        raise ValueError(
            f"{path} is no safetensors file, or damaged ({error}); LoRAs in other files (.pt, "
            ".bin) are not read: convert it with the tool that made it"
        ) from error


def layers_of(
    path: Path, tensors: Mapping[str, Tensor], keys: Mapping[str, Key], alphas: Mapping[str, Alpha]
) -> dict[str, dict[str, LoRAWeights]]:
    """The tensors by part and layer. Raises ValueError with all that is wrong with them."""
    found: dict[tuple[str, str], dict[str, Tensor]] = defaultdict(dict)
    paths: dict[tuple[str, str], str] = {}
    problems = []
    for name, key in keys.items():
        place = key.part, key.layer
        if key.role in found[place]:
            problems.append(f"{name} is there twice, under another name")
        found[place][key.role] = tensors[name]
        paths[place] = key.path
    layers: dict[str, dict[str, LoRAWeights]] = {"unet": {}, "text": {}}
    for (part, layer), roles in found.items():
        problem = _problem(roles)
        if problem:
            problems.append(f"{layer} {problem}")
            continue
        rank = roles["down"].shape[0]
        said = alphas.get(THEIR_PARTS[part])
        alpha = said(paths[part, layer], rank) if said else float(rank)
        if "alpha" in roles:
            alpha = roles["alpha"].item() or float(rank)  # kohya: 0 stands for the rank
        layers[part][layer] = LoRAWeights(roles["down"], roles["up"], alpha)
    if problems:
        raise ValueError(f"{path}: {listed(problems[:SHOWN], problems)}")
    return layers


def listed(told: list[str], names: list[str]) -> str:
    """The first of many, and how many more there are."""
    more = len(names) - len(told)
    return "; ".join(told) + (f"; and {more} more" if more else "")


def _no_lora(path: Path, shapes: Mapping[str, tuple[int, ...]], unknown: list[str]) -> str:
    """Why a file with these unknown names is not read."""
    if words := technique_of(unknown):
        return f"{path} is {words}; only LoRA (down, up, alpha) for SD 1 and 2 is read"
    kind = kind_of(shapes)
    if kind not in ("lora", "unknown"):
        return f"{path} is {kind_words(kind)}; a LoRA is expected"
    valid = "lora_unet_<layer>.lora_down.weight or unet.<path>.lora_A.weight"
    return (
        f"{path} is no LoRA that is known, {len(unknown)} of its {len(shapes)} tensors have other "
        f"names: {listed([ascii(n)[1:-1] for n in unknown[:SHOWN]], unknown)}; expected are names "
        f"as {valid}"
    )


def _problem(roles: Mapping[str, Tensor]) -> str:
    """What is wrong with a layer's tensors; empty when nothing is."""
    if missing := {"down", "up"} - roles.keys():
        return f"lacks its {' and '.join(sorted(missing))}"
    down, up = roles["down"], roles["up"]
    shapes = f"has down {tuple(down.shape)} and up {tuple(up.shape)}"
    if down.ndim not in (2, 4) or up.ndim not in (2, 4) or not down.numel() * up.numel():
        return f"{shapes}; expected 2 or 4 dimensions"
    if down.shape[0] != up.shape[1] or any(size != 1 for size in up.shape[2:]):
        return f"{shapes}; expected [rank, in, …] and [out, rank, …]"
    if odd := {str(value.dtype) for value in roles.values()} - {str(dtype) for dtype in DTYPES}:
        return f"has numbers of type {', '.join(sorted(odd))}"
    if any(not value.isfinite().all() for value in roles.values()):
        return "holds NaN or infinity"
    if "alpha" in roles and roles["alpha"].numel() != 1:
        return f"has an alpha of shape {tuple(roles['alpha'].shape)}; one number belongs there"
    return ""
