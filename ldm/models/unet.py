"""Which network predicts the noise?

Ronneberger et al. 2015; Ho et al. 2020; Rombach et al. 2022. Parameter names are diffusers'.
B batch, C channels, h x w latent size, L text positions, D context width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ldm.models.attention import MASKED, SpatialTransformer, TextKeys, TransformerBlock
from ldm.models.layers import TimeEmbedding, as_tuple, group_problems, raise_all, time_features
from ldm.models.resnet import ResnetBlock
from ldm.models.unet_blocks import Condition, DownBlock, LevelShape, MidBlock, UpBlock

# block type -> does it have attention?
DOWN_BLOCK_TYPES = {"CrossAttnDownBlock2D": True, "DownBlock2D": False}
UP_BLOCK_TYPES = {"CrossAttnUpBlock2D": True, "UpBlock2D": False}


@dataclass(frozen=True, kw_only=True)
class UNetConfig:
    """The shape of the network; field names as in diffusers where they exist there.

    num_attention_heads is a number of heads (diffusers calls it attention_head_dim); one number,
    or one a level. cross_attention_dim None: no text, no attn2 modules.
    """

    sample_size: int = 64
    in_channels: int = 4
    out_channels: int = 4
    block_out_channels: tuple[int, ...] = (320, 640, 1280, 1280)
    down_block_types: tuple[str, ...] = ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",)
    up_block_types: tuple[str, ...] = ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3
    layers_per_block: int = 2
    num_attention_heads: int | tuple[int, ...] = 8
    transformer_layers_per_block: int | tuple[int, ...] = 1
    cross_attention_dim: int | None = 768
    norm_num_groups: int = 32
    use_linear_projection: bool = False
    upcast_attention: bool = False
    dropout: float = 0.0
    checkpointing: bool = False

    def __post_init__(self) -> None:
        for name in ("block_out_channels", "down_block_types", "up_block_types"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        levels = len(self.block_out_channels)
        for name in ("num_attention_heads", "transformer_layers_per_block"):
            object.__setattr__(self, name, as_tuple(getattr(self, name), levels))
        raise_all("UNetConfig", _problems(self))

    @property
    def heads(self) -> tuple[int, ...]:
        """Heads at each level."""
        return as_tuple(self.num_attention_heads, len(self.block_out_channels))

    @property
    def depths(self) -> tuple[int, ...]:
        """Transformer blocks an attention module at each level."""
        return as_tuple(self.transformer_layers_per_block, len(self.block_out_channels))

    def level(self, index: int, *, attention: bool) -> LevelShape:
        """What the blocks of level `index` share."""
        return LevelShape(
            time_width=4 * self.block_out_channels[0],
            context_width=self.cross_attention_dim,
            groups=self.norm_num_groups,
            heads=self.heads[index],
            depth=self.depths[index] if attention else 0,
            linear=self.use_linear_projection,
            upcast=self.upcast_attention,
            dropout=self.dropout,
            checkpointing=self.checkpointing,
        )


class UNet(nn.Module):
    """x [B,C,h,w], t [B], context [B,L,D] -> prediction [B,C_out,h,w]."""

    def __init__(self, config: UNetConfig) -> None:
        super().__init__()
        self.config = config
        widths = config.block_out_channels
        last = len(widths) - 1
        self.conv_in = nn.Conv2d(config.in_channels, widths[0], 3, padding=1)
        self.time_embedding = TimeEmbedding(widths[0], 4 * widths[0])

        self.down_blocks = nn.ModuleList()
        skip_widths, width = [widths[0]], widths[0]
        for i, kind in enumerate(config.down_block_types):
            level = config.level(i, attention=DOWN_BLOCK_TYPES[kind])
            halve = i < last
            self.down_blocks.append(
                DownBlock(width, widths[i], config.layers_per_block, level, halve)
            )
            width = widths[i]
            skip_widths += [width] * (config.layers_per_block + halve)

        self.mid_block = MidBlock(width, config.level(last, attention=True))

        self.up_blocks = nn.ModuleList()
        for i, kind in zip(range(last, -1, -1), config.up_block_types, strict=True):
            level = config.level(i, attention=UP_BLOCK_TYPES[kind])
            joined = [skip_widths.pop() for _ in range(config.layers_per_block + 1)]
            self.up_blocks.append(UpBlock(width, widths[i], joined, level, i > 0))
            width = widths[i]

        self.conv_norm_out = nn.GroupNorm(config.norm_num_groups, width, eps=1e-5)
        self.conv_out = nn.Conv2d(width, config.out_channels, 3, padding=1)
        initialise(self)

    def project(self, context: Tensor, mask: Tensor | None = None) -> TextKeys:
        """What `forward` takes in place of a context and its mask, for a text met many times."""
        _check_context(self.config, context)
        pairs = {
            module.attn2: module.attn2.project(context)
            for module in self.modules()
            if isinstance(module, TransformerBlock) and module.attn2 is not None
        }
        return TextKeys(pairs, mask)

    def forward(
        self,
        x: Tensor,
        t: Tensor,
        context: Tensor | TextKeys | None = None,
        mask: Tensor | None = None,
    ) -> Tensor:
        """mask: [B,L] bool, True = attend to this text position; None = to all.

        context: also as the keys that `project` made of it, which hold its mask too.
        """
        check_inputs(self.config, x, context, mask)
        if isinstance(context, TextKeys):
            mask = context.mask
        features = time_features(t.expand(x.shape[0]), self.config.block_out_channels[0])
        time = F.silu(self.time_embedding(features.to(x.dtype)))
        cond = Condition(time, context, None if mask is None else mask_bias(mask, x.dtype))

        h = self.conv_in(x)
        skips = [h]
        for block in self.down_blocks:
            h, new = block(h, cond)
            skips += new
        h = self.mid_block(h, cond)
        for block in self.up_blocks:
            joined = [skips.pop() for _ in range(self.config.layers_per_block + 1)]
            h = block(h, joined, cond, skips[-1].shape[-2:] if skips else None)
        return self.conv_out(F.silu(self.conv_norm_out(h)))


@torch.no_grad()
def initialise(unet: UNet) -> None:
    """Zero what ends a residual branch and the last convolution; the rest stays at torch's default.

    Every block then begins as the identity and the first prediction is 0 (Ho et al. 2020's code).
    """
    ends: list[nn.Module] = [unet.conv_out]
    for module in unet.modules():
        if isinstance(module, ResnetBlock):
            ends.append(module.conv2)
        if isinstance(module, SpatialTransformer):
            ends.append(module.proj_out)
    for end in ends:
        for parameter in end.parameters():
            parameter.zero_()


def mask_bias(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """[B,L] bool -> [B,1,1,L] to add to the scores: 0 where True, MASKED where False."""
    return (~mask.bool()).to(dtype)[:, None, None, :] * MASKED


def check_inputs(
    config: UNetConfig, x: Tensor, context: Tensor | TextKeys | None, mask: Tensor | None
) -> None:
    """Raises ValueError where `UNet.forward` cannot take them."""
    _check_channels(config, x)
    _check_context(config, context, mask)


def _check_channels(config: UNetConfig, x: Tensor) -> None:
    if x.shape[1] != config.in_channels:
        raise ValueError(
            f"x has {x.shape[1]} channels, in_channels={config.in_channels}"
            + ("; give Conditioning.concat" if x.shape[1] < config.in_channels else "")
        )


def _check_context(
    config: UNetConfig, context: Tensor | TextKeys | None, mask: Tensor | None = None
) -> None:
    width = config.cross_attention_dim
    if width is None:
        if context is not None:
            raise ValueError("a context for a network with cross_attention_dim=None; give None")
    elif context is None:
        raise ValueError(f"no context; this network needs one of width {width}")
    elif isinstance(context, TextKeys):
        if mask is not None:
            raise ValueError("a mask beside TextKeys, which hold their own; give it to project()")
    elif context.shape[-1] != width:
        raise ValueError(
            f"a context of width {context.shape[-1]}, cross_attention_dim={width}: another text "
            "encoder than the network was made for"
        )


def _problems(config: UNetConfig) -> list[str]:
    """Everything that is wrong with a configuration."""
    widths, levels = config.block_out_channels, len(config.block_out_channels)
    problems = [
        f"{name}={value}; give a positive number"
        for name in ("sample_size", "in_channels", "out_channels", "layers_per_block")
        if (value := getattr(config, name)) < 1
    ]
    if not 0.0 <= config.dropout < 1.0:
        problems.append(f"dropout={config.dropout}; give a number in [0, 1)")
    if config.cross_attention_dim is not None and config.cross_attention_dim < 1:
        problems.append(f"cross_attention_dim={config.cross_attention_dim}; positive, or null")
    if not widths:
        return [*problems, "block_out_channels is empty; give one width a level"]
    problems += group_problems(widths, config.norm_num_groups)
    if widths[0] % 2:
        problems.append(f"block_out_channels[0]={widths[0]}; must be even (cosines and sines)")
    for name, value, known in (
        ("down_block_types", config.down_block_types, tuple(DOWN_BLOCK_TYPES)),
        ("up_block_types", config.up_block_types, tuple(UP_BLOCK_TYPES)),
        ("num_attention_heads", config.heads, None),
        ("transformer_layers_per_block", config.depths, None),
    ):
        if len(value) != levels:
            problems.append(f"{name} has {len(value)} values; give {levels}, as many as levels")
        odd = sorted({v for v in value if known and v not in known})
        if odd:
            problems.append(f"{name} has {odd}; known: {list(known or ())}")
    if any(depth < 1 for depth in config.depths):
        problems.append(f"transformer_layers_per_block={config.depths}; give positive numbers")
    for width, heads in zip(widths, config.heads, strict=False):
        if heads < 1 or width % heads:
            problems.append(f"{heads} heads do not divide a width of {width}")
    return problems
