"""Is the UNet the network it claims to be: size, start, inputs, checkpointing, hooks?"""

from __future__ import annotations

from collections import Counter
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from ldm.models.unet import UNet, UNetConfig

CROSS = {
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
}


def small(**changes: Any) -> UNetConfig:
    fields: dict[str, Any] = {
        **CROSS,
        "block_out_channels": (16, 32),
        "layers_per_block": 1,
        "num_attention_heads": 4,
        "cross_attention_dim": 12,
        "norm_num_groups": 8,
    }
    return UNetConfig(**{**fields, **changes})


def built(config: UNetConfig) -> UNet:
    """With small random values everywhere: at its start the network answers 0 to everything."""
    torch.manual_seed(0)
    unet = UNet(config)
    with torch.no_grad():
        for value in unet.parameters():
            value.add_(0.05 * torch.randn_like(value))
    return unet


def inputs(rows: int = 2, size: int = 8, dtype: torch.dtype = torch.float32) -> tuple[Tensor, ...]:
    rng = torch.Generator().manual_seed(1)
    x = torch.randn(rows, 4, size, size, generator=rng, dtype=dtype)
    t = torch.linspace(1.0, 900.0, rows, dtype=dtype)
    return x, t, torch.randn(rows, 5, 12, generator=rng, dtype=dtype)


# --- size ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "parameters"),
    [
        ({}, 859_520_964),  # SD 1
        ({"in_channels": 9}, 859_535_364),  # SD 1.5 inpainting
        (  # SD 2
            {
                "cross_attention_dim": 1024,
                "num_attention_heads": (5, 10, 20, 20),
                "use_linear_projection": True,
            },
            865_910_724,
        ),
        ({"cross_attention_dim": 1280}, 872_300_484),  # LDM 1.4B
    ],
)
def test_published_sizes(changes: dict[str, Any], parameters: int) -> None:
    with torch.device("meta"):
        unet = UNet(UNetConfig(**changes))
    assert sum(value.numel() for value in unet.parameters()) == parameters
    assert len(unet.state_dict()) == 686


def test_sd1_counts_of_norms_and_their_eps() -> None:
    with torch.device("meta"):
        unet = UNet(UNetConfig())
    eps = Counter(m.eps for m in unet.modules() if isinstance(m, nn.GroupNorm))
    assert eps == {1e-5: 45, 1e-6: 16}
    assert {m.eps for m in unet.modules() if isinstance(m, nn.LayerNorm)} == {1e-5}


@pytest.mark.parametrize(
    ("key", "shape"),
    [
        ("down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k.weight", (640, 768)),
        ("down_blocks.0.attentions.1.transformer_blocks.0.attn1.to_out.0.bias", (320,)),
        ("mid_block.attentions.0.transformer_blocks.0.ff.net.0.proj.weight", (10240, 1280)),
        ("mid_block.attentions.0.transformer_blocks.0.ff.net.2.weight", (1280, 5120)),
        ("up_blocks.3.resnets.2.conv_shortcut.weight", (320, 640, 1, 1)),
        ("up_blocks.1.resnets.2.norm1.weight", (1920,)),
        ("up_blocks.0.upsamplers.0.conv.weight", (1280, 1280, 3, 3)),
        ("down_blocks.2.downsamplers.0.conv.bias", (1280,)),
        ("down_blocks.3.resnets.1.time_emb_proj.weight", (1280, 1280)),
        ("time_embedding.linear_1.weight", (1280, 320)),
        ("conv_norm_out.weight", (320,)),
    ],
)
def test_sd1_names_and_shapes(key: str, shape: tuple[int, ...]) -> None:
    with torch.device("meta"):
        state = UNet(UNetConfig()).state_dict()
    assert tuple(state[key].shape) == shape


# --- start -----------------------------------------------------------------------------------


def test_starts_by_answering_zero_and_with_identity_blocks() -> None:
    torch.manual_seed(0)
    unet = UNet(small())
    assert (unet(*inputs()) == 0).all()
    x = torch.randn(2, 16, 8, 8)
    block = unet.down_blocks[0]
    assert_close(block.resnets[0](x, torch.randn(2, 64)), x, rtol=0, atol=0)
    assert_close(block.attentions[0](x, torch.randn(2, 5, 12)), x, rtol=0, atol=0)


def test_only_the_ends_of_residual_branches_start_at_zero() -> None:
    unet = UNet(small())
    zero = {key.rsplit(".", 1)[0] for key, value in unet.named_parameters() if not value.any()}
    norms = {key for key, m in unet.named_modules() if isinstance(m, nn.GroupNorm | nn.LayerNorm)}
    ends = {key for key, _ in unet.named_modules() if key.endswith((".conv2", ".proj_out"))}
    assert zero - norms == ends | {"conv_out"}  # norms start with bias 0, weight 1


