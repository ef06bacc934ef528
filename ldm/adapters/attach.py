"""How does an adapter change a network without touching it?

By forward hooks on its modules: the network's parameters, their names and its code stay as they
are. Hooks are bound methods of the adapter's parts.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, MutableMapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


class Part(nn.Module):
    """What an adapter does at one place; its hooks are methods of it.

    strength is a plain attribute of the hooks' owner: torch.compile guards it, so that a compiled
    network follows when it changes. (A number in a closure would be frozen in.)
    """

    def __init__(self) -> None:
        super().__init__()
        self.strength = 1.0


class Adapter(nn.Module, ABC):
    """One parameterised change of one or many modules; its parts do not belong to the network."""

    @abstractmethod
    def hook(self, base: nn.Module) -> None:
        """Registers the parts' hooks on modules of `base`.

        Raises ValueError, before the first hook, when `base` is not of the right architecture.
        """

    @abstractmethod
    def merge_into(self, base: nn.Module, strength: float) -> None:
        """Adds the change to the weights of `base`; raises ValueError where that cannot be."""

    @abstractmethod
    def spec(self) -> dict[str, Any]:
        """All that a card needs to build it again, but its weights: plain values (from_spec)."""

    def set_strength(self, strength: float) -> None:
        """How much of the change is applied: 1 as trained, 0 none; works while attached."""
        if not math.isfinite(strength):
            raise ValueError(f"strength={strength}; give a finite number, 1 as trained")
        for part in self.modules():
            if isinstance(part, Part):
                part.strength = float(strength)


def attach(base: nn.Module, adapter: Adapter, *, strength: float = 1.0) -> None:
    """From now on `base` computes with `adapter`. Several adapters add up.

    Raises ValueError for a compiled network: it would ignore the hooks, silently.
    """
    _refuse_compiled(base, "attach adapters before compiling it")
    if is_attached(base, adapter):
        raise ValueError("the adapter is attached already; use set_strength, or detach it first")
    adapter.set_strength(strength)
    adapter.hook(base)


def detach(base: nn.Module, adapter: Adapter) -> None:
    """From now on `base` computes without `adapter`, exactly as before it was attached.

    Raises ValueError when it is not attached, or for a compiled network, which keeps its hooks.
    """
    _refuse_compiled(base, "silence the adapter by set_strength(0)")
    hooks = list(_hooks(base, adapter))
    if not hooks:
        raise ValueError(f"the adapter is not attached to this {type(base).__name__}")
    for registry, key in hooks:
        del registry[key]


@contextmanager
def attached(base: nn.Module, adapter: Adapter, *, strength: float = 1.0) -> Iterator[None]:
    """`base` computes with `adapter` inside the block."""
    attach(base, adapter, strength=strength)
    try:
        yield
    finally:
        detach(base, adapter)


def is_attached(base: nn.Module, adapter: Adapter) -> bool:
    """Whether `base` computes with `adapter`."""
    return next(_hooks(base, adapter), None) is not None


@torch.no_grad()
def merge(base: nn.Module, adapter: Adapter, strength: float = 1.0) -> None:
    """Writes the change into the weights of `base`, in place; the adapter stays as it is.

    Sums are made in fp32 or better and rounded once to the weights' dtype. Raises ValueError while
    the adapter is attached (it would count twice), and when a sum is beyond that dtype's range;
    the weights are then unchanged.
    """
    if is_attached(base, adapter):
        raise ValueError("the adapter is attached, and would count twice; detach it, then merge")
    if not math.isfinite(strength):
        raise ValueError(f"strength={strength}; give a finite number, 1 as trained")
    adapter.merge_into(base, float(strength))


def in_dtype_of(parameter: Tensor, x: Tensor) -> Tensor:
    """x in the parameter's dtype, where autocast does not choose one: fp32 adapters on a bf16
    network."""
    return x if torch.is_autocast_enabled(x.device.type) else x.to(parameter.dtype)


def _hooks(
    base: nn.Module, adapter: Adapter
) -> Iterator[tuple[MutableMapping[int, Callable[..., Any]], int]]:
    """Where the adapter's hooks are: kept by the network alone, so copies of either are right."""
    owners = {id(part) for part in adapter.modules()}
    for module in base.modules():
        for registry in (module._forward_pre_hooks, module._forward_hooks):
            for key, hook in registry.items():
                if id(getattr(hook, "__self__", None)) in owners:
                    yield registry, key


def _refuse_compiled(base: nn.Module, advice: str) -> None:
    """torch.compile leaves no guard on hooks (`skip_nnmodule_hook_guards`)."""
    for path, module in base.named_modules():
        if module._compiled_call_impl is not None or "_orig_mod" in module._modules:
            raise ValueError(
                f"{path or type(base).__name__} is compiled, and a compiled module does not see "
                f"that hooks come or go; {advice}"
            )
