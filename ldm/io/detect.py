"""Which network do the names and shapes of a file's tensors belong to?

Names are without the prefix of their part (compvis.UNET, VAE, TEXT). The answer is checked: the
network it describes has exactly these names and shapes. Not in shapes, and therefore asked for or
left at the default: heads, groups of the norms, sample size, upcast_attention, VAE scale.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from ldm.io.compvis import (
    Shape,
    bert_file_shapes,
    unet_file_shapes,
    vae_file_shape,
    vae_file_shapes,
)
from ldm.io.diffusers_config import (
    diffusers_unet_config,
    diffusers_unet_json,
    diffusers_vae_config,
    diffusers_vae_json,
)
from ldm.io.kinds import kind_of, kind_words
from ldm.models.text.bert import LDMBertConfig
from ldm.models.unet import UNetConfig
from ldm.models.vae import VAEConfig

__all__ = [
    "clip_heads",
    "compvis_bert_config",
    "compvis_unet_config",
    "compvis_vae_config",
    "diffusers_unet_config",
    "diffusers_unet_json",
    "diffusers_vae_config",
    "diffusers_vae_json",
]

Shapes = Mapping[str, Shape]

SD1_HEADS, SD2_HEAD_DIM = 8, 64
SDXL_VECTORS = (2816, 2560)  # what its base and its refiner are told beside the text
UNET_MARKS = (
    (r"^position_net\.|\.fuser\.", "GLIGEN, which is told where things are"),
    (r"time_(stack|mix|embed_blocks)|temporal", "a video model"),
    (r"\.qkv\.weight$", "an OpenAI-style UNet without text, its attention of another form"),
    (r"^(down_blocks|conv_in)\.", "a UNet under diffusers' names; its config.json describes it"),
)
VAE_PARTS = ("encoder.", "decoder.", "quant_conv.", "post_quant_conv.")
HEAD_DIM = 64  # of every CLIP text model, and of LDM-BERT


def compvis_unet_config(
    shapes: Shapes, *, heads: int | None = None, head_dim: int | None = None, groups: int = 32
) -> UNetConfig:
    """The UNet that has these names and shapes.

    heads, head_dim: for all levels; by default 8 heads with 1x1 convolutions as projections (SD 1,
    LDM), heads of 64 with linear ones (SD 2). upcast_attention stays False: SD 2's 768-px
    v-prediction models need it. Raises ValueError for any other network.
    """
    _refuse_other_unets(shapes)
    channels = _size(shapes, "input_blocks.0.0.weight", 1)
    levels, layers = _levels(shapes)
    widths = tuple(_size(shapes, f"{level[0]}.0.out_layers.3.weight") for level in levels)
    ups = [f"output_blocks.{i * (layers + 1)}" for i in range(len(levels))]  # deepest first
    linear = len(shapes[_have(shapes, "middle_block.1.proj_in.weight")]) == 2
    if heads is None and head_dim is None:
        heads, head_dim = (None, SD2_HEAD_DIM) if linear else (SD1_HEADS, None)
    text = "middle_block.1.transformer_blocks.0.attn2.to_k.weight"
    depths = [
        _depth(shapes, level[0]) or _depth(shapes, up)
        for level, up in zip(levels, reversed(ups), strict=True)
    ]
    depths[-1] = _depth(shapes, "middle_block")
    config = UNetConfig(
        in_channels=channels,
        out_channels=_size(shapes, "out.2.weight"),
        block_out_channels=widths,
        down_block_types=tuple(
            "CrossAttnDownBlock2D" if _depth(shapes, level[0]) else "DownBlock2D"
            for level in levels
        ),
        up_block_types=tuple(
            "CrossAttnUpBlock2D" if _depth(shapes, up) else "UpBlock2D" for up in ups
        ),
        layers_per_block=layers,
        num_attention_heads=_heads(widths, heads, head_dim),
        transformer_layers_per_block=tuple(depth or 1 for depth in depths),
        cross_attention_dim=_size(shapes, text, 1) if text in shapes else None,
        norm_num_groups=groups,
        use_linear_projection=linear,
    )
    _check("the UNet", shapes, unet_file_shapes(config))
    return config


def compvis_vae_config(shapes: Shapes, *, groups: int = 32) -> VAEConfig:
    """The KL autoencoder that has these names and shapes; scaling_factor is the default.

    What lies beside its four parts (a training loss with its discriminator) is not looked at. The
    middle's attention may have 2-, 3- or 4-D weights. Raises ValueError for any other network.
    """
    kind = kind_of(shapes)
    if kind != "vae":
        raise ValueError(f"expected a KL autoencoder (VAE), this is {kind_words(kind)}")
    if any(re.search(r"\.(down|up)\.\d+\.attn\.", name) for name in shapes):
        raise ValueError(
            "a VAE with attention in its levels (attn_resolutions); only attention in the middle "
            "is built here"
        )
    levels = _count(shapes, "encoder.down.{}.block.0.conv1.weight")
    widths = [_size(shapes, f"encoder.down.{i}.block.0.conv1.weight") for i in range(levels)]
    config = VAEConfig(
        in_channels=_size(shapes, "encoder.conv_in.weight", 1),
        out_channels=_size(shapes, "decoder.conv_out.weight"),
        block_out_channels=tuple(widths),
        layers_per_block=_count(shapes, "encoder.down.0.block.{}.conv1.weight"),
        latent_channels=_size(shapes, "decoder.conv_in.weight", 1),
        norm_num_groups=groups,
        mid_block_add_attention="encoder.mid.attn_1.q.weight" in shapes,
    )
    parts = {name: shape for name, shape in shapes.items() if name.startswith(VAE_PARTS)}
    found = {name: vae_file_shape(name, shape) for name, shape in parts.items()}
    _check("the VAE", found, vae_file_shapes(config))
    return config


def compvis_bert_config(shapes: Shapes, *, head_dim: int | None = None) -> LDMBertConfig:
    """The LDM-BERT encoder that has these names and shapes.

    head_dim: by default 64, as released ones have, or one head where there is less. Raises
    ValueError for any other network.
    """
    inner = _size(shapes, "transformer.attn_layers.layers.0.1.to_q.weight")
    head_dim = min(HEAD_DIM, inner) if head_dim is None else head_dim
    if head_dim < 1 or inner % head_dim:
        raise ValueError(f"head_dim={head_dim} does not divide an inner width of {inner}")
    config = LDMBertConfig(
        vocab_size=_size(shapes, "transformer.token_emb.weight"),
        max_tokens=_size(shapes, "transformer.pos_emb.emb.weight"),
        width=_size(shapes, "transformer.token_emb.weight", 1),
        num_layers=_count(shapes, "transformer.attn_layers.layers.{}.0.weight") // 2,
        num_heads=inner // head_dim,
        head_dim=head_dim,
        ff_width=_size(shapes, "transformer.attn_layers.layers.1.1.net.0.0.weight"),
    )
    _check("the text encoder (LDM-BERT)", shapes, bert_file_shapes(config))
    return config


def clip_heads(width: int) -> int:
    """Heads of a CLIP text model: 64 wide in every one published (768: 12, 1024: 16, 1280: 20).

    The activation is not in shapes either; it follows from the layout of the file: OpenAI's (SD 1)
    have quick_gelu, OpenCLIP's (resblocks; SD 2) gelu.
    """
    if width < 1 or width % HEAD_DIM:
        raise ValueError(f"a CLIP text model of width {width}; must be a multiple of {HEAD_DIM}")
    return width // HEAD_DIM


def _refuse_other_unets(shapes: Shapes) -> None:
    kind = kind_of(shapes)
    if kind == "sdxl" and shapes.get("label_emb.0.0.weight", (0,))[-1] not in SDXL_VECTORS:
        kind = "unclip"  # a vector of another width: that of a picture
    mark = next((words for pattern, words in UNET_MARKS if _any(pattern, shapes)), None)
    if kind not in ("unet", "unknown") or mark:
        raise ValueError(
            "expected the UNet of a Stable Diffusion 1 or 2 model or a text-to-image LDM, this is "
            + (mark if mark and kind in ("unet", "unknown") else kind_words(kind))
        )


def _any(pattern: str, names: Iterable[str]) -> bool:
    return any(re.search(pattern, name) for name in names)


def _levels(shapes: Shapes) -> tuple[list[list[str]], int]:
    """The residual blocks of each level on the way down, and how many a level has."""
    present = {".".join(name.split(".")[:2]) for name in shapes}
    levels: list[list[str]] = [[]]
    block = 1  # block 0 is the first convolution
    while f"input_blocks.{block}" in present:
        if f"input_blocks.{block}.0.op.weight" in shapes:
            levels.append([])
        else:
            levels[-1].append(f"input_blocks.{block}")
        block += 1
    counts = [len(level) for level in levels]
    if len(set(counts)) > 1 or counts[0] < 1:
        raise ValueError(
            f"a UNet with {counts} residual blocks at its levels; only networks with as many at "
            "each, and with convolutions between them (input_blocks.N.0.op), are built here"
        )
    return levels, counts[0]


def _depth(shapes: Shapes, block: str) -> int:
    """Transformer blocks in the attention of a block; 0 without attention."""
    return _count(shapes, block + ".1.transformer_blocks.{}.attn1.to_q.weight")


def _count(shapes: Shapes, pattern: str) -> int:
    """How many numbers from 0 on, without a gap, make a name when put into the pattern."""
    count = 0
    while pattern.format(count) in shapes:
        count += 1
    return count


def _heads(widths: tuple[int, ...], heads: int | None, head_dim: int | None) -> tuple[int, ...]:
    """Heads at each level. One of the two is given, or the other."""
    if heads is not None and head_dim is not None:
        raise ValueError(f"heads={heads} and head_dim={head_dim}; give one of them")
    name, number = ("heads", heads) if head_dim is None else ("head_dim", head_dim)
    assert number is not None
    if number < 1 or any(width % number for width in widths):
        raise ValueError(
            f"{name}={number} does not divide the widths {widths}; give the heads or head_dim that "
            "the network was trained with, shapes do not tell"
        )
    return tuple(number if head_dim is None else width // number for width in widths)


def _have(shapes: Shapes, name: str) -> str:
    if name not in shapes:
        raise ValueError(
            f"no {name}, so no network that is built here: this is {kind_words(kind_of(shapes))}"
        )
    return name


def _size(shapes: Shapes, name: str, axis: int = 0) -> int:
    shape = shapes[_have(shapes, name)]
    if len(shape) <= axis:
        raise ValueError(f"{name} has shape {shape}; expected {axis + 1} axes or more")
    return shape[axis]


def _check(part: str, found: Shapes, expected: Shapes) -> None:
    """Names and shapes are exactly those of the network that was read out of them."""
    missing = sorted(expected.keys() - found.keys())
    extra = sorted(found.keys() - expected.keys())
    others = [
        f"{name}: {found[name]}, expected {shape}"
        for name, shape in expected.items()
        if name in found and tuple(found[name]) != shape
    ]
    if missing or extra or others:
        raise ValueError(
            f"{part} is incomplete, or a network that is not built here: by its sizes, "
            f"{len(missing)} tensors are missing {missing[:3]}, {len(extra)} are unexpected "
            f"{extra[:3]}, {len(others)} have another shape {others[:3]}"
        )
