"""How do pixels become latents and back?

Kingma & Welling 2013; the KL autoencoder of Rombach et al. 2022. Parameter names are diffusers'.
B batch, C latent channels, H x W image size, h x w latent size (H = factor h).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, nn

from ldm.models.layers import group_problems, raise_all
from ldm.models.vae_blocks import Decoder, Encoder

LOGVAR_MIN, LOGVAR_MAX = -30.0, 20.0


@dataclass(frozen=True, kw_only=True)
class VAEConfig:
    """The shape of a KL autoencoder; field names as in diffusers where they exist there."""

    in_channels: int = 3
    out_channels: int = 3
    block_out_channels: tuple[int, ...] = (128, 256, 512, 512)
    layers_per_block: int = 2
    latent_channels: int = 4
    norm_num_groups: int = 32
    mid_block_add_attention: bool = True
    scaling_factor: float = 0.18215
    checkpointing: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "block_out_channels", tuple(self.block_out_channels))
        problems = [
            f"{name}={value}; give a positive number"
            for name in ("in_channels", "out_channels", "layers_per_block", "latent_channels")
            if (value := getattr(self, name)) < 1
        ]
        if not self.block_out_channels:
            problems.append("block_out_channels is empty; give one width a level")
        if not self.scaling_factor > 0:
            problems.append(f"scaling_factor={self.scaling_factor}; give a positive number")
        problems += group_problems(self.block_out_channels, self.norm_num_groups)
        raise_all("VAEConfig", problems)

    @property
    def factor(self) -> int:
        """Pixels a latent position on each side."""
        return int(2 ** (len(self.block_out_channels) - 1))


@dataclass(frozen=True, kw_only=True)
class IdentityVAEConfig:
    """Diffusion on pixels: the latents are the picture."""

    in_channels: int = 3
    scaling_factor: float = 1.0

    def __post_init__(self) -> None:
        if self.in_channels < 1:
            raise ValueError(f"IdentityVAEConfig: in_channels={self.in_channels}; give 1 or more")

    @property
    def factor(self) -> int:
        """Latents are as large as the picture."""
        return 1


@dataclass(frozen=True, kw_only=True)
class ForeignVAEConfig:
    """An autoencoder that is not here: only the latents [latent_channels,h,w] that it made are.

    scaling_factor: auto stands for 1 / their deviation, which a run measures once.
    """

    latent_channels: int = 4
    factor: int = 8
    scaling_factor: float | Literal["auto"] = "auto"

    def __post_init__(self) -> None:
        problems = [
            f"{name}={value}; give a positive number"
            for name in ("latent_channels", "factor", "scaling_factor")
            if (value := getattr(self, name)) != "auto" and not value > 0
        ]
        raise_all("ForeignVAEConfig", problems)


class Autoencoder(nn.Module, ABC):
    """What everything else may ask of an autoencoder."""

    latent_channels: int
    factor: int
    config: VAEConfig | IdentityVAEConfig | ForeignVAEConfig

    @abstractmethod
    def encode(self, pixels: Tensor) -> Tensor:
        """Pixels [B,3,H,W] in [-1,1] to moments [B,2C,h,w]: means, then log-variances."""

    @abstractmethod
    def decode(self, z: Tensor) -> Tensor:
        """Latents [B,C,h,w] to pixels [B,3,H,W], not clamped."""


class AutoencoderKL(Autoencoder):
    """The KL autoencoder: encoder, 1x1 quant convolutions, decoder."""

    config: VAEConfig

    def __init__(self, config: VAEConfig) -> None:
        super().__init__()
        self.config = config
        self.factor = config.factor
        self.latent_channels = config.latent_channels
        widths, moments = config.block_out_channels, 2 * config.latent_channels
        layers, groups = config.layers_per_block, config.norm_num_groups
        attention, checkpointing = config.mid_block_add_attention, config.checkpointing
        self.encoder = Encoder(
            config.in_channels,
            moments,
            widths,
            layers=layers,
            groups=groups,
            attention=attention,
            checkpointing=checkpointing,
        )
        self.decoder = Decoder(
            config.latent_channels,
            config.out_channels,
            widths,
            layers=layers,
            groups=groups,
            attention=attention,
            checkpointing=checkpointing,
        )
        self.quant_conv = nn.Conv2d(moments, moments, 1)
        self.post_quant_conv = nn.Conv2d(config.latent_channels, config.latent_channels, 1)

    def encode(self, pixels: Tensor) -> Tensor:
        height, width = pixels.shape[-2:]
        if height % self.factor or width % self.factor:
            fit = (height // self.factor * self.factor, width // self.factor * self.factor)
            raise ValueError(
                f"pictures of {height}x{width} px; both sides must be multiples of {self.factor}: "
                f"crop to {fit[0]}x{fit[1]} or pad"
            )
        return self.quant_conv(self.encoder(pixels))

    def decode(self, z: Tensor) -> Tensor:
        return self.decoder(self.post_quant_conv(z))


class IdentityVAE(Autoencoder):
    """Latents are pixels; the log-variance is the clamp's floor, so a sample is its mean."""

    def __init__(self, config: IdentityVAEConfig) -> None:
        super().__init__()
        self.config = config
        self.factor = 1
        self.latent_channels = config.in_channels

    def encode(self, pixels: Tensor) -> Tensor:
        return torch.cat((pixels, torch.full_like(pixels, LOGVAR_MIN)), dim=1)

    def decode(self, z: Tensor) -> Tensor:
        return z


