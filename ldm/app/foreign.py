"""How does a run train on latents whose autoencoder is not here?"""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ldm.app.beginning import INIT, Beginning
from ldm.parts import raise_all

if TYPE_CHECKING:
    from ldm.models.codec import Codec
    from ldm.training.plan import Plan

log = logging.getLogger(__name__)
Config = dict[str, Any]


def foreign_codec(config: Any, data: Any, begin: Beginning) -> Codec | None:
    """What models/vae=foreign stands for; None for a VAE that is here.

    scaling_factor=auto: that of the run's checkpoint, or of the foreign model that the run begins
    from, else measured on the first samples of the order, which are the same on all ranks.
    """
    from ldm.models.codec import Codec
    from ldm.models.vae import ForeignVAE, ForeignVAEConfig

    if not isinstance(config, ForeignVAEConfig):
        return None
    raise_all(_problems(config, data, begin.cfg))
    scale = config.scaling_factor
    if scale == "auto":
        scale = _kept(begin) or _measured(data)
    return Codec(ForeignVAE(replace(config, scaling_factor=scale)), float(scale))


def without_pictures(plan: Plan, codec: Codec) -> Plan:
    """The plan, with no sample grids where there is no decoder to draw them with."""
    if not plan.sample_every or not codec.problems():
        return plan
    log.info("no sample grids: models/vae=foreign has no decoder")
    return replace(plan, sample_every=0)


def _problems(config: Any, data: Any, cfg: Config) -> list[str]:
    found, weights = [], cfg["models"]["vae_weights"]
    if weights is not None:
        found.append(f"models.vae_weights={weights}, but models/vae=foreign has none; set it null")
    if data.layout is None:
        return [*found, "models/vae=foreign encodes no pictures; it needs data.format=latents"]
    channels, height, width = data.layout.shape
    channels //= 2 if data.layout.kind == "moments" else 1
    if channels != config.latent_channels:
        found.append(
            f"models.vae.latent_channels={config.latent_channels}, but the latents have "
            f"{channels}; set it, models.unet.in_channels and models.unet.out_channels to that"
        )
    size = max(height, width) * config.factor
    if data.size != size and not data.config.buckets.used:
        found.append(
            f"data.size={data.size}, but latents of {height}x{width} at {config.factor} px each "
            f"way (models.vae.factor) are pictures of {size} px; set data.size={size}"
        )
    return found


def _kept(begin: Beginning) -> float | None:
    """The scale that the weights were trained with."""
    from ldm.io.checkpoint import read

    if begin.checkpoint is not None:
        return float(read(begin.checkpoint)["card"]["vae"]["config"]["scaling_factor"])
    if not begin.cfg[INIT]:
        return None
    vae = begin.network.card.get("vae", {}).get("config", {})
    return float(vae["scaling_factor"]) if "factor" in vae else None


def _measured(data: Any) -> float:
    from ldm.data.latents import measured_std

    std = measured_std(data.train.batch, data.train_size)
    scale = float(f"{1 / std:.6g}")
    log.info("the first latents have the deviation %g: models.vae.scaling_factor=%g", std, scale)
    return scale
