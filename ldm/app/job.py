"""Which parts does a training run consist of, and how are they built?"""

from __future__ import annotations

import logging
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from ldm import rng
from ldm.app.adapting import Trained, check_words, make_trained
from ldm.app.beginning import Beginning
from ldm.app.foreign import foreign_codec, without_pictures
from ldm.app.prior import open_training_data, prior_loss
from ldm.parts import build, build_objective, fit_problems, raise_all, run_settings

log = logging.getLogger(__name__)
Config = dict[str, Any]


@dataclass(frozen=True)
class Job:
    """The parts of a run, built."""

    module: Any
    data: Any
    plan: Any
    card: Config
    encoders: Any | None
    defaults: Any

    def save_frozen(self, folder: Path) -> None:
        """Keeps the frozen encoders in the run folder, once."""
        if self.encoders is not None:
            from ldm.io.frozen import save_frozen

            unet = self.module.unet if self.card["frozen"].get("unet") else None
            save_frozen(folder, self.encoders.codec, self.encoders.text, unet)


def build_job(cfg: Config, checkpoint: Path | None = None) -> Job:
    """checkpoint: of the run itself, when it goes on."""
    from ldm.training.plan import make_plan

    with torch.random.fork_rng():
        torch.manual_seed(rng.fold(cfg["seed"], "init"))
        data = open_training_data(cfg)
        settings = run_settings(cfg)
        world = build(cfg["training"]["trainer"]).world_size
        plan = make_plan(
            settings, train_size=data.train_size, val_size=data.val_size, world_size=world
        )
        builder = {"diffusion": _diffusion, "vae": _vae, "clip": _clip}[cfg["task"]]
        job = builder(cfg, data, plan, settings, Beginning(cfg, checkpoint))
        job.card["total_samples"] = plan.total_samples
        return job


def _diffusion(cfg: Config, data: Any, plan: Any, settings: Any, begin: Beginning) -> Job:
    from ldm.io.configs import plain
    from ldm.io.frozen import vae_card
    from ldm.models.unet import UNet
    from ldm.pipeline import SamplingDefaults
    from ldm.training.encoders import FrozenEncoders
    from ldm.training.inpainting import inpainting_problems
    from ldm.training.module import DiffusionModule

    unet_config, vae_config = build(cfg["models"]["unet"]), build(cfg["models"]["vae"])
    text = begin.text()
    codec = foreign_codec(vae_config, data, begin) or begin.codec(vae_config)
    plan = without_pictures(plan, codec)
    node = cfg["training"].get("inpainting")
    inpainting = None if node is None else build(node)
    unfit = inpainting_problems(
        inpainting,
        in_channels=unet_config.in_channels,
        latent_channels=codec.latent_channels,
        cached=data.layout is not None,
    )
    raise_all(fit_problems(unet_config, codec, text) + unfit)
    spec = text.spec()
    if spec.get("source") == "scratch":
        log.warning("models.text.source=scratch: the frozen text encoder has random weights")
    size = cfg["sampling"]["size"] or [data.size, data.size]
    defaults = SamplingDefaults(**{**cfg["sampling"], "size": tuple(size)})
    objective = build_objective(cfg["diffusion"])
    card = _card(cfg, data) | {
        "unet": plain(asdict(unet_config)),
        "vae": vae_card(codec, cfg["models"]["vae_weights"]),
        "text": spec,
        "objective": objective.spec(),
        "null": spec["null"],
        "sampling": plain(asdict(defaults)),
        "frozen": {"vae": "frozen/vae.safetensors", "text": "frozen/text"},
        "frozen_at": None,
    }
    unet = UNet(unet_config)
    raise_all(_cache_problems(data, codec, text))
    parent = begin.initialise(unet, card)
    if parent is not None:
        card["parent"] = parent
    trained = make_trained(cfg, unet, text)
    raise_all(_cached_context_problems(data, trained))
    check_words(data, trained)
    card |= trained.card(unet)
    if trained.freezes_unet:
        card["frozen"]["unet"] = "frozen/unet.safetensors"
    encoders = FrozenEncoders(
        codec,
        text,
        seed=cfg["seed"],
        cache_captions=settings.cache_captions,
        cache_latents=settings.cache_latents,
        inpainting=inpainting,
    )
    module = DiffusionModule(
        unet,
        encoders,
        objective,
        caption_dropout=settings.caption_dropout,
        card=card,
        **_common(cfg, plan),
        channels_last=settings.channels_last,
        compile=settings.compile,
        adapters=trained.adapters,
        train=trained.own,
        prior=prior_loss(cfg, data),
    )
    return Job(module, data, plan, card, encoders, defaults)


def _common(cfg: Config, plan: Any) -> Config:
    """What every trained module is given beside its own parts."""
    return {
        "plan": plan,
        "optim": build(cfg["training"]["optim"]),
        "seed": cfg["seed"],
        "gradient_clip": cfg["training"]["gradient_clip"],
        "ema_half_life": build(cfg["training"]["ema"]).half_life,
    }


