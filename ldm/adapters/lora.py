"""Which modules of a network get a low-rank change (LoRA), and of which rank?

Hu et al. 2021: W x becomes W x + (alpha/rank) B A x, with A = down [r,in] and B = up [out,r].
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ldm.adapters.attach import Adapter
from ldm.adapters.lora_layer import LoRALayer, LoRAWeights, rank_limit, weight_shapes
from ldm.adapters.targets import find, matching, nearest

# kohya: all Linear and 1x1 convolutions inside the transformers; 192 modules in SD 1.5
DEFAULT_TARGETS_KOHYA = ("*.attentions.*",)
# PEFT and diffusers: the attention's own projections; 128 modules in SD 1.5
DEFAULT_TARGETS_PEFT = ("*.to_q", "*.to_k", "*.to_v", "*.to_out.0")
# kohya, in a CLIP text encoder: 72 modules in CLIP ViT-L/14
DEFAULT_TARGETS_TEXT = ("*.self_attn.*_proj", "*.mlp.fc?")
SHOWN = 8  # problems in an error, of what may be hundreds
KINDS: dict[str, type[nn.Module]] = {"Linear": nn.Linear, "Conv2d": nn.Conv2d}


@dataclass(frozen=True, kw_only=True)
class LoRAConfig:
    """Which modules get how large a LoRA.

    targets: globs (see targets.py); kinds: which of KINDS they may name. rank_pattern: other ranks
    for the targets that a glob names, the last that matches wins; alpha is the same for all.
    """

    rank: int = 4
    alpha: float = 4.0
    dropout: float = 0.0
    targets: tuple[str, ...] = DEFAULT_TARGETS_KOHYA
    rank_pattern: Mapping[str, int] = field(default_factory=dict)
    kinds: tuple[str, ...] = tuple(KINDS)

    def __post_init__(self) -> None:
        for name in ("targets", "kinds"):
            value = getattr(self, name)
            object.__setattr__(self, name, (value,) if isinstance(value, str) else tuple(value))
        ranks = {"rank": self.rank}
        ranks |= {f"rank_pattern[{glob!r}]": rank for glob, rank in self.rank_pattern.items()}
        problems = [f"{name}={rank}; give 1 or more" for name, rank in ranks.items() if rank < 1]
        if not (math.isfinite(self.alpha) and self.alpha > 0):
            problems.append(f"alpha={self.alpha}; give a positive number (rank: a scale of 1)")
        if not 0.0 <= self.dropout < 1.0:
            problems.append(f"dropout={self.dropout}; give a number in [0, 1)")
        if not self.kinds or set(self.kinds) - KINDS.keys():
            problems.append(f"kinds={list(self.kinds)}; give one or more of {', '.join(KINDS)}")
        if problems:
            raise ValueError("LoRAConfig: " + "; ".join(problems))


class LoRA(Adapter):
    """The low-rank changes of all targets in a network.

    The state dict's names are `layers.<path of the target>.down.weight` and `….up.weight`. device:
    where the weights are made; None: where each target is. They are fp32, or fp64 as the target.
    """

    def __init__(
        self, base: nn.Module, config: LoRAConfig, *, device: torch.device | str | None = None
    ) -> None:
        super().__init__()
        self.layers = nn.Module()  # a tree that mirrors the network's
        targets = find(base, config.targets, tuple(KINDS[kind] for kind in config.kinds))
        for path, rank in _ranks(targets, config).items():
            layer = LoRALayer(
                targets[path], rank=rank, alpha=config.alpha, dropout=config.dropout, device=device
            )
            _plant(self.layers, path, layer)

    @classmethod
    def from_weights(
        cls, base: nn.Module, weights: Mapping[str, LoRAWeights], *, dropout: float = 0.0
    ) -> LoRA:
        """A LoRA of exactly these tensors, by path of the target; no random number is drawn.

        Raises ValueError listing all that does not fit `base`.
        """
        _check_fit(base, weights)
        layers = {path: [given.rank, given.alpha] for path, given in weights.items()}
        lora = cls.from_spec({"layers": layers, "dropout": dropout}, base)
        for path, layer in lora.named_layers().items():
            layer.assign(weights[path])
        return lora

    @classmethod
    def from_spec(cls, spec: Mapping[str, Any], base: nn.Module) -> LoRA:
        """As described by `spec()`, without weights: on the meta device. Raises ValueError."""
        modules = adaptable(base)
        missing = [path for path in spec["layers"] if path not in modules]
        if missing:
            raise ValueError(
                f"a LoRA for {missing[0]}, nearest here: {nearest(missing[0], modules, 1)} "
                f"({len(missing)} of its {len(spec['layers'])} layers are not in this "
                f"{type(base).__name__})"
            )
        lora = cls.__new__(cls)
        nn.Module.__init__(lora)
        lora.layers = nn.Module()
        for path, (rank, alpha) in spec["layers"].items():
            layer = LoRALayer(
                modules[path], rank=rank, alpha=alpha, dropout=spec["dropout"], device="meta"
            )
            _plant(lora.layers, path, layer)
        return lora

    def spec(self) -> dict[str, Any]:
        layers = self.named_layers()
        dropout = next(iter(layers.values())).dropout
        return {
            "kind": "lora",
            "layers": {path: [layer.rank, layer.alpha] for path, layer in layers.items()},
            "dropout": dropout.p if isinstance(dropout, nn.Dropout) else 0.0,
        }

    def named_layers(self) -> dict[str, LoRALayer]:
        """The layers by the path of their target."""
        named = self.layers.named_modules()
        return {path: layer for path, layer in named if isinstance(layer, LoRALayer)}

    def weights(self) -> dict[str, LoRAWeights]:
        """What a file holds, by path of the target; the tensors are the parameters."""
        return {path: layer.weights() for path, layer in self.named_layers().items()}

    def delta(self, path: str) -> Tensor:
        """What is added to the weight of the module at `path`, at strength 1, in its shape."""
        layers = self.named_layers()
        if path not in layers:
            raise ValueError(f"{path} is no target; nearest: {nearest(path, layers)}")
        return layers[path].delta()

    def hook(self, base: nn.Module) -> None:
        _check_fit(base, self.weights())
        for path, layer in self.named_layers().items():
            base.get_submodule(path).register_forward_hook(layer.add)

    def merge_into(self, base: nn.Module, strength: float) -> None:
        _check_fit(base, self.weights())
        sums = {path: self._sum(base, path, strength) for path in self.named_layers()}
        bad = [path for path, value in sums.items() if not value.isfinite().all()]
        if bad:
            raise ValueError(
                f"the merged weights of {', '.join(bad)} are not finite in "
                f"{sums[bad[0]].dtype}; merge in float32 or bfloat16"
            )
        for path, value in sums.items():
            base.get_parameter(f"{path}.weight").copy_(value)

    def _sum(self, base: nn.Module, path: str, strength: float) -> Tensor:
        """The merged weight, rounded once."""
        weight = base.get_parameter(f"{path}.weight")
        change = self.delta(path).to(weight.device)
        exact = torch.promote_types(weight.dtype, change.dtype)
        return (weight.to(exact) + strength * change.to(exact)).to(weight.dtype)


def _ranks(targets: Mapping[str, nn.Module], config: LoRAConfig) -> dict[str, int]:
    """The rank of every target. Raises ValueError with all that cannot be."""
    ranks = dict.fromkeys(targets, config.rank)
    problems = []
    for glob, rank in config.rank_pattern.items():
        matched = matching(targets, glob)
        if not matched:
            problems.append(f"rank_pattern {glob!r} names no target; {nearest(glob, targets)} do")
        ranks.update(dict.fromkeys(matched, rank))
    wide = [path for path, rank in ranks.items() if rank > rank_limit(targets[path])]
    problems += [
        f"rank {ranks[path]} at {path}; its changes have rank {rank_limit(targets[path])} at most"
        for path in wide[:SHOWN]
    ]
    if len(wide) > SHOWN:
        problems.append(f"{len(wide) - SHOWN} more layers are too small for their rank")
    if problems:
        raise ValueError("LoRA: " + "; ".join(problems))
    return ranks


def _check_fit(base: nn.Module, weights: Mapping[str, LoRAWeights]) -> None:
    """Every problem in one error: layers that are missing, shapes that are others."""
    modules = adaptable(base)
    problems = [] if weights else ["it has no weights"]
    missing = [path for path in weights if path not in modules]
    for path in missing[:SHOWN]:
        problems.append(f"there is no layer {path}, nearest: {nearest(path, modules, 1)}")
    for path in weights.keys() - set(missing):
        shapes = tuple(weights[path].down.shape), tuple(weights[path].up.shape)
        expected = weight_shapes(modules[path], weights[path].rank)
        if shapes != expected:
            problems.append(
                f"{path}: down {shapes[0]} and up {shapes[1]}, here {expected[0]} and {expected[1]}"
            )
    if problems:
        count = len(problems) + len(missing[SHOWN:])
        listed = "; ".join(sorted(problems)[:SHOWN])
        raise ValueError(
            f"the LoRA is for another architecture than this {type(base).__name__}, {count} of its "
            f"{len(weights)} layers do not fit: {listed}" + ("; …" if count > SHOWN else "")
        )


def adaptable(base: nn.Module) -> dict[str, nn.Module]:
    """All that could have a LoRA, by path."""
    kinds = tuple(KINDS.values())
    return {path: module for path, module in base.named_modules() if isinstance(module, kinds)}


def _plant(tree: nn.Module, path: str, layer: nn.Module) -> None:
    """Puts `layer` at a dotted path, growing the branches."""
    *branches, leaf = path.split(".")
    for name in branches:
        if name not in tree._modules:
            tree.add_module(name, nn.Module())
        tree = tree.get_submodule(name)
    tree.add_module(leaf, layer)