class ForeignVAE(Autoencoder):
    """Has the shape of its latents and nothing else."""

    MISSING = (
        "the autoencoder that made this model's latents is not here (models/vae=foreign): no "
        "pictures can be encoded or drawn. From Python, Pipeline.latents(…) gives latents, and "
        "pipe.codec = Codec(vae, pipe.codec.scale) draws with an autoencoder of yours"
    )

    def __init__(self, config: ForeignVAEConfig) -> None:
        super().__init__()
        self.config = config
        self.factor = config.factor
        self.latent_channels = config.latent_channels

    def encode(self, pixels: Tensor) -> Tensor:
        raise ValueError(self.MISSING)

    def decode(self, z: Tensor) -> Tensor:
        raise ValueError(self.MISSING)


def build_vae(config: VAEConfig | IdentityVAEConfig | ForeignVAEConfig) -> Autoencoder:
    """The autoencoder that a configuration describes."""
    if isinstance(config, ForeignVAEConfig):
        return ForeignVAE(config)
    if isinstance(config, IdentityVAEConfig):
        return IdentityVAE(config)
    return AutoencoderKL(config)


def sample_moments(moments: Tensor, noise: Tensor) -> Tensor:
    """mean + std * noise: moments [B,2C,h,w], noise [B,C,h,w] -> z [B,C,h,w]."""
    mean, logvar = moments.chunk(2, dim=1)
    return mean + torch.exp(0.5 * logvar.clamp(LOGVAR_MIN, LOGVAR_MAX)) * noise


@torch.no_grad()
def fold_normalisation(vae: AutoencoderKL, mean: Tensor, std: Tensor) -> None:
    """Change the 1x1 quant convolutions so that the latents become (z - mean) / std.

    mean, std: [C], measured on unscaled samples z. What is decoded stays the same; scaling_factor
    becomes 1. One number then describes the latents in every file format.
    """
    channels = vae.latent_channels
    if mean.shape != (channels,) or std.shape != (channels,):
        raise ValueError(
            f"mean {tuple(mean.shape)} and std {tuple(std.shape)}; both must be [{channels}], one "
            "number a latent channel"
        )
    if not (torch.isfinite(mean).all() and torch.isfinite(std).all() and (std > 0).all()):
        raise ValueError(f"mean={mean.tolist()}, std={std.tolist()}; need finite means, stds > 0")
    quant, post = vae.quant_conv, vae.post_quant_conv
    assert quant.bias is not None
    assert post.bias is not None
    mean, std = mean.to(quant.weight), std.to(quant.weight)
    quant.weight[:channels] /= std[:, None, None, None]
    quant.bias[:channels] = (quant.bias[:channels] - mean) / std
    quant.bias[channels:] -= 2.0 * std.log()  # variances scale with 1/std^2
    post.bias += post.weight[:, :, 0, 0] @ mean  # before the weight: it acts on (std z' + mean)
    post.weight *= std[:, None, None]
    vae.config = replace(vae.config, scaling_factor=1.0)