def test_every_parameter_learns() -> None:
    unet = built(small())
    unet(*inputs()).square().mean().backward()
    still = [key for key, value in unet.named_parameters() if value.grad is None]
    assert still == []
    flat = [key for key, value in unet.named_parameters() if not value.grad.any()]
    assert flat == []


# --- inputs ----------------------------------------------------------------------------------


def test_rows_do_not_see_each_other() -> None:
    unet = built(small()).double()
    x, t, context = inputs(3, dtype=torch.float64)
    alone = torch.cat([unet(x[i : i + 1], t[i : i + 1], context[i : i + 1]) for i in range(3)])
    assert_close(unet(x, t, context), alone, rtol=0, atol=1e-12)


def test_one_time_for_all_rows() -> None:
    unet = built(small())
    x, _, context = inputs()
    each = unet(x, torch.tensor([7.0, 7.0]), context)
    assert_close(unet(x, torch.tensor(7.0), context), each, rtol=0, atol=0)
    assert (unet(x, torch.tensor([7.0, 700.0]), context)[1] - each[1]).abs().max() > 1e-4


@pytest.mark.parametrize("use_linear_projection", [False, True])
def test_masked_positions_do_not_matter_and_dropping_them_is_the_same(
    use_linear_projection: bool,
) -> None:
    unet = built(small(use_linear_projection=use_linear_projection)).double()
    x, t, context = inputs(dtype=torch.float64)
    mask = torch.tensor([[True, True, True, False, False]]).expand(2, -1)
    got = unet(x, t, context, mask)
    other = torch.where(mask[..., None], context, 3.0)
    assert_close(unet(x, t, other, mask), got, rtol=0, atol=1e-12)
    assert_close(unet(x, t, context[:, :3]), got, rtol=0, atol=1e-12)
    assert (unet(x, t, other) - unet(x, t, context)).abs().max() > 1e-4


def test_a_row_with_every_position_masked_is_finite() -> None:
    unet = built(small())
    x, t, context = inputs()
    mask = torch.tensor([[False] * 5, [True] * 5])
    assert torch.isfinite(unet(x, t, context, mask)).all()


@pytest.mark.parametrize("size", [(8, 8), (5, 7), (1, 3)])
def test_any_size_comes_back(size: tuple[int, int]) -> None:
    unet = built(small())
    _, t, context = inputs()
    assert unet(torch.randn(2, 4, *size), t, context).shape == (2, 4, *size)


def test_channels_last_gives_the_same() -> None:
    unet = built(small())
    x, t, context = inputs()
    expected = unet(x, t, context)
    unet.to(memory_format=torch.channels_last)
    got = unet(x.contiguous(memory_format=torch.channels_last), t, context)
    assert_close(got, expected, rtol=0, atol=1e-5)  # fp32 sums in another order


@pytest.mark.parametrize(
    ("changes", "x", "context", "words"),
    [
        ({}, (2, 9, 8, 8), (2, 5, 12), "x has 9 channels, in_channels=4"),
        ({"in_channels": 9}, (2, 4, 8, 8), (2, 5, 12), "concat"),
        ({}, (2, 4, 8, 8), None, "no context; this network needs one of width 12"),
        ({}, (2, 4, 8, 8), (2, 5, 16), "width 16, cross_attention_dim=12"),
        ({"cross_attention_dim": None}, (2, 4, 8, 8), (2, 5, 12), "cross_attention_dim=None"),
    ],
)
def test_wrong_inputs_say_what_is_wrong(
    changes: dict[str, Any],
    x: tuple[int, ...],
    context: tuple[int, ...] | None,
    words: str,
) -> None:
    unet = UNet(small(**changes))
    told = None if context is None else torch.zeros(context)
    with pytest.raises(ValueError, match=words):
        unet(torch.zeros(x), torch.zeros(2), told)


# --- variants --------------------------------------------------------------------------------


