"""How does a network run on a CPU when its weights stay as they are for many calls?

A sampling calls one network tens of times. `PreparedUNet` copies its weights once into the layouts
in which they are computed with, and leaves out what only training needs.

B batch, C channels, h x w size, M text positions, T width of the time embedding.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook

from ldm.models.attention import SpatialTransformer, TextKeys, TransformerBlock
from ldm.models.layers import Downsample, Upsample, time_features
from ldm.models.packed import group_norm, obstacle
from ldm.models.prepared_parts import (
    Now,
    Part,
    Resnet,
    Transformer,
    as_built,
    convolution,
    untouched,
)
from ldm.models.resnet import ResnetBlock
from ldm.models.unet import UNet, check_inputs, mask_bias
from ldm.models.unet_blocks import DownBlock, MidBlock, UpBlock

log = logging.getLogger(__name__)

MOST_BYTES = 2**30  # of weights: for as long as a sampling takes there are two copies of them
# what is not called but done again here, so that it must be as it was built
WHOLE = (UNet, DownBlock, MidBlock, UpBlock, SpatialTransformer, TransformerBlock)
NORMS = (nn.GroupNorm, nn.LayerNorm)
Size = tuple[int, int, int]  # B, h, w
Convolve = Callable[[Tensor], Tensor]
Double = Callable[[Tensor, torch.Size], Tensor]


def prepared(network: nn.Module) -> nn.Module | PreparedUNet:
    """The network made ready for many calls, or itself where that cannot be.

    For as long as weights, adapters and hooks stay as they are; the weights are copied at the first
    call. Itself: on another device than a CPU, with gradients, in training, under autocast,
    compiled or patched, with weights beyond MOST_BYTES.
    """
    if type(network) is not UNet or torch.is_grad_enabled() or not _plain(network):
        return network
    weights = list(network.parameters())
    if {w.device.type for w in weights} != {"cpu"} or torch.is_autocast_enabled("cpu"):
        return network
    if sum(w.numel() * w.element_size() for w in weights) > MOST_BYTES:
        return network
    dtypes = {w.dtype for w in weights}
    reason = "weights of several dtypes" if len(dtypes) > 1 else obstacle(dtypes.pop())
    if reason is not None:
        _say(logging.INFO, reason)
        return network
    return PreparedUNet(network)


class PreparedUNet:
    """As UNet, without gradients: x [B,C,h,w], t [B], context or its keys -> [B,C_out,h,w].

    Where rows are at times of their own, the network itself is called.
    """

    def __init__(self, unet: UNet) -> None:
        self._unet = unet
        self._packed: _Packed | None = None
        self._refused = False

    def project(self, context: Tensor, mask: Tensor | None = None) -> TextKeys:
        return self._unet.project(context, mask)

    def __call__(
        self,
        x: Tensor,
        t: Tensor,
        context: Tensor | TextKeys | None = None,
        mask: Tensor | None = None,
    ) -> Tensor:
        check_inputs(self._unet.config, x, context, mask)
        if self._refused or torch.is_grad_enabled() or not bool((t == t[:1]).all()):
            return self._unet(x, t, context, mask)
        if isinstance(context, Tensor):
            context = self._unet.project(context, mask)
        if self._packed is None:
            return self._first(x, t, context)
        return self._packed(x, t, context)

    def _first(self, x: Tensor, t: Tensor, keys: TextKeys | None) -> Tensor:
        """Packs the weights for x's size; what oneDNN refuses, it refuses here."""
        try:
            packed = _Packed(self._unet, (x.shape[0], x.shape[2], x.shape[3]))
            out = packed(x, t, keys)
        except (RuntimeError, MemoryError) as error:
            self._refused = True
            _say(logging.WARNING, str(error).partition("\n")[0])
            return self._unet(x, t, keys)
        self._packed = packed
        return out


