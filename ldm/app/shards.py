"""How are shards written, and the embedded stack packed?"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hydra.errors import InstantiationException

from ldm.check import missing_values, target_problems, unknown_keys
from ldm.cli import ConfigError
from ldm.parts import build, raise_all, reason

Config = dict[str, Any]


def make_shards(cfg: Config) -> int:
    """Writes webdataset shards from a source of pictures and captions."""
    allowed = ["data", "out", "writer", "overwrite"]
    raise_all(unknown_keys(cfg, allowed, "") + target_problems(cfg, "") + missing_values(cfg, ""))
    try:
        build(cfg["writer"]).write(build(cfg["data"]))
    except (ValueError, FileNotFoundError, FileExistsError, InstantiationException) as error:
        raise ConfigError(reason(error)) from error
    return 0


def pack_tiny(cfg: Config) -> int:
    """Makes a part of the embedded stack from a finished run."""
    from ldm.data.source import open_data
    from ldm.training import pack

    allowed = ["data", "clip", "part", "input", "out", "vocab_size"]
    raise_all(unknown_keys(cfg, allowed, "") + target_problems(cfg, ""))
    part, out = cfg["part"], Path(cfg["out"])
    if part not in ("tokenizer", "clip", "vae", "unet"):
        raise ConfigError(f"part={part!r}; allowed: tokenizer, clip, vae, unet")
    if part == "clip":
        pack.pack_clip(build(cfg["clip"]), Path(cfg["input"]), out)
    elif part == "unet":
        pack.pack_unet(Path(cfg["input"]), out)
    else:
        data = open_data(build(cfg["data"]), seed=0)
        if part == "tokenizer":
            pack.pack_tokenizer(data, out, cfg["vocab_size"])
        else:
            pack.pack_vae(data, Path(cfg["input"]), out)
    return 0
