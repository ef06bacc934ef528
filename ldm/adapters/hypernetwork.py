"""What is a hypernetwork: how are keys and values computed from a changed context?

The web UIs' kind, after NovelAI 2022: before to_k and before to_v the context x becomes
x + strength MLP(x). One pair of MLPs serves every attention whose context has their width: the
text's in cross-attention, the features' own in self-attention. C that width.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ldm.adapters.attach import Adapter, Part, in_dtype_of
from ldm.adapters.targets import find

# the web UIs' names; their "swish" is the hard one
ACTIVATIONS: dict[str, type[nn.Module]] = {
    "linear": nn.Identity,
    "relu": nn.ReLU,
    "leakyrelu": nn.LeakyReLU,
    "elu": nn.ELU,
    "swish": nn.Hardswish,
    "tanh": nn.Tanh,
    "sigmoid": nn.Sigmoid,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "mish": nn.Mish,
    "selu": nn.SELU,
    "celu": nn.CELU,
    "softplus": nn.Softplus,
    "softsign": nn.Softsign,
    "hardswish": nn.Hardswish,
    "hardtanh": nn.Hardtanh,
    "hardsigmoid": nn.Hardsigmoid,
    "relu6": nn.ReLU6,
    "logsigmoid": nn.LogSigmoid,
    "tanhshrink": nn.Tanhshrink,
    "softshrink": nn.Softshrink,
    "hardshrink": nn.Hardshrink,
}
KEYS, VALUES = "*.to_k", "*.to_v"


@dataclass(frozen=True, kw_only=True)
class HypernetworkConfig:
    """The shape of every MLP.

    layer_structure: widths of input, hidden layers and output, in multiples of C. activate_output:
    an activation after the last layer too. dropout: the probability after each entry of
    layer_structure, where the first and the last have none; empty: none anywhere.
    """

    layer_structure: tuple[float, ...] = (1, 2, 1)
    activation: str = "linear"
    layer_norm: bool = False
    activate_output: bool = False
    dropout: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        for name in ("layer_structure", "dropout"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        structure, problems = self.layer_structure, []
        if (
            len(structure) < 2
            or structure[0] != 1
            or structure[-1] != 1
            or not _positive(structure)
        ):
            problems.append(
                f"layer_structure={list(structure)}; give positive numbers, the first and last 1"
            )
        if self.activation not in ACTIVATIONS:
            problems.append(f"activation={self.activation!r}; one of {', '.join(ACTIVATIONS)}")
        if self.dropout and (
            len(self.dropout) != len(structure)
            or self.dropout[0] != 0
            or self.dropout[-1] != 0
            or not all(0 <= p < 1 for p in self.dropout)
        ):
            problems.append(
                f"dropout={list(self.dropout)}; give {len(structure)} numbers in [0, 1), the first "
                "and last 0, or none"
            )
        if problems:
            raise ValueError("HypernetworkConfig: " + "; ".join(problems))


class ContextTransform(Part):
    """x + strength MLP(x): [...,C] -> [...,C]. The places in `linear` are those of the files."""

    def __init__(self, width: int, config: HypernetworkConfig) -> None:
        super().__init__()
        self.linear = _mlp(width, config)
        self.reset()

    def reset(self) -> None:
        """Weights from N(0, 0.01^2), biases zero: nearly, not quite the identity."""
        for layer in self.linear:
            if isinstance(layer, (nn.Linear, nn.LayerNorm)):
                nn.init.normal_(layer.weight, std=0.01)
                nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor) -> Tensor:
        change = self.linear(in_dtype_of(next(self.parameters()), x))
        return (x + self.strength * change).to(x.dtype)

    def transform(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """The forward pre-hook."""
        return (self(inputs[0]), *inputs[1:])


class Hypernetwork(Adapter):
    """For each context width the transforms before to_k (`k`) and to_v (`v`)."""

    def __init__(self, widths: Sequence[int], config: HypernetworkConfig) -> None:
        super().__init__()
        if not widths or min(widths) < 1 or len(set(widths)) < len(widths):
            raise ValueError(f"widths={list(widths)}; give different positive context widths")
        self.config = config
        make = partial(ContextTransform, config=config)
        self.layers = nn.ModuleDict(
            {str(w): nn.ModuleDict({"k": make(w), "v": make(w)}) for w in widths}
        )

    @classmethod
    def from_spec(cls, spec: Mapping[str, Any], base: nn.Module) -> Hypernetwork:
        """As described by `spec()`, without weights: on the meta device. Raises ValueError."""
        names = [f.name for f in fields(HypernetworkConfig)]
        with torch.device("meta"):
            return cls(spec["widths"], HypernetworkConfig(**{name: spec[name] for name in names}))

    def spec(self) -> dict[str, Any]:
        config = {name: _plain(value) for name, value in asdict(self.config).items()}
        return {"kind": "hypernetwork", "widths": list(self.widths), **config}

    @property
    def widths(self) -> tuple[int, ...]:
        return tuple(int(width) for width in self.layers)

    def pair(self, width: int) -> tuple[ContextTransform, ContextTransform]:
        """The transforms of contexts of this width, before to_k and before to_v."""
        layers = self.layers.get_submodule(str(width))
        k, v = layers.get_submodule("k"), layers.get_submodule("v")
        assert isinstance(k, ContextTransform)
        assert isinstance(v, ContextTransform)
        return k, v

    def hook(self, base: nn.Module) -> None:
        have = context_widths(base)
        missing = [width for width in self.widths if width not in have]
        if missing:
            raise ValueError(
                f"the hypernetwork is for another architecture: its context widths {missing} do "
                f"not occur in this {type(base).__name__}, which has {list(have)}"
            )
        for glob, at in ((KEYS, 0), (VALUES, 1)):
            for width, modules in _by_width(base, glob).items():
                for module in modules if width in self.widths else ():
                    module.register_forward_pre_hook(self.pair(width)[at].transform)

    def merge_into(self, base: nn.Module, strength: float) -> None:
        raise ValueError(
            "a hypernetwork cannot be merged: it changes the attention's inputs, not its weights; "
            "keep it attached"
        )


def context_widths(base: nn.Module, *, cross_only: bool = False) -> tuple[int, ...]:
    """The widths of the contexts that the attentions of a network have, the smallest first.

    cross_only: of the text alone (attn2), which is the most usual hypernetwork.
    """
    glob = "*.attn2.to_k" if cross_only else KEYS
    return tuple(sorted(_by_width(base, glob)))


def _by_width(base: nn.Module, glob: str) -> dict[int, list[nn.Linear]]:
    """The linear layers that a glob names, by the width of their input."""
    found: dict[int, list[nn.Linear]] = {}
    for module in find(base, [glob], (nn.Linear,)).values():
        assert isinstance(module, nn.Linear)
        found.setdefault(module.in_features, []).append(module)
    return found


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _positive(values: Sequence[float]) -> bool:
    return all(0 < value < math.inf for value in values)


def _mlp(width: int, config: HypernetworkConfig) -> nn.Sequential:
    """Linear layers; after each, where asked for: activation, norm, dropout.

    Files count all of them, so which are there decides how the weights are called.
    """
    structure = config.layer_structure
    sizes = [int(width * multiple) for multiple in structure]
    last = len(sizes) - 1
    layers: list[nn.Module] = []
    for i in range(1, len(sizes)):
        layers.append(nn.Linear(sizes[i - 1], sizes[i]))
        if config.activation != "linear" and (i < last or config.activate_output):
            layers.append(ACTIVATIONS[config.activation]())
        if config.layer_norm:
            layers.append(nn.LayerNorm(sizes[i]))
        if config.dropout and config.dropout[i] > 0:
            layers.append(nn.Dropout(config.dropout[i]))
    return nn.Sequential(*layers)
