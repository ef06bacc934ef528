"""How does AdamW keep its moments in 8 bits?

Dettmers et al. 2022, "8-bit Optimizers via Block-wise Quantization": 2 bytes a weight instead of 8.
The package bitsandbytes does it, which is an extra; tensors below 4,096 elements stay in fp32.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

PACKAGE = "bitsandbytes"
Closure = Callable[[], Any]


def is_installed() -> bool:
    """Whether the package is there; whether it works on a device says capabilities.py."""
    return importlib.util.find_spec(PACKAGE) is not None


def eight_bit_adamw() -> Callable[..., torch.optim.Optimizer]:
    """A class like torch.optim.AdamW. Raises ModuleNotFoundError without the package.

    It also heeds `found_inf`, as torch's fused AdamW does: a step whose gradient is not finite must
    leave no trace in the moments (nonfinite.py).
    """
    if not is_installed():
        raise ModuleNotFoundError(
            f"training/optim=adamw8bit needs the package {PACKAGE}: pip install {PACKAGE}; or take "
            "training/optim=adamw, whose moments take 8 bytes a weight instead of 2"
        )
    base: Any = importlib.import_module(f"{PACKAGE}.optim").AdamW8bit

    class AdamW8bit(base):
        found_inf: Tensor | None = None

        def __init__(self, params: Any, *, fused: bool, **settings: Any) -> None:
            super().__init__(params, **settings)
            self.defaults["fused"] = fused  # whoever finds it set says in found_inf what to drop

        def step(self, closure: Closure | None = None) -> Any:
            loss = None
            if closure is not None:  # runs the backward pass, and sets found_inf
                with torch.enable_grad():
                    loss = closure()
            if self.found_inf is None or not bool(self.found_inf):  # sync point
                super().step()
            return loss

    return AdamW8bit
