"""Do adapters come and go without a trace, and add up while they are there?"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from ldm.adapters.attach import Adapter, attach, attached, detach, is_attached, merge
from ldm.adapters.hypernetwork import Hypernetwork, HypernetworkConfig
from ldm.adapters.lora import LoRA, LoRAConfig
from ldm.models.unet import UNet

Inputs = tuple[Tensor, Tensor, Tensor]
Make = Callable[..., LoRA]


def hypernetwork() -> Hypernetwork:
    torch.manual_seed(3)
    network = Hypernetwork((12, 16), HypernetworkConfig(activation="relu", layer_norm=True))
    with torch.no_grad():
        for value in network.parameters():
            value.add_(0.2 * torch.randn_like(value))
    return network


def adapters(base: UNet, make_lora: Make) -> Iterable[Adapter]:
    yield make_lora(base)
    yield hypernetwork()


def test_detach_restores_every_bit_and_every_name(
    base: UNet, inputs: Inputs, make_lora: Make
) -> None:
    names, before = list(base.state_dict()), base(*inputs)
    for adapter in adapters(base, make_lora):
        attach(base, adapter)
        assert list(base.state_dict()) == names
        changed = base(*inputs)
        assert (changed - before).abs().max() > 1e-2
        detach(base, adapter)
        assert torch.equal(base(*inputs), before)
        with attached(base, adapter):
            assert torch.equal(base(*inputs), changed)
        assert torch.equal(base(*inputs), before)
        assert not any(m._forward_hooks or m._forward_pre_hooks for m in base.modules())


def test_attached_detaches_also_after_an_error(base: UNet, make_lora: Make) -> None:
    lora = make_lora(base)
    with pytest.raises(ValueError, match="channels"), attached(base, lora):
        base(torch.zeros(1, 3, 8, 8), torch.zeros(1))
    assert not is_attached(base, lora)


def test_strength_zero_is_the_base_and_strength_follows(
    base: UNet, inputs: Inputs, make_lora: Make
) -> None:
    before = base(*inputs)
    for adapter in adapters(base, make_lora):
        with attached(base, adapter, strength=0.0):
            assert torch.equal(base(*inputs), before)
            adapter.set_strength(0.5)
            half = base(*inputs)
        with attached(base, adapter, strength=0.5):
            assert torch.equal(base(*inputs), half)
        assert not torch.equal(half, before)


def test_several_loras_with_strengths_are_the_sum_of_their_changes(
    make_base: Callable[..., UNet], inputs: Inputs, make_lora: Make
) -> None:
    base = make_base()
    one, other = make_lora(base, seed=5), make_lora(base, seed=6, rank=2, targets="*.to_?")
    with attached(base, one, strength=0.7), attached(base, other, strength=-1.3):
        got = base(*inputs)
    merged = make_base()
    merge(merged, one, 0.7)
    merge(merged, other, -1.3)
    assert_close(got, merged(*inputs), rtol=0, atol=1e-5)  # sums in another order


def test_a_lora_acts_on_the_context_that_a_hypernetwork_made(
    base: UNet, inputs: Inputs, make_lora: Make
) -> None:
    lora, network = make_lora(base), hypernetwork()
    with attached(base, lora), attached(base, network):
        one = base(*inputs)
    with attached(base, network), attached(base, lora):
        assert torch.equal(base(*inputs), one)
    merge(base, lora)
    with attached(base, network):
        assert_close(base(*inputs), one, rtol=0, atol=1e-5)  # sums in another order


@pytest.mark.parametrize("checkpointing", [False, True])
def test_gradients_are_in_the_adapter_only_and_checkpointing_keeps_them(
    make_base: Callable[..., UNet], inputs: Inputs, make_lora: Make, checkpointing: bool
) -> None:
    gradients = []
    for base in (make_base(), make_base(checkpointing=checkpointing)):
        for adapter in adapters(base, make_lora):
            with attached(base, adapter):
                base(*inputs).square().mean().backward()
            assert all(value.grad is None for value in base.parameters())
            assert all(value.grad is not None for value in adapter.parameters())
            gradients.append([value.grad for value in adapter.parameters()])
    for plain, checkpointed in zip(gradients[:2], gradients[2:], strict=True):
        assert_close(checkpointed, plain, rtol=0, atol=0)
        assert sum(value.abs().sum() for value in plain) > 0


def test_a_compiled_network_is_refused(base: UNet, make_lora: Make) -> None:
    lora, late = make_lora(base), make_lora(base)
    attach(base, lora)
    base.mid_block.compile(backend="eager")  # nothing is compiled before the first call
    with pytest.raises(ValueError, match=r"mid_block is compiled.*attach adapters before"):
        attach(base, late)
    with pytest.raises(ValueError, match=r"mid_block is compiled.*set_strength\(0\)"):
        detach(base, lora)
    wrapped = torch.compile(nn.Sequential(nn.Linear(2, 2)), backend="eager")
    with pytest.raises(ValueError, match="OptimizedModule is compiled"):
        attach(wrapped, late)


class Small(nn.Module):
    """The three kinds of layers, quick to compile."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.point = nn.Conv2d(8, 8, 1)
        self.to_k = nn.Linear(8, 6)
        self.to_v = nn.Linear(8, 6)

    def forward(self, x: Tensor) -> Tensor:
        h = self.point(self.conv(x).tanh()).flatten(2).transpose(1, 2)
        return self.to_k(h) * self.to_v(h)


