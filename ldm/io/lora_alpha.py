"""Where do LoRA files keep alpha and rank, beside the tensors?

kohya: texts in the safetensors header, ss_network_dim and ss_network_alpha (for people and web
UIs; the alpha of each layer is a tensor). PEFT: adapter_config.json; diffusers: the same fields as
JSON in the header, under `lora_adapter_metadata`, with the part before each (`unet.lora_alpha`).
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from safetensors.torch import save
from torch import Tensor

DIFFUSERS_METADATA = "lora_adapter_metadata"
LITERAL = re.compile(r"\^?[\w.]+\$?")
Alpha = Callable[[str, int], float]  # (path, rank) -> alpha


def peft_alpha(config: Mapping[str, Any], where: str) -> Alpha:
    """What a PEFT configuration says about alpha. Raises ValueError for what is not read here.

    An entry of alpha_pattern names the layer at that path, or all whose path ends so.
    """
    alpha, pattern = config.get("lora_alpha"), config.get("alpha_pattern") or {}
    problems = [
        f"{key}={config[key]!r}, which is not read here"
        for key in ("use_dora", "bias", "lora_bias", "modules_to_save", "megatron_config")
        if config.get(key) not in (None, False, "none", [])
    ]
    if str(config.get("peft_type", "LORA")).upper() != "LORA":
        problems.append(f"peft_type={config['peft_type']!r}; only LORA is read")
    if not _is_number(alpha):
        problems.append(f"lora_alpha={alpha!r}; a number belongs there")
    if not isinstance(pattern, dict) or not all(map(_is_number, pattern.values())):
        problems.append(f"alpha_pattern={pattern!r}; numbers by name belong there")
    elif odd := [name for name in pattern if not LITERAL.fullmatch(name)]:
        problems.append(f"alpha_pattern has regular expressions, as {odd[0]!r}; give whole names")
    if problems:
        raise ValueError(f"{where}: " + "; ".join(problems))
    named = {name.strip("^$"): float(value) for name, value in pattern.items()}
    by_root = bool(config.get("use_rslora"))  # Kalajdzievski 2023: alpha / sqrt(rank)

    def alpha_at(path: str, rank: int) -> float:
        own = next((v for n, v in named.items() if f".{path}".endswith(f".{n}")), float(alpha))
        return own * math.sqrt(rank) if by_root else own

    return alpha_at


def diffusers_alphas(metadata: Mapping[str, str], where: str) -> dict[str, Alpha]:
    """For each part (`unet`, `text_encoder`) that a diffusers file's header speaks of."""
    if DIFFUSERS_METADATA not in metadata:
        return {}
    fields = json_object(metadata[DIFFUSERS_METADATA], f"{where}, {DIFFUSERS_METADATA}")
    parts: dict[str, dict[str, Any]] = {}
    for name, value in fields.items():
        part, _, key = name.partition(".")
        parts.setdefault(part, {})[key] = value
    return {part: peft_alpha(config, f"{where}, {part}") for part, config in parts.items()}


def diffusers_metadata(parts: Mapping[str, Mapping[str, tuple[int, float]]]) -> dict[str, str]:
    """The header of a diffusers file. parts: (rank, alpha) by path, by part."""
    fields: dict[str, Any] = {}
    for part, layers in parts.items():
        rank, ranks = usual_and_others({path: rank for path, (rank, _) in layers.items()})
        alpha, alphas = usual_and_others({path: alpha for path, (_, alpha) in layers.items()})
        config = {
            "r": rank,
            "lora_alpha": alpha,
            "rank_pattern": {f"^{path}": other for path, other in ranks.items()},
            "alpha_pattern": {f"^{path}": other for path, other in alphas.items()},
            "target_modules": sorted(layers),
        }
        fields |= {f"{part}.{key}": value for key, value in config.items()}
    return {"format": "pt", DIFFUSERS_METADATA: json.dumps(fields, sort_keys=True)}


def kohya_metadata(
    tensors: Mapping[str, Tensor], layers: Iterable[tuple[int, float]], given: Mapping[str, str]
) -> dict[str, str]:
    """The header of a kohya file: what was given, rank and alpha where they are one, hashes.

    sshs_model_hash: sha256 of the tensors' bytes; sshs_legacy_hash: of 64 KiB of the file at 1 MiB,
    the header being that of the ss_ texts alone. Web UIs know files by them.
    """
    ranks, alphas = ({values[i] for values in layers} for i in (0, 1))
    texts = {
        "ss_network_module": "networks.lora",
        "ss_network_dim": str(ranks.pop()) if len(ranks) == 1 else "Dynamic",
        "ss_network_alpha": f"{alphas.pop():g}" if len(alphas) == 1 else "Dynamic",
        **given,
    }
    content = save(dict(tensors), {k: v for k, v in texts.items() if k.startswith("ss_")})
    begin = 8 + int.from_bytes(content[:8], "little")
    return {
        "format": "pt",
        **texts,
        "sshs_model_hash": hashlib.sha256(memoryview(content)[begin:]).hexdigest(),
        "sshs_legacy_hash": hashlib.sha256(content[0x100000:0x110000]).hexdigest()[:8],
    }


def json_object(text: str | bytes, where: str) -> dict[str, Any]:
    """A JSON object. Raises ValueError for anything else."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where} is no JSON: {error}") from error
    if not isinstance(value, dict):
        raise ValueError(f"{where} is no JSON object but a {type(value).__name__}")
    return value


def usual_and_others(values: Mapping[str, Any]) -> tuple[Any, dict[str, Any]]:
    """The most frequent value, and those that differ from it."""
    usual = Counter(values.values()).most_common(1)[0][0]
    return usual, {name: value for name, value in values.items() if value != usual}


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
