"""How is a model read from one file, in the CompVis layout?

    model.diffusion_model.*      the UNet
    model_ema.*                  its averaged weights, names without dots (optional)
    first_stage_model.*          the VAE
    cond_stage_model.*           the text encoder: CLIP, OpenCLIP (SD 2) or LDM-BERT
    betas, alphas_cumprod, …     the schedule

A file of ours also holds its card, its text encoder's options and, for a vocabulary of its own,
its tokenizer: as metadata of a .safetensors, as texts beside `state_dict` in a .ckpt.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from ldm.io import checkpoint as files
from ldm.io.compvis import EMA, UNET, VAE, ema_name, schedule_buffers, unet_names
from ldm.io.configs import plain, unet_config, vae_config
from ldm.io.detect import compvis_unet_config, compvis_vae_config
from ldm.io.facts import Facts, objective_spec, schedule_named
from ldm.io.frozen import frozen_codec
from ldm.io.kinds import kind_of, kind_words
from ldm.io.reading import TensorFile, open_tensors
from ldm.io.said import Hints, gather
from ldm.io.single_text import TextPart, open_text
from ldm.io.source import Renamed, Shape, Source, Tensors, choose, dtype_of, fill
from ldm.io.vae_names import is_vae, vae_under_own_names
from ldm.models.codec import Codec
from ldm.models.unet import UNetConfig
from ldm.models.vae import Autoencoder, IdentityVAEConfig, VAEConfig, build_vae

CARD = "ldm.card"
SIZES = {768: 512, 1024: 512, 1280: 256}  # px a side it was trained on, by context width
V_SIZE = 768  # px a side of the SD 2 models that predict v
BUFFERS = frozenset(schedule_buffers(torch.tensor([0.9, 0.5], dtype=torch.float64)))


def open_single(path: Path, *, weights: str = "ema", hints: Hints | None = None) -> Source:
    """A single file, nothing big read. Raises ValueError: what it is, what was expected."""
    file = open_tensors(path)
    kind = kind_of(file.shapes())
    if kind != "single":
        raise ValueError(
            f"{path} is {kind_words(kind)}; expected a whole model: UNet, VAE and text encoder in "
            "one file, a diffusers folder or a run folder"
        )
    hints = hints or Hints()
    said = file.metadata | {k: v for k, v in file.values.items() if isinstance(v, str)}
    card = _own_card(said, path)
    facts = gather(file, card, hints)
    try:
        unet = _unet_config(file, card, facts)
        vae = _vae_config(file, card, facts)
    except ValueError as error:  # found out from names and shapes alone
        raise ValueError(f"{path}: {error}") from error
    text = open_text(file, said, card, tokenizer=hints.tokenizer)
    _check_complete(facts, unet, text, card)
    networks = _networks(file, unet, card)
    chosen = choose(networks, weights, str(path))
    vae_tensors = vae_under_own_names(file, vae)
    return Source(
        form="single",
        path=path,
        card={**(card or _new_card(path, unet, vae, facts)), "weights": chosen},
        networks=networks,
        weights=chosen,
        file=path,
        codec=partial(_codec, vae, vae_tensors, str(path)),
        text=text.build,
        dtypes={
            "unet": dtype_of(networks[chosen]),
            "vae": dtype_of(vae_tensors),
            "text": dtype_of(text.tensors),
        },
        extras=_extras(file, unet, text),
        stated=facts.stated(),
    )


def part(shapes: Mapping[str, Shape], prefix: str) -> dict[str, Shape]:
    """The shapes under a prefix, by the names without it."""
    return {k.removeprefix(prefix): v for k, v in shapes.items() if k.startswith(prefix)}


def _own_card(said: Mapping[str, str], path: Path) -> dict[str, Any]:
    """The card that a file of ours carries; {} in other people's files."""
    if CARD not in said:
        return {}
    try:
        card = json.loads(said[CARD])
    except ValueError as error:
        raise ValueError(f"{path}: the card in it is no JSON: {error}") from error
    return files.check_card(card, str(path))


def _unet_config(file: TensorFile, card: Mapping[str, Any], facts: Facts) -> UNetConfig:
    if card:
        return unet_config(card["unet"])
    return compvis_unet_config(
        part(file.shapes(), UNET), heads=facts.get("heads"), head_dim=facts.get("head_dim")
    )