class Whole(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = Small()

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x)


@pytest.mark.parametrize("kind", ["lora", "hypernetwork"])
def test_compiled_after_attaching_is_the_same_and_follows_the_strength(
    kind: str, make_lora: Make
) -> None:
    torch.manual_seed(0)
    base = Whole().requires_grad_(False)
    x = torch.randn(2, 3, 8, 8)
    adapter: Adapter
    if kind == "lora":
        adapter = make_lora(base, rank=2, targets="*")
    else:
        adapter = Hypernetwork((8,), HypernetworkConfig(activation="relu"))
    attach(base, adapter)

    def run(strength: float) -> list[Tensor]:
        adapter.set_strength(strength)
        adapter.zero_grad()
        out = base(x)
        out.square().sum().backward()
        return [out, *(value.grad.clone() for value in adapter.parameters())]

    strengths = (1.0, 0.3, 0.0, -2.0)
    eager = [run(strength) for strength in strengths]
    torch._dynamo.reset()
    base.compile(backend="aot_eager")
    for strength, expected in zip(strengths, eager, strict=True):
        assert_close(run(strength), expected, rtol=1e-5, atol=1e-6)  # sums in another order
    assert not torch.allclose(eager[0][0], eager[2][0])


@pytest.mark.slow  # a UNet is half a minute of tracing
def test_a_compiled_unet_with_a_lora_is_the_eager_one(
    make_base: Callable[..., UNet], inputs: Inputs, make_lora: Make
) -> None:
    base = make_base(checkpointing=True)
    lora = make_lora(base)
    attach(base, lora)
    results = []
    for compiled in (False, True):
        if compiled:
            torch._dynamo.reset()
            base.compile(backend="aot_eager")
        lora.zero_grad()
        out = base(*inputs)
        out.square().mean().backward()
        results.append([out, *(value.grad.clone() for value in lora.parameters())])
        assert all(value.grad is None for value in base.parameters())
    assert_close(results[1], results[0], rtol=1e-4, atol=1e-6)  # sums in another order


def test_twice_or_never_attached_is_an_error(base: UNet, make_lora: Make) -> None:
    lora = make_lora(base)
    with pytest.raises(ValueError, match="is not attached to this UNet"):
        detach(base, lora)
    attach(base, lora)
    with pytest.raises(ValueError, match="attached already"):
        attach(base, lora)
    with pytest.raises(ValueError, match="would count twice"):
        merge(base, lora)
    for strength in (float("nan"), float("inf")):
        with pytest.raises(ValueError, match="give a finite number"):
            lora.set_strength(strength)


def test_a_base_that_does_not_fit_gets_no_hook(
    base: UNet, make_base: Callable[..., UNet], make_lora: Make
) -> None:
    other = make_base(cross_attention_dim=20)
    for adapter, text in (
        (make_lora(base), r"another architecture than this UNet, 8 of its 48 layers do not fit"),
        (hypernetwork(), r"context widths \[12\] do not occur in this UNet, which has \[16, 20"),
    ):
        with pytest.raises(ValueError, match=text):
            attach(other, adapter)
        assert not any(m._forward_hooks or m._forward_pre_hooks for m in other.modules())


def test_moving_or_casting_the_adapter_keeps_its_strength(base: UNet) -> None:
    lora = LoRA(base, LoRAConfig(alpha=1.0, rank=3))
    lora.set_strength(0.3)
    layer = next(iter(lora.to(torch.bfloat16).named_layers().values()))
    assert (layer.strength, layer.alpha) == (0.3, 1.0)
