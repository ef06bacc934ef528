"""Which options of a configuration does this machine not do, and what does the run take instead?"""

from __future__ import annotations

import logging
from copy import deepcopy
from typing import Any

from ldm.parts import build

log = logging.getLogger(__name__)
Config = dict[str, Any]
DTYPES = ("models.vae_dtype", "models.text.dtype")


def supported(cfg: Config) -> tuple[Config, list[Any]]:
    """The configuration that will run, and the Fallbacks that make it another one than was asked.

    Asked once, before any work: every process finds out for itself, the first one warns, once for
    every option. cfg has passed the check, so what is left are wishes that a device may not fulfil.
    """
    from ldm.training import run_folder
    from ldm.training.support import cpu_notes, fallbacks

    asked = _asked(cfg)
    found = fallbacks(asked)
    cfg = _taking(cfg, found)
    if run_folder.is_main_process():
        note, warning = cpu_notes(asked.device, cfg["training"]["trainer"]["precision"])
        if note:
            log.info("%s", note)
        if warning:
            log.warning("%s", warning)
    return cfg, found


def with_supported_dtypes(cfg: Config, device: str) -> Config:
    """cfg with dtypes of its frozen models that `device` (cpu, cuda) computes in."""
    from ldm.training.support import dtype_fallbacks

    return _taking(cfg, list(dtype_fallbacks(device, _dtypes(cfg))))


def _taking(cfg: Config, found: list[Any]) -> Config:
    """cfg with what runs instead of what was asked; the first process says so."""
    from ldm.training import run_folder

    cfg = deepcopy(cfg)
    for fallback in found:
        *path, name = fallback.key.split(".")
        node = cfg
        for key in path:
            node = node[key]
        node[name] = fallback.runs
        if run_folder.is_main_process():
            log.warning("%s", fallback)
    return cfg


def _dtypes(cfg: Config) -> dict[str, str]:
    return {key: value for key in DTYPES if (value := _at(cfg, key))}


def _asked(cfg: Config) -> Any:
    from ldm.training.support import Asked

    training, diffusion = cfg["training"], cfg["task"] == "diffusion"
    trainer = build(training["trainer"])
    adversarial = cfg["task"] == "vae" and training["vae_loss"]["gan"]["weight"] > 0
    return Asked(
        device=trainer.device,
        precision=trainer.precision,
        compile=training["compile"],
        channels_last=training["channels_last"],
        eight_bit=training["optim"]["eight_bit"],
        dtypes=_dtypes(cfg) if diffusion else {},
        fp16=not adversarial,
        network=diffusion,
    )


def _at(cfg: Config, path: str) -> Any:
    """None where a group has no such key."""
    node: Any = cfg
    for key in path.split("."):
        node = node.get(key) if isinstance(node, dict) else None
    return node