def _vae_config(file: TensorFile, card: Mapping[str, Any], facts: Facts) -> VAEConfig:
    if card:
        config = vae_config(card["vae"]["config"])
        if isinstance(config, IdentityVAEConfig):
            raise ValueError("a single file without an autoencoder is not known")
        return config
    shapes = part(file.shapes(), VAE)
    if not shapes:
        raise ValueError("it holds no VAE (first_stage_model.*); expected a whole model")
    config = compvis_vae_config(shapes)
    return replace(config, scaling_factor=facts.get("scale", config.scaling_factor))


def _check_complete(
    facts: Facts, unet: UNetConfig, text: TextPart, card: Mapping[str, Any]
) -> None:
    """Raises ValueError for contradictions, and for what nobody says."""
    width = text.width or None
    if width != unet.cross_attention_dim:
        facts.problems.append(
            f"context width: the UNet has {unet.cross_attention_dim}, the text encoder {width}"
        )
    if not card and text.kind == "openclip" and facts.get("prediction") is None:
        facts.problems.append(
            "prediction: an SD 2 file's weights do not say whether they predict eps (512-base) or "
            "v (768-v); put the yaml that came with it beside it (same name), or convert it with "
            "prediction=eps or prediction=v"
        )
    facts.check()


def _new_card(path: Path, unet: UNetConfig, vae: VAEConfig, facts: Facts) -> dict[str, Any]:
    """The card of a file that has none."""
    prediction = facts.get("prediction", "eps")
    usual = SIZES.get(unet.cross_attention_dim or 0, 512)
    if unet.cross_attention_dim == 1024 and prediction == "v":
        usual = V_SIZE
    latent = facts.get("latent_size")
    size = facts.get("size") or (latent * vae.factor if latent else usual)
    schedule = facts.get("schedule") or schedule_named("scaled_linear")
    trailing = schedule.get("zero_terminal_snr", False)
    return {
        "format": files.CARD_FORMAT,
        "task": "diffusion",
        "name": path.stem,
        "unet": plain(asdict(replace(unet, sample_size=max(size // vae.factor, 1)))),
        "vae": {"config": plain(asdict(vae)), "source": str(path)},
        "objective": objective_spec(prediction, schedule),
        "null": "empty",
        "sampling": {
            "sampler": "ddim_trailing" if trailing else "ddim",
            "steps": 50,
            "guidance": 7.5,
            "guidance_rescale": 0.7 if trailing else 0.0,
            "eta": 0.0,
            "size": [size, size],
        },
        "samples_seen": None,
    }


def _networks(file: TensorFile, config: UNetConfig, card: Mapping[str, Any]) -> dict[str, Tensors]:
    """The UNet's tensors under our names: as stored, and averaged where the file has both."""
    names = {ours: UNET + theirs for ours, theirs in unet_names(config).items()}
    present = {ours: full for ours, full in names.items() if full in file}
    known = set(names.values())
    present |= {k: k for k in file if k.startswith(UNET) and k not in known}  # reported on loading
    stored = Renamed(file, present)
    averaged = {ours: ema_name(full) for ours, full in names.items()}
    if not any(name in file for name in averaged.values()):
        return {card.get("weights", "raw"): stored}
    missing = [name for name in averaged.values() if name not in file]
    if missing:
        raise ValueError(
            f"{file.path}: {len(missing)} of {len(averaged)} averaged weights ({EMA}*) are "
            f"missing, as {missing[0]}; weights=raw uses the others"
        )
    return {"ema": Renamed(file, averaged), "raw": stored}


def _codec(config: VAEConfig, tensors: Tensors, where: str, dtype: torch.dtype) -> Codec:
    with torch.device("meta"):
        vae: Autoencoder = build_vae(config)
    fill(vae, tensors, f"{where}: vae", dtype)
    return frozen_codec(vae, dtype)


def _extras(file: TensorFile, config: UNetConfig, text: TextPart) -> Renamed:
    """What the model does not use: kept, so that a conversion back loses nothing."""
    unet = [UNET + name for name in unet_names(config).values()]
    used = {*map(ema_name, unet), *text.used, *BUFFERS}
    rest = [k for k in file if k not in used and not k.startswith(UNET) and not is_vae(k)]
    return Renamed(file, {name: name for name in rest})
