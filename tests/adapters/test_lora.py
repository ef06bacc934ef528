"""Is LoRA what the paper says, in every layer, dtype and rank?"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from ldm.adapters.attach import attach, attached, merge
from ldm.adapters.lora import (
    DEFAULT_TARGETS_KOHYA,
    DEFAULT_TARGETS_PEFT,
    LoRA,
    LoRAConfig,
)
from ldm.adapters.lora_layer import LoRAWeights
from ldm.models.unet import UNet, UNetConfig

Inputs = tuple[Tensor, Tensor, Tensor]
Make = Callable[..., LoRA]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_new_lora_changes_no_bit(
    make_base: Callable[..., UNet], inputs: Inputs, dtype: torch.dtype, checkpointing: bool
) -> None:
    base = make_base(checkpointing=checkpointing).to(dtype)
    x, t, context = (value.to(dtype) for value in inputs)
    x.requires_grad_()  # with or without a LoRA, attention takes the way of a training step
    before = base(x, t, context)
    attach(base, LoRA(base, LoRAConfig(targets="*", dropout=0.5)))
    assert torch.equal(base(x, t, context), before)


LAYERS = {
    "linear": (lambda: nn.Linear(5, 7), (3, 5)),
    "conv 1x1": (lambda: nn.Conv2d(5, 7, 1), (2, 5, 4, 4)),
    "conv 3x3": (lambda: nn.Conv2d(5, 7, 3, padding=1), (2, 5, 6, 6)),
    "strided": (lambda: nn.Conv2d(5, 7, (3, 2), stride=2, padding=(1, 0)), (2, 5, 6, 6)),
    "dilated": (
        lambda: nn.Conv2d(5, 7, 3, padding=2, dilation=2, padding_mode="circular"),
        (2, 5, 9, 9),
    ),
}


@pytest.mark.parametrize("name", LAYERS)
def test_merged_is_attached_is_the_formula(name: str, make_lora: Make) -> None:
    make, shape = LAYERS[name]
    torch.manual_seed(0)
    base = nn.Sequential(make()).double()
    x = torch.randn(shape, dtype=torch.float64)
    lora = make_lora(base, rank=3, alpha=1.5, targets="0")
    before, weight = base(x), base[0].weight.clone()
    with attached(base, lora, strength=0.8):
        changed = base(x)
    down, up, _ = vars(lora.weights()["0"]).values()
    delta = torch.einsum("or,ri...->oi...", up.flatten(1), down) * (1.5 / 3)
    assert_close(lora.delta("0"), delta, rtol=0, atol=1e-14)
    merge(base, lora, 0.8)
    assert_close(base[0].weight, weight + 0.8 * delta, rtol=0, atol=1e-14)
    assert_close(base(x), changed, rtol=0, atol=1e-12)  # float64: only rounding
    assert (changed - before).abs().max() > 1e-2


def test_merged_is_attached_in_a_whole_unet(base: UNet, inputs: Inputs, make_lora: Make) -> None:
    lora = make_lora(base, rank=3, alpha=6.0, targets="*")
    with attached(base, lora, strength=0.5):
        changed = base(*inputs)
    merge(base, lora, 0.5)
    assert_close(base(*inputs), changed, rtol=0, atol=1e-5)  # sums in another order


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_merge_into_half_precision_is_rounded_once(dtype: torch.dtype, make_lora: Make) -> None:
    base = nn.Sequential(nn.Linear(64, 64)).to(dtype)
    lora = make_lora(base, rank=2, targets="0")
    assert lora.delta("0").dtype == torch.float32
    exact = base[0].weight.float() + 0.3 * lora.delta("0")
    merge(base, lora, 0.3)
    assert base[0].weight.dtype == dtype
    assert torch.equal(base[0].weight, exact.to(dtype))


def test_a_merge_beyond_the_range_changes_nothing(make_lora: Make) -> None:
    base = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)).half()
    lora = make_lora(base, rank=2, targets="*")
    before = [value.clone() for value in base.parameters()]
    with pytest.raises(ValueError, match=r"weights of 0, 1 are not finite in torch.float16"):
        merge(base, lora, 1e9)
    assert all(torch.equal(a, b) for a, b in zip(base.parameters(), before, strict=True))


def test_an_fp32_lora_on_a_bf16_network_and_under_autocast(
    make_base: Callable[..., UNet], inputs: Inputs, make_lora: Make
) -> None:
    base = make_base()
    lora = make_lora(base, rank=2)
    attach(base, lora)
    exact = base(*inputs).detach()
    with torch.autocast("cpu", torch.bfloat16):
        mixed = base(*inputs)
    mixed.float().square().mean().backward()
    base.bfloat16()
    half = base(*(value.bfloat16() for value in inputs))
    half.float().square().mean().backward()
    assert half.dtype == torch.bfloat16
    for got in (mixed, half):
        error = (got.float() - exact).norm() / exact.norm()
        assert error < 0.06  # of the roundings of 8 bits; the network alone has 0.035
    assert all(value.grad.dtype == torch.float32 for value in lora.parameters())


def test_the_start_is_kaiming_and_zero(base: UNet) -> None:
    torch.manual_seed(0)
    lora = LoRA(base, LoRAConfig(rank=8, targets=("*.ff.net.2", "*.conv1")))
    for layer in lora.named_layers().values():
        fan_in = layer.down.weight[0].numel()
        bound = fan_in**-0.5  # sqrt(6 / ((1 + 5) fan_in))
        assert layer.down.weight.abs().max() <= bound
        assert_close(layer.down.weight.std().item(), bound / 3**0.5, rtol=0.1, atol=0)
        assert not layer.up.weight.any()


def test_state_names_are_paths_and_load_again(base: UNet, make_lora: Make) -> None:
    lora = make_lora(base, targets=("mid_block.*.to_q", "conv_in"))
    path = "layers.mid_block.attentions.0.transformer_blocks.0.attn"
    assert list(lora.state_dict()) == [
        "layers.conv_in.down.weight",
        "layers.conv_in.up.weight",
        *(f"{path}{n}.to_q.{role}.weight" for n in (1, 2) for role in ("down", "up")),
    ]
    other = make_lora(base, seed=9, targets=("mid_block.*.to_q", "conv_in"))
    other.load_state_dict(lora.state_dict())
    for name in lora.named_layers():
        assert torch.equal(other.delta(name), lora.delta(name))


def test_dropout_is_on_what_goes_down_and_only_in_training(make_lora: Make) -> None:
    base = nn.Sequential(nn.Linear(400, 1, bias=False))
    nn.init.zeros_(base[0].weight)
    lora = make_lora(base, rank=1, alpha=1, dropout=0.25, targets="0")
    nn.init.ones_(lora.named_layers()["0"].down.weight)
    nn.init.ones_(lora.named_layers()["0"].up.weight)
    with attached(base, lora):
        dropped = base(torch.ones(500, 400)).flatten() * 0.75  # counts of what was kept
        assert_close(dropped.mean().item(), 300.0, rtol=0.01, atol=0)
        assert_close(dropped, dropped.round(), rtol=0, atol=1e-3)
        assert dropped.std() > 5  # sqrt(400 * 0.75 * 0.25) = 8.7
        lora.eval()
        assert torch.equal(base(torch.ones(2, 400)), torch.full((2, 1), 400.0))


# -- ranks, targets --------------------------------------------------------------------------------


def test_the_rank_pattern_gives_other_ranks_and_the_last_wins(base: UNet) -> None:
    lora = LoRA(base, LoRAConfig(rank=2, rank_pattern={"*.attn2.*": 3, "*.attn2.to_v": 5}))
    ranks = {path: layer.rank for path, layer in lora.named_layers().items()}
    for path, rank in ranks.items():
        assert rank == (5 if path.endswith("attn2.to_v") else 3 if ".attn2." in path else 2)
    assert set(ranks.values()) == {2, 3, 5}


def test_sd1_has_the_published_sizes() -> None:
    with torch.device("meta"):
        unet = UNet(UNetConfig())
    for targets, modules, parameters in (
        (DEFAULT_TARGETS_PEFT, 128, 797_184),
        (DEFAULT_TARGETS_KOHYA, 192, 1_695_744),
    ):
        lora = LoRA(unet, LoRAConfig(rank=4, targets=targets))
        assert len(lora.named_layers()) == modules
        assert sum(value.numel() for value in lora.parameters()) == parameters


def test_all_that_is_wrong_with_ranks_is_told_at_once(base: UNet) -> None:
    with pytest.raises(ValueError) as error:
        LoRA(
            base,
            LoRAConfig(
                rank=16,
                targets=("*.attn2.to_k", "conv_in", "conv_out"),
                rank_pattern={"*.to_q": 2, "conv_in": 17},
            ),
        )
    text = str(error.value)
    assert "rank_pattern '*.to_q' names no target; down_blocks.0." in text
    assert text.count("its changes have rank 12 at most") == 4  # the text's width
    assert "rank 17 at conv_in; its changes have rank 16 at most" in text
    assert "rank 16 at conv_out; its changes have rank 4 at most" in text


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"rank": 0}, r"rank=0; give 1 or more"),
        ({"rank_pattern": {"a": -1}}, r"rank_pattern\['a'\]=-1"),
        ({"alpha": 0.0}, r"alpha=0.0; give a positive number"),
        ({"alpha": float("nan")}, r"alpha=nan"),
        ({"dropout": 1.0}, r"dropout=1.0; give a number in \[0, 1\)"),
        ({"kinds": ("Linear", "Conv1d")}, r"kinds=\['Linear', 'Conv1d'\]; .* Linear, Conv2d"),
        ({"kinds": ()}, r"kinds=\[\]"),
    ],
)
def test_a_bad_config_is_refused(fields: dict[str, object], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        LoRAConfig(**fields)  # type: ignore[arg-type]


def test_kinds_keep_convolutions_out(base: UNet) -> None:
    lora = LoRA(base, LoRAConfig(kinds=("Linear",)))
    assert len(lora.named_layers()) == 40
    assert all(isinstance(layer.down, nn.Linear) for layer in lora.named_layers().values())


def test_grouped_convolutions_are_refused() -> None:
    with pytest.raises(ValueError, match=r"cannot have a LoRA.*groups=1"):
        LoRA(nn.Sequential(nn.Conv2d(4, 4, 3, groups=2)), LoRAConfig(rank=1, targets="0"))


# -- from given weights ----------------------------------------------------------------------------


def test_from_weights_takes_the_tensors_and_draws_no_random_number(
    base: UNet, inputs: Inputs, make_lora: Make
) -> None:
    lora = make_lora(base, rank=2, alpha=3.0, rank_pattern={"*.proj_in": 4}, targets="*")
    state = torch.get_rng_state()
    again = LoRA.from_weights(base, lora.weights())
    assert torch.equal(torch.get_rng_state(), state)
    with attached(base, lora):
        expected = base(*inputs)
    with attached(base, again):
        assert torch.equal(base(*inputs), expected)
    for path, layer in again.named_layers().items():
        assert (layer.rank, layer.alpha) == (lora.named_layers()[path].rank, 3.0)
        assert layer.down.weight.requires_grad
        assert layer.down.weight.data_ptr() != lora.weights()[path].down.data_ptr()


def test_a_file_may_have_a_rank_above_the_layers(make_lora: Make) -> None:
    base = nn.Sequential(nn.Linear(2, 3))
    given = LoRAWeights(torch.randn(8, 2), torch.randn(3, 8), alpha=4.0)
    lora = LoRA.from_weights(base, {"0": given})
    assert_close(lora.delta("0"), given.up @ given.down / 2)


def test_weights_that_do_not_fit_are_listed(base: UNet) -> None:
    bad = LoRAWeights(torch.zeros(2, 5), torch.zeros(16, 2), 1.0)
    with pytest.raises(ValueError) as error:
        LoRA.from_weights(base, {"conv_inn": bad, "time_embedding.linear_1": bad})
    text = str(error.value)
    assert "2 of its 2 layers do not fit" in text
    assert "there is no layer conv_inn, nearest: conv_in" in text
    assert "down (2, 5) and up (16, 2), here (2, 16) and (64, 2)" in text
    with pytest.raises(ValueError, match="it has no weights"):
        LoRA.from_weights(base, {})
    with pytest.raises(ValueError, match=r"to_qq is no target; nearest: .*to_q"):
        LoRA(base, LoRAConfig()).delta("mid_block.attentions.0.transformer_blocks.0.attn1.to_qq")