def _vae(cfg: Config, data: Any, plan: Any, settings: Any, begin: Beginning) -> Job:
    from ldm.io.checkpoint import read, tensors_hash
    from ldm.io.configs import plain
    from ldm.io.frozen import load_vae_weights
    from ldm.models.vae import AutoencoderKL, build_vae
    from ldm.training.vae_module import VAEModule

    config, train = build(cfg["models"]["vae"]), cfg["models"]["vae_train"]
    source = cfg["init_from"] or cfg["models"]["vae_weights"]
    card = _card(cfg, data) | {"vae": {"config": plain(asdict(config))}}
    if begin.checkpoint is not None:  # has the weights, and says where they came from
        vae = build_vae(config)
        card |= {k: v for k, v in read(begin.checkpoint)["card"].items() if k == "parent"}
    elif source:
        vae = load_vae_weights(config, source)
        card["parent"] = {"source": source, "hash": tensors_hash(dict(vae.state_dict()))}
    else:
        vae = build_vae(config)
    if not isinstance(vae, AutoencoderKL):
        raise ValueError("models/vae=identity has no weights to train; choose another models/vae")
    if train != "all":
        card["vae"]["trained"] = train
        if "parent" not in card:
            raise ValueError(
                f"models.vae_train={train} without weights: the random encoder would stay as it "
                "is; give init_from=FILE, or models.vae_train=all"
            )
    loss = build(cfg["training"]["vae_loss"])
    judges = _judges(loss, data.size)
    if judges["perceptual"] is not None:
        card["vae"]["perceptual"] = judges["perceptual"].hash()
    module = VAEModule(vae, loss, **judges, train=train, card=card, **_common(cfg, plan))
    return Job(module, data, plan, card, None, None)


def _judges(loss: Any, size: int) -> Config:
    """The networks that the VAE's loss asks, None for those that it does not."""
    from ldm.models.patch_discriminator import PatchDiscriminator
    from ldm.training.perceptual import load_perceptual

    perceptual = load_perceptual(loss.perceptual_weights) if loss.perceptual else None
    if not loss.gan.weight:
        return {"perceptual": perceptual, "discriminator": None}
    discriminator = PatchDiscriminator(width=loss.gan.width, layers=loss.gan.layers)
    if size < discriminator.smallest:
        raise ValueError(
            f"data.size={size} px is too small for training.vae_loss.gan.layers="
            f"{loss.gan.layers}, which needs {discriminator.smallest} px; use fewer layers"
        )
    return {"perceptual": perceptual, "discriminator": discriminator}


def _clip(cfg: Config, data: Any, plan: Any, settings: Any, begin: Beginning) -> Job:
    from ldm.training.clip_module import ClipModule

    pair = build(cfg["models"]["text"])
    card = _card(cfg, data) | {"clip": pair.spec()}
    module = ClipModule(
        pair,
        card=card,
        **_common(cfg, plan),
    )
    return Job(module, data, plan, card, None, None)


def _cached_context_problems(data: Any, trained: Trained) -> list[str]:
    """Where contexts come from a cache although what makes them is trained."""
    if data.layout is None or not data.layout.context:
        return []
    if "text" not in trained.own and "text" not in trained.adapters:
        return []
    return [
        "the shards hold cached text contexts, which would not change while the text encoder is "
        "trained; make them without (cache_latents.py text=false), or leave the text encoder alone"
    ]


def _cache_problems(data: Any, codec: Any, text: Any) -> list[str]:
    """Where cached latents were made with other encoders than these, or scaled twice."""
    if data.layout is None:
        return []
    from ldm.data.latents import measured_std, scale_problems
    from ldm.data.manifest import check_manifest
    from ldm.training.cache_latents import expected

    wanted = expected(codec, text, size=data.size)
    problems = []
    for folder, manifest in data.manifests.items():
        if manifest is None:
            log.warning("%s has no manifest.json: nobody knows what made its latents", folder)
        else:
            problems += [f"{folder}: {problem}" for problem in check_manifest(manifest, wanted)]
    std = measured_std(data.train.batch, data.train_size)
    return problems + scale_problems(std, codec.scale)


def describe_plan(cfg: Config, job: Job, samples: int) -> str:
    """What the run will do, printed before the first step and kept as plan.txt."""
    from ldm.training.plan import describe
    from ldm.training.support import in_short

    optim = build(cfg["training"]["optim"])
    head = {
        "run folder": cfg["run_dir"],
        "going on after": f"{samples:,} samples" if samples else "",
        "runs instead": in_short(job.card.get("fallbacks", [])),
    }
    trained = sum(p.numel() for p in job.module.parameters() if p.requires_grad)
    return describe(job.plan, parameters=trained, lr=optim.summary(), head=head)


def _card(cfg: Config, data: Any) -> Config:
    from ldm.io.checkpoint import CARD_FORMAT
    from ldm.training.run_folder import provenance

    return {
        "format": CARD_FORMAT,
        "task": cfg["task"],
        "name": cfg["name"],
        "seed": cfg["seed"],
        "batch_size": cfg["training"]["batch_size"],
        "data": data.spec(),
        "made_with": provenance(),
    }
