"""Does a prepared network compute what the network does, for as long as it is that network?"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from ldm.adapters.attach import attached
from ldm.adapters.hypernetwork import Hypernetwork, HypernetworkConfig
from ldm.adapters.lora import LoRA, LoRAConfig
from ldm.models import prepared as preparing
from ldm.models.packed import obstacle
from ldm.models.prepared import PreparedUNet, prepared
from ldm.models.unet import UNet, UNetConfig

CPU_HAS_BF16 = obstacle(torch.bfloat16) is None
BOTH = [
    torch.float32,
    pytest.param(
        torch.bfloat16, marks=pytest.mark.skipif(not CPU_HAS_BF16, reason="no bf16 instructions")
    ),
]
MASK = torch.tensor([[True, True, True, False, False], [True, False, True, True, True]])
CLOSE = {torch.float32: 1e-5, torch.bfloat16: 0.03}  # of the largest value


def built(**changes: Any) -> UNet:
    """A small network with random values everywhere: a fresh one answers 0 to everything."""
    fields: dict[str, Any] = {
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
        "block_out_channels": (32, 64),
        "layers_per_block": 1,
        "num_attention_heads": 4,
        "cross_attention_dim": 12,
        "norm_num_groups": 8,
    }
    torch.manual_seed(0)
    unet = UNet(UNetConfig(**{**fields, **changes})).eval()
    with torch.no_grad():
        for value in unet.parameters():
            value.add_(0.05 * torch.randn_like(value))
    return unet


def inputs(
    dtype: torch.dtype = torch.float32, *, rows: int = 2, size: tuple[int, int] = (8, 8)
) -> tuple[Tensor, Tensor, Tensor]:
    rng = torch.Generator().manual_seed(1)
    x = torch.randn(rows, 4, *size, generator=rng)
    context = torch.randn(rows, 5, 12, generator=rng)
    return x.to(dtype), torch.full((rows,), 300.0), context.to(dtype)


def agrees(unet: UNet, dtype: torch.dtype, *given: Any) -> None:
    """The prepared network's answer is the network's, and does come from the packed weights."""
    ready = prepared(unet)
    assert isinstance(ready, PreparedUNet)
    out, expected = ready(*given), unet(*given)
    assert ready._packed is not None
    assert out.dtype == expected.dtype
    assert out.is_contiguous()
    assert_close(out, expected, rtol=0, atol=CLOSE[dtype] * expected.abs().max().item())


@pytest.fixture(autouse=True)
def without_gradients() -> Iterator[None]:
    with torch.inference_mode():
        yield


# --- the same numbers -------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", BOTH)
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"use_linear_projection": True},
        {"upcast_attention": True},
        {"layers_per_block": 2, "transformer_layers_per_block": 2},
        {"norm_num_groups": 2},  # wide groups: their norm stays on channels-last
        {"block_out_channels": (32,), "down_block_types": ("CrossAttnDownBlock2D",)}
        | {"up_block_types": ("CrossAttnUpBlock2D",)},
    ],
    ids=["plain", "linear", "upcast", "deep", "wide groups", "one level"],
)
def test_the_answer_is_the_networks(changes: dict[str, Any], dtype: torch.dtype) -> None:
    agrees(built(**changes).to(dtype), dtype, *inputs(dtype))


@pytest.mark.parametrize("dtype", BOTH)
def test_with_a_mask_and_with_keys_made_before(dtype: torch.dtype) -> None:
    unet = built().to(dtype)
    x, t, context = inputs(dtype)
    agrees(unet, dtype, x, t, context, MASK)
    agrees(unet, dtype, x, t, unet.project(context, MASK))
    masked, unmasked = prepared(unet)(x, t, context, MASK), prepared(unet)(x, t, context)
    assert not torch.equal(masked, unmasked)


@pytest.mark.parametrize("size", [(1, 1), (2, 2), (5, 7), (16, 8)])
def test_any_size(size: tuple[int, int]) -> None:
    agrees(built(), torch.float32, *inputs(size=size))


def test_without_text() -> None:
    x, t, _ = inputs()
    agrees(built(cross_attention_dim=None), torch.float32, x, t)


def test_another_size_and_number_of_rows_than_the_first() -> None:
    unet, ready = built(), prepared(built())
    for rows, size in ((2, (8, 8)), (4, (8, 8)), (1, (4, 12)), (2, (8, 8))):
        given = inputs(rows=rows, size=size)
        assert_close(ready(*given), unet(*given), rtol=1e-5, atol=1e-5)


def test_the_same_bits_again_and_whatever_other_rows_hold() -> None:
    ready = prepared(built())
    x, t, context = inputs()
    out = ready(x, t, context)
    assert torch.equal(out, ready(x, t, context))
    assert torch.equal(out, prepared(built())(x, t, context))
    other = torch.cat([x[:1], -x[1:]])
    assert torch.equal(out[0], ready(other, t, context)[0])
    assert not torch.equal(out[1], ready(other, t, context)[1])


def test_rows_at_times_of_their_own() -> None:
    unet = built()
    x, _, context = inputs()
    t = torch.tensor([1.0, 900.0])
    assert torch.equal(prepared(unet)(x, t, context), unet(x, t, context))


def test_the_time_is_heeded() -> None:
    ready = prepared(built())
    x, t, context = inputs()
    assert not torch.equal(ready(x, t, context), ready(x, t + 1, context))


def test_errors_are_the_networks() -> None:
    ready = prepared(built())
    x, t, context = inputs()
    with pytest.raises(ValueError, match="in_channels=4"):
        ready(x[:, :3], t, context)
    with pytest.raises(ValueError, match="cross_attention_dim=12"):
        ready(x, t, context[..., :5])
    with pytest.raises(ValueError, match="no context"):
        ready(x, t)


# --- adapters ---------------------------------------------------------------------------------


def lora(unet: UNet, *targets: str) -> LoRA:
    adapter = LoRA(unet, LoRAConfig(rank=4, alpha=4.0, targets=targets)).eval()
    for value in adapter.parameters():
        value.normal_(std=0.3)
    return adapter


def hypernetwork(_: UNet) -> Hypernetwork:
    adapter = Hypernetwork((12, 32, 64), HypernetworkConfig()).eval()
    for value in adapter.parameters():
        value.normal_(std=0.3)
    return adapter


@pytest.mark.parametrize("linear", [False, True])
@pytest.mark.parametrize(
    "adapter",
    [
        lambda unet: lora(unet, "*.attentions.*"),
        lambda unet: lora(unet, "*.to_q", "*.to_k", "*.to_v", "*.to_out.0"),
        lambda unet: lora(unet, "*.proj_in"),
        lambda unet: lora(unet, "*"),
        hypernetwork,
    ],
    ids=["transformers", "attention", "ends", "everything", "hypernetwork"],
)
def test_an_adapter_is_followed(adapter: Callable[[UNet], Any], linear: bool) -> None:
    unet = built(use_linear_projection=linear)
    given = inputs()
    bare = prepared(unet)(*given)
    change = adapter(unet)
    with attached(unet, change, strength=0.5):
        agrees(unet, torch.float32, *given)
        half = prepared(unet)(*given)
        change.set_strength(1.0)
        whole = prepared(unet)(*given)
        agrees(unet, torch.float32, *given)
    assert torch.equal(prepared(unet)(*given), bare)
    assert not torch.equal(half, bare)
    assert not torch.equal(half, whole)


def test_changed_weights_are_followed_by_the_next_preparation() -> None:
    unet = built()
    given = inputs()
    before = prepared(unet)(*given)
    for value in unet.parameters():
        value.data = value.data * 1.1  # as an exchange with an average: another storage
    agrees(unet, torch.float32, *given)
    assert not torch.equal(before, prepared(unet)(*given))


@pytest.mark.parametrize(
    "path",
    [
        "conv_in",
        "down_blocks.0.resnets.0.conv1",
        "down_blocks.0.resnets.0.time_emb_proj",
        "down_blocks.0.downsamplers.0",
        "mid_block.attentions.0.transformer_blocks.0.ff.net.0",
        "mid_block.resnets.1",
        "time_embedding",
        "up_blocks.0.upsamplers.0.conv",
        "conv_out",
    ],
)
def test_a_hook_anywhere_is_called(path: str) -> None:
    unet = built()
    unet.get_submodule(path).register_forward_hook(lambda module, args, out: 1.5 * out)
    agrees(unet, torch.float32, *inputs())


def test_a_layer_that_was_exchanged_is_called() -> None:
    class Doubled(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return 2 * super().forward(x)

    unet = built()
    feed_forward = unet.mid_block.attentions[0].transformer_blocks[0].ff
    feed_forward.net[2] = Doubled(feed_forward.net[2].in_features, 64).eval()
    agrees(unet, torch.float32, *inputs())


# --- when it stays as it is -------------------------------------------------------------------


def test_a_block_that_is_hooked_is_not_taken_apart() -> None:
    for path in ("", "mid_block", "down_blocks.0.attentions.0", "conv_norm_out"):
        unet = built()
        unet.get_submodule(path).register_forward_hook(lambda module, args, out: out)
        assert prepared(unet) is unet
    unet = built()
    unet.forward = unet.forward  # type: ignore[method-assign]
    assert prepared(unet) is unet


def test_training_gradients_autocast_and_other_networks(monkeypatch: pytest.MonkeyPatch) -> None:
    unet, other = built(), nn.Linear(2, 2)
    assert prepared(other) is other
    with torch.autocast("cpu", torch.bfloat16):
        assert prepared(unet) is unet
    with torch.inference_mode(False), torch.enable_grad():
        assert prepared(unet) is unet
    unet.mid_block.train()
    assert prepared(unet) is unet
    monkeypatch.setattr(preparing, "MOST_BYTES", 1000)
    unet.eval()
    assert prepared(unet) is unet


def test_a_dtype_that_cannot_be_packed(caplog: pytest.LogCaptureFixture) -> None:
    preparing._say.cache_clear()
    unet = built().double()
    with caplog.at_level(logging.INFO):
        assert prepared(unet) is unet
        assert prepared(unet) is unet
    assert [record.message for record in caplog.records] == [
        "the network is not prepared for many calls: weights are torch.float64, packed are "
        "float32 and bfloat16"
    ]


def test_with_gradients_a_call_has_them() -> None:
    with torch.inference_mode(False):
        unet = built()
        with torch.no_grad():
            ready = prepared(unet)
        x, t, context = (value.clone() for value in inputs())
        x.requires_grad_()
        with torch.enable_grad():
            ready(x, t, context).sum().backward()
        assert x.grad is not None
        assert x.grad.abs().sum() > 0


def test_what_onednn_refuses_the_network_does(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*args: Any) -> None:
        raise RuntimeError("could not create a primitive\nmore")

    preparing._say.cache_clear()
    monkeypatch.setattr(preparing, "_Packed", refuse)
    unet, given = built(), inputs()
    ready = prepared(unet)
    assert torch.equal(ready(*given), unet(*given))
    assert torch.equal(ready(*given), unet(*given))
    assert [(record.levelname, record.message) for record in caplog.records] == [
        ("WARNING", "the network is not prepared for many calls: could not create a primitive")
    ]


def test_without_onednn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    assert "oneDNN" in (obstacle(torch.float32) or "")
    unet = built()
    assert prepared(unet) is unet
