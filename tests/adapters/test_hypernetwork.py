"""Are contexts changed where the web UIs change them, and by as much?"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from ldm.adapters.attach import attach, attached, merge
from ldm.adapters.hypernetwork import (
    ACTIVATIONS,
    ContextTransform,
    Hypernetwork,
    HypernetworkConfig,
    context_widths,
)
from ldm.models.unet import UNet, UNetConfig

Inputs = tuple[Tensor, Tensor, Tensor]


def test_the_transform_is_the_formula() -> None:
    torch.manual_seed(0)
    config = HypernetworkConfig(
        layer_structure=(1, 2, 1.5, 1), activation="leakyrelu", layer_norm=True
    )
    transform = ContextTransform(6, config).double()
    transform.strength = 0.7
    x = torch.randn(2, 3, 6, dtype=torch.float64)
    one, two, three = (transform.linear[i] for i in (0, 3, 6))
    norms = (transform.linear[i] for i in (2, 5, 7))
    with torch.no_grad():
        for layer in transform.linear:
            if isinstance(layer, nn.LayerNorm):
                layer.weight.normal_()
                layer.bias.normal_()
    first, second, third = norms
    h = first(nn.functional.leaky_relu(x @ one.weight.T + one.bias))
    h = second(nn.functional.leaky_relu(h @ two.weight.T + two.bias))
    h = third(h @ three.weight.T + three.bias)
    assert [layer.out_features for layer in (one, two, three)] == [12, 9, 6]
    assert_close(transform(x), x + 0.7 * h, rtol=0, atol=1e-14)


def test_places_in_files_count_activation_norm_and_dropout() -> None:
    """The names of the weights in a file follow from the structure."""
    config = HypernetworkConfig(
        layer_structure=(1, 2, 2, 1),
        activation="relu",
        layer_norm=True,
        activate_output=True,
        dropout=(0, 0.3, 0, 0),
    )
    kinds = [type(layer).__name__ for layer in ContextTransform(4, config).linear]
    assert kinds == [
        *("Linear", "ReLU", "LayerNorm", "Dropout"),
        *("Linear", "ReLU", "LayerNorm"),
        *("Linear", "ReLU", "LayerNorm"),
    ]
    plain = ContextTransform(4, HypernetworkConfig())
    assert list(plain.state_dict()) == [
        f"linear.{i}.{kind}" for i in (0, 1) for kind in ("weight", "bias")
    ]


def test_the_start_is_normal_with_a_hundredth() -> None:
    torch.manual_seed(0)
    transform = ContextTransform(128, HypernetworkConfig(layer_norm=True))
    for name, value in transform.named_parameters():
        if name.endswith("bias"):
            assert not value.any()
        else:
            assert_close(value.std().item(), 0.01, rtol=0.15, atol=0)
            assert value.mean().abs() < 0.003
    x = torch.randn(4, 128)
    assert 0 < (transform(x) - x).abs().max() < 0.1  # nearly the identity


def test_keys_and_values_of_the_width_are_changed_and_nothing_else(
    base: UNet, inputs: Inputs
) -> None:
    torch.manual_seed(0)
    network = Hypernetwork((12,), HypernetworkConfig())
    seen: dict[str, tuple[Tensor, Tensor]] = {}

    def record(path: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
        def hook(module: nn.Module, given: tuple[Tensor, ...], output: Tensor) -> None:
            seen[path] = (given[0], output)

        return hook

    attach(base, network)
    for path, module in base.named_modules():
        if path.endswith((".to_q", ".to_k", ".to_v")):
            module.register_forward_hook(record(path))
    base(*inputs)
    k, v = network.pair(12)
    for path, (given, _) in seen.items():
        if path.endswith("attn2.to_k"):
            assert torch.equal(given, k(inputs[2]))
        elif path.endswith("attn2.to_v"):
            assert torch.equal(given, v(inputs[2]))
    for path in [p for p in seen if p.endswith("attn1.to_q")]:
        assert torch.equal(seen[path][0], seen[path.replace("to_q", "to_k")][0])
    assert not torch.equal(k(inputs[2]), v(inputs[2]))
    assert len(seen) == 24


def test_sd1_has_the_widths_of_the_published_files() -> None:
    with torch.device("meta"):
        unet = UNet(UNetConfig())
    assert context_widths(unet) == (320, 640, 768, 1280)
    assert context_widths(unet, cross_only=True) == (768,)


def test_an_fp32_network_works_on_bf16(make_base: Callable[..., UNet], inputs: Inputs) -> None:
    base = make_base().bfloat16()
    with attached(base, Hypernetwork(context_widths(base), HypernetworkConfig())):
        assert base(*(value.bfloat16() for value in inputs)).dtype == torch.bfloat16


def test_it_cannot_be_merged(base: UNet) -> None:
    with pytest.raises(ValueError, match="a hypernetwork cannot be merged"):
        merge(base, Hypernetwork((12,), HypernetworkConfig()))


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_every_activation_can_be_made(name: str) -> None:
    config = HypernetworkConfig(activation=name)
    assert ContextTransform(4, config)(torch.ones(1, 4)).shape == (1, 4)


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"layer_structure": (1,)}, r"layer_structure=\[1\]"),
        ({"layer_structure": (1, 2, 2)}, r"the first and last 1"),
        ({"layer_structure": (1, -2, 1)}, r"give positive numbers"),
        ({"layer_structure": (1, float("inf"), 1)}, r"give positive numbers"),
        ({"activation": "swishy"}, r"activation='swishy'; one of linear, relu"),
        ({"dropout": (0, 0.1)}, r"give 3 numbers in \[0, 1\)"),
        ({"dropout": (0, 1.0, 0)}, r"in \[0, 1\)"),
        ({"dropout": (0, 0.5, 0.5)}, r"the first and last 0"),
    ],
)
def test_a_bad_config_is_refused(fields: dict[str, object], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        HypernetworkConfig(**fields)  # type: ignore[arg-type]


@pytest.mark.parametrize("widths", [(), (0,), (12, 12)])
def test_bad_widths_are_refused(widths: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="give different positive context widths"):
        Hypernetwork(widths, HypernetworkConfig())