class _Packed:
    """The network for rows that are all at one time."""

    def __init__(self, unet: UNet, size: Size) -> None:
        self._unet = unet
        self._resnets: list[ResnetBlock] = []  # those packed, whose biases get the time
        self._conv_in = convolution(unet.conv_in, size)
        self._down: list[tuple[list[list[Part]], list[Convolve]]] = []
        sizes = [size]
        for down in unet.down_blocks:
            pairs, halves = self._pairs(down, sizes[-1]), []
            for downsample in down.downsamplers:
                halves.append(_halving(downsample, sizes[-1]))
                batch, height, width = sizes[-1]
                sizes.append((batch, (height + 1) // 2, (width + 1) // 2))
            self._down.append((pairs, halves))
        middle = unet.mid_block
        first, second = (self._resnet(block, sizes[-1]) for block in middle.resnets)
        self._mid = [first, _transformer(middle.attentions[0], sizes[-1]), second]
        self._up: list[tuple[list[list[Part]], list[Double]]] = []
        for up in unet.up_blocks:
            pairs, doubles = self._pairs(up, sizes.pop()), []
            for upsample in up.upsamplers:
                doubles.append(_doubling(upsample, sizes[-1]))
            self._up.append((pairs, doubles))
        self._conv_out = convolution(unet.conv_out, size)
        self._time_weight, self._time_bias, self._widths = self._time_projections()

    def __call__(self, x: Tensor, t: Tensor, keys: TextKeys | None) -> Tensor:
        now = self._now(x, t, keys)
        h = self._conv_in(x)
        skips = [h]
        for pairs, halves in self._down:
            for pair in pairs:
                h = _through(pair, h, now)
                skips.append(h)
            for halve in halves:
                h = halve(h)
                skips.append(h)
        h = _through(self._mid, h, now)
        for pairs, doubles in self._up:
            for pair in pairs:
                h = _through(pair, torch.cat((h, skips.pop()), dim=1), now)
            for double in doubles:
                h = double(h, skips[-1].shape[-2:])
        return self._conv_out(F.silu(group_norm(self._unet.conv_norm_out, h))).contiguous()

    def _now(self, x: Tensor, t: Tensor, keys: TextKeys | None) -> Now:
        features = time_features(t[:1], self._unet.config.block_out_channels[0])
        time = F.silu(self._unet.time_embedding(features.to(x.dtype)))
        biases: tuple[Tensor, ...] = ()
        if self._widths:
            added = F.linear(time, self._time_weight, self._time_bias)[0]
            biases = added.split(self._widths)
        mask = None if keys is None else keys.mask
        return Now(time, biases, keys, None if mask is None else mask_bias(mask, x.dtype))

    def _pairs(self, block: nn.Module, size: Size) -> list[list[Part]]:
        """Residual blocks, each with the attention after it."""
        pairs = [[self._resnet(resnet, size)] for resnet in block.resnets]
        for pair, attention in zip(pairs, block.attentions, strict=False):
            pair.append(_transformer(attention, size))
        return pairs

    def _resnet(self, block: nn.Module, size: Size) -> Part:
        if not isinstance(block, ResnetBlock) or not as_built(block):
            return lambda x, now: block(x, now.time.expand(x.shape[0], -1))
        self._resnets.append(block)
        return Resnet(block, size, len(self._resnets) - 1)

    def _time_projections(self) -> tuple[Tensor, Tensor, list[int]]:
        """All blocks' projections of the time as one, with the biases they are added to."""
        layers = [block.time_emb_proj for block in self._resnets]
        if not layers:
            return torch.empty(0), torch.empty(0), []
        biases = [block.conv1.bias + block.time_emb_proj.bias for block in self._resnets]
        weight = torch.cat([layer.weight for layer in layers])
        return weight, torch.cat(biases), [layer.out_features for layer in layers]


def _through(parts: list[Part], h: Tensor, now: Now) -> Tensor:
    for part in parts:
        h = part(h, now)
    return h


def _halving(module: nn.Module, size: Size) -> Convolve:
    if not isinstance(module, Downsample) or module.asymmetric or not as_built(module):
        return module
    return convolution(module.conv, size)


def _doubling(module: nn.Module, size: Size) -> Double:
    if not isinstance(module, Upsample) or not as_built(module):
        return module
    convolve = convolution(module.conv, size)
    return lambda h, size: convolve(F.interpolate(h, size=size, mode="nearest"))


def _transformer(module: nn.Module, size: Size) -> Part:
    if isinstance(module, SpatialTransformer):
        return Transformer(module, size)
    return lambda x, now: module(x, now.keys, now.bias)


def _plain(network: UNet) -> bool:
    """Whether what is done again here is all that the network's own blocks do."""
    if _has_any_global_hook() or any(module.training for module in network.modules()):
        return False
    blocks = [*network.down_blocks, network.mid_block, *network.up_blocks]
    wholes = [module for module in network.modules() if isinstance(module, WHOLE)]
    norms = [child for whole in wholes for name, child in whole.named_children() if "norm" in name]
    kinds = all(isinstance(b, WHOLE) for b in blocks) and all(type(n) in NORMS for n in norms)
    return kinds and all(map(untouched, [*wholes, *norms]))


@cache
def _say(level: int, reason: str) -> None:
    """Once a reason: every batch is another sampling."""
    log.log(level, "the network is not prepared for many calls: %s", reason)
