"""What does LoRA add to one linear or convolution layer?

r rank; in, out: features or channels; kh x kw kernel.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ldm.adapters.attach import Part, in_dtype_of


@dataclass(frozen=True)
class LoRAWeights:
    """One layer's change, (alpha/rank) up down. Linear: down [r,in], up [out,r]; convolution:
    down [r,in,kh,kw], up [out,r,1,1]."""

    down: Tensor
    up: Tensor
    alpha: float

    @property
    def rank(self) -> int:
        return self.down.shape[0]


def weight_shapes(module: nn.Module, rank: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The shapes of down and up for a layer. Raises ValueError for one that cannot have them."""
    if isinstance(module, nn.Linear):
        return (rank, module.in_features), (module.out_features, rank)
    if isinstance(module, nn.Conv2d) and module.groups == 1:
        return (rank, *module.weight.shape[1:]), (module.out_channels, rank, 1, 1)
    raise ValueError(f"{module} cannot have a LoRA: give a Linear, or a Conv2d with groups=1")


def rank_limit(module: nn.Module) -> int:
    """The rank of any change of the layer is at most this."""
    down, up = weight_shapes(module, 1)
    return min(up[0], torch.Size(down).numel())


def product(weights: LoRAWeights) -> Tensor:
    """(alpha/rank) up down in the shape of the layer's weight, in fp32 or better."""
    dtype = torch.promote_types(weights.down.dtype, torch.float32)
    down, up = weights.down.to(dtype), weights.up.to(dtype)
    change = up.flatten(1) @ down.flatten(1)  # [out, in kh kw]
    return change.reshape(up.shape[0], *down.shape[1:]) * (weights.alpha / weights.rank)


class LoRALayer(Part):
    """The hook's owner for one module: y becomes y + strength (alpha/rank) up(down(dropout(x)))."""

    def __init__(
        self,
        module: nn.Module,
        *,
        rank: int,
        alpha: float,
        dropout: float = 0.0,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        weight_shapes(module, rank)  # refuses what is neither
        assert isinstance(module, (nn.Linear, nn.Conv2d))
        self.rank = rank
        self.alpha = float(alpha)
        made: dict[str, Any] = {
            "bias": False,
            "device": module.weight.device if device is None else device,
            "dtype": torch.promote_types(module.weight.dtype, torch.float32),
        }
        self.down: nn.Linear | nn.Conv2d
        self.up: nn.Linear | nn.Conv2d
        if isinstance(module, nn.Linear):
            self.down = nn.Linear(module.in_features, rank, **made)
            self.up = nn.Linear(rank, module.out_features, **made)
        else:
            self.down = nn.Conv2d(
                module.in_channels,
                rank,
                module.kernel_size,  # type: ignore[arg-type]  # torch declares it as any tuple
                padding_mode=module.padding_mode,
                **{name: getattr(module, name) for name in ("stride", "padding", "dilation")},
                **made,
            )
            self.up = nn.Conv2d(rank, module.out_channels, 1, **made)
        self.dropout = nn.Dropout(dropout) if dropout else nn.Identity()
        self.reset()

    def reset(self) -> None:
        """down: Kaiming uniform with a = sqrt(5); up: zero, so that nothing is changed yet."""
        nn.init.kaiming_uniform_(self.down.weight, a=5**0.5)
        nn.init.zeros_(self.up.weight)

    def add(self, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        """The forward hook. Scaled between down and up, where the tensor is narrow."""
        hidden = self.down(self.dropout(in_dtype_of(self.down.weight, inputs[0])))
        change = self.up(hidden * (self.strength * self.alpha / self.rank))
        return (output + change).to(output.dtype)

    def weights(self) -> LoRAWeights:
        """The parameters themselves."""
        return LoRAWeights(self.down.weight, self.up.weight, self.alpha)

    def assign(self, weights: LoRAWeights) -> None:
        """Takes copies of these tensors as its parameters, with their dtype and device."""
        self.down.weight = nn.Parameter(weights.down.detach().clone())
        self.up.weight = nn.Parameter(weights.up.detach().clone())
        self.alpha = float(weights.alpha)

    def delta(self) -> Tensor:
        """What is added to the weight, at strength 1, in its shape."""
        return product(self.weights())
