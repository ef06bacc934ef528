"""What does `cache_latents` do with a configuration?"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hydra.errors import InstantiationException

from ldm.app.support import with_supported_dtypes
from ldm.check import group_problems, missing_values, target_problems, type_problem, unknown_keys
from ldm.cli import ConfigError
from ldm.gallery import progress_bar
from ldm.models.dtypes import DTYPES
from ldm.parts import build, raise_all, reason

Config = dict[str, Any]
KEYS = ["data", "models", "out", "contexts", "batch_size", "devices", "device"]
MODELS = ["vae", "text", "vae_weights", "vae_dtype"]


def cache_latents(cfg: Config) -> int:
    """Encodes every picture of `data.train` once, over all devices."""
    raise_all(_problems(cfg))
    from ldm.data.source import open_data
    from ldm.io.frozen import frozen_codec, load_vae_weights
    from ldm.training.cache_latents import Encoders, cache_latents, cache_problems
    from ldm.training.launch import device_kind, launch

    cfg = with_supported_dtypes(cfg, device_kind(cfg["device"]))
    models = cfg["models"]
    # no sample is held out: a validation set is cached by a call of its own
    source = cfg["data"]["train"]["shards"]
    config = cfg["data"] | {"val": cfg["data"]["val"] | {"shards": source}}
    try:
        vae = load_vae_weights(build(models["vae"]), models["vae_weights"])
        codec = frozen_codec(vae, DTYPES[models["vae_dtype"]])
        text = build(models["text"]) if cfg["contexts"] else None
        data = open_data(build(config), seed=0)
        raise_all(cache_problems(data, text))
        with launch(cfg["devices"], cfg["device"]) as processes:
            encoders = Encoders(
                codec.to(processes.device), None if text is None else text.to(processes.device)
            )
            share = sum(processes.share(data.train.index.sizes))
            with progress_bar("encoding", share) as bar:
                done = 0

                def advance(samples: int) -> None:
                    nonlocal done
                    done += samples
                    bar(done, share)

                cache_latents(
                    data,
                    encoders,
                    Path(cfg["out"]),
                    processes,
                    batch_size=cfg["batch_size"],
                    advance=advance,
                )
    except (ValueError, FileNotFoundError, InstantiationException) as error:
        raise ConfigError(reason(error)) from error
    return 0


def _problems(cfg: Config) -> list[str]:
    problems = unknown_keys(cfg, KEYS, "") + unknown_keys(cfg["models"], MODELS, "models")
    problems += group_problems(cfg, ["data", "models.vae", "models.text"])
    for part in ("data", "models"):
        problems += target_problems(cfg.get(part), part)
    problems += missing_values(cfg, "")
    problems += type_problem(cfg["contexts"], bool, "contexts")
    problems += type_problem(cfg["batch_size"], int, "batch_size")
    if isinstance(cfg["batch_size"], int) and cfg["batch_size"] < 1:
        problems.append(f"batch_size={cfg['batch_size']}; give 1 or more")
    if cfg["models"]["vae_dtype"] not in DTYPES:
        problems.append(
            f"models.vae_dtype={cfg['models']['vae_dtype']!r}; allowed: {', '.join(DTYPES)}"
        )
    return problems