def test_unconditional_has_no_text_modules_and_trains() -> None:
    unet = built(small(cross_attention_dim=None))
    text = {"attn2", "norm2"}  # in transformer blocks; residual blocks have a norm2 of their own
    blocks = [key for key in unet.state_dict() if "transformer_blocks" in key]
    assert [key for key in blocks if text & set(key.split("."))] == []
    x, t, _ = inputs()
    optimizer = torch.optim.Adam(unet.parameters(), lr=1e-3)
    losses = []
    for _ in range(8):
        loss = (unet(x, t) - x).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]
    assert all(value.grad is not None for value in unet.parameters())


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_checkpointing_changes_no_gradient(dropout: float) -> None:
    gradients = []
    for checkpointing in (False, True):
        unet = built(small(checkpointing=checkpointing, dropout=dropout)).train()
        torch.manual_seed(3)  # the dropout masks
        loss = unet(*inputs()).square().mean()
        loss.backward()
        gradients.append([loss] + [value.grad for value in unet.parameters()])
    for plain, recomputed in zip(*gradients, strict=True):
        assert_close(recomputed, plain, rtol=0, atol=0)


@pytest.mark.parametrize(("checkpointing", "runs"), [(False, 1), (True, 2)])
def test_checkpointing_runs_the_blocks_again_in_the_backward_only(
    checkpointing: bool, runs: int
) -> None:
    unet = built(small(checkpointing=checkpointing))
    calls: Counter[str] = Counter()
    watched = [name for name, _ in unet.named_modules() if name.endswith((".conv1", ".to_v"))]
    for name in watched:
        hook = partial(lambda name, *_: calls.update([name]), name)
        unet.get_submodule(name).register_forward_hook(hook)
    with torch.no_grad():
        unet(*inputs())
    assert calls == dict.fromkeys(watched, 1)
    calls.clear()
    unet(*inputs()).sum().backward()
    assert calls == dict.fromkeys(watched, runs)


def test_dropout_acts_in_training_only() -> None:
    unet = built(small(dropout=0.5))
    torch.manual_seed(0)
    first, second = unet(*inputs()), unet(*inputs())
    assert (first - second).abs().max() > 1e-4
    unet.eval()
    assert_close(unet(*inputs()), unet(*inputs()), rtol=0, atol=0)


@pytest.mark.parametrize("name", ["to_q", "to_k", "to_v", "to_out.0", "proj_in", "net.2"])
def test_each_projection_can_be_hooked(name: str) -> None:
    """Adapters change what goes in (hypernetworks) and what comes out (LoRA) of these modules."""
    unet = built(small())
    before = unet(*inputs())
    module = unet.mid_block.get_submodule(f"attentions.0.{place(name)}")
    handle = module.register_forward_hook(lambda module, args, out: out + 0.5)
    after_output = unet(*inputs())
    handle.remove()
    handle = module.register_forward_pre_hook(lambda module, args: (args[0] * 1.5,))
    after_input = unet(*inputs())
    handle.remove()
    assert (after_input - before).abs().max() > 1e-5
    if name != "to_k":  # a constant on every key changes no softmax
        assert (after_output - before).abs().max() > 1e-5
    assert_close(unet(*inputs()), before, rtol=0, atol=0)


def place(name: str) -> str:
    folder = {"proj_in": "", "net.2": "transformer_blocks.0.ff."}
    return folder.get(name, "transformer_blocks.0.attn2.") + name


# --- configuration ---------------------------------------------------------------------------


def test_one_error_names_every_problem() -> None:
    with pytest.raises(ValueError, match="UNetConfig") as caught:
        UNetConfig(
            in_channels=0,
            block_out_channels=(48, 64),
            down_block_types=("CrossAttnDownBlock2D", "AttnDownBlock2D"),
            up_block_types=("UpBlock2D",),
            num_attention_heads=(5, 8, 8),
            transformer_layers_per_block=0,
            dropout=1.5,
        )
    text = str(caught.value)
    for words in (
        "in_channels=0",
        "block_out_channels has [48], not positive multiples of norm_num_groups=32",
        "down_block_types has ['AttnDownBlock2D']; known: ['CrossAttnDownBlock2D', 'DownBlock2D']",
        "up_block_types has 1 values; give 2",
        "num_attention_heads has 3 values; give 2",
        "5 heads do not divide a width of 48",
        "transformer_layers_per_block=(0, 0)",
        "dropout=1.5",
    ):
        assert words in text, words


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"block_out_channels": ()}, "block_out_channels is empty"),
        ({"cross_attention_dim": 0}, "cross_attention_dim=0"),
        ({"norm_num_groups": 0}, "norm_num_groups=0"),
        ({"block_out_channels": (15, 30), "norm_num_groups": 5}, "must be even"),
        ({"sample_size": 0}, "sample_size=0"),
    ],
)
def test_other_problems(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        small(**changes)


def test_lists_and_single_numbers_mean_the_same() -> None:
    listed = small(block_out_channels=[16, 32], num_attention_heads=[4, 4])
    assert listed == small()
    assert listed.num_attention_heads == (4, 4)
