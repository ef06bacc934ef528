"""How do the configs of networks travel through JSON?"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ldm.models.unet import UNetConfig
from ldm.models.vae import ForeignVAEConfig, IdentityVAEConfig, VAEConfig


def plain(value: Any) -> Any:
    """Tuples as lists, so that a card is equal before and after JSON."""
    if isinstance(value, dict):
        return {k: plain(v) for k, v in value.items()}
    return [plain(v) for v in value] if isinstance(value, (list, tuple)) else value


def unet_config(fields: Mapping[str, Any]) -> UNetConfig:
    """The config that `asdict` wrote; lists become tuples again."""
    return UNetConfig(**{k: _tuples(v) for k, v in fields.items()})


def vae_config(fields: Mapping[str, Any]) -> VAEConfig | IdentityVAEConfig | ForeignVAEConfig:
    """The config that `asdict` wrote; lists become tuples again."""
    if "factor" in fields:
        return ForeignVAEConfig(**fields)
    if "block_out_channels" not in fields:
        return IdentityVAEConfig(**fields)
    return VAEConfig(**{k: _tuples(v) for k, v in fields.items()})


def differences(old: Any, new: Any, path: str) -> list[tuple[str, tuple[Any, Any]]]:
    """Where two nested values differ: (path, (old, new))."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        keys = sorted(set(old) | set(new))
        return [d for k in keys for d in differences(old.get(k), new.get(k), f"{path}.{k}")]
    return [] if old == new else [(path, (old, new))]


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list) else value
