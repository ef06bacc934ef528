"""Under which names do files keep an autoencoder, and which of them are ours?

Ours are diffusers' of today. Others: diffusers' old names of the attention, the CompVis layout with
or without its prefix (a VAE file alone, or a whole model), attention weights as 1x1 convolutions.
"""

from __future__ import annotations

from collections.abc import Iterable
from math import prod

import torch

from ldm.io.compvis import VAE, vae_names
from ldm.io.reading import TensorFile
from ldm.io.source import Renamed, Shape
from ldm.models.vae import VAEConfig, build_vae

OLD_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
JUDGE = "loss."  # what judged a VAE in its training: perceptual network, discriminator


def vae_under_own_names(file: TensorFile, config: VAEConfig) -> Renamed:
    """The autoencoder's tensors in a file; what is not its own keeps its name, to be reported."""
    found = vae_prefix(file)
    theirs = {k: k.removeprefix(found) for k in file if k.startswith(found)}
    ours = {name: own for own, name in vae_names(config).items()}
    names = {
        ours.get(name) or modern(name): full
        for full, name in theirs.items()
        if not name.startswith(JUDGE)
    }
    with torch.device("meta"):
        own = {k: tuple(v.shape) for k, v in build_vae(config).state_dict().items()}
    flat = {
        name: own[name]
        for name, full in names.items()
        if name in own and _is_flat(file.shape(full), own[name])
    }
    return Renamed(file, names, flat)


def vae_prefix(names: Iterable[str]) -> str:
    """What stands before an autoencoder's names: the CompVis prefix or nothing."""
    return VAE if any(name.startswith(VAE) for name in names) else ""


def is_vae(name: str) -> bool:
    """Whether a name of a whole model's file belongs to its autoencoder."""
    return name.startswith(VAE) and not name.startswith(VAE + JUDGE)


def modern(name: str) -> str:
    """diffusers' name of today."""
    for old, new in OLD_ATTENTION.items():
        name = name.replace(f".attentions.0.{old}.", f".attentions.0.{new}.")
    return name


def _is_flat(stored: Shape, own: Shape) -> bool:
    """Whether our own shape is the stored one without the trailing ones of a 1x1 convolution."""
    return stored != own and stored[: len(own)] == own and prod(stored) == prod(own)
