"""What does one training step compute, move and keep, found without a device?

The network runs forward and backward on meta tensors, which have shapes but no numbers, under
three watchers: the operators' FLOPs (torch.utils.flop_counter's formulas), the bytes they read and
write, and the storages that live at each moment. Autocast and the fused attention of a GPU, which
meta tensors do not have, are put in their place.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.graph import _engine_run_backward
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

META = torch.device("meta")
# what autocast on a GPU runs in half precision, and what in fp32 (the networks use no others)
LOWER = {F.linear, F.conv2d, torch.conv2d, F.scaled_dot_product_attention, torch.matmul}
FULL = {F.layer_norm, F.group_norm, torch.layer_norm, torch.group_norm, F.mse_loss}


@dataclass(frozen=True)
class Op:
    """One kernel: its FLOPs (a multiply-add is 2) and the bytes that it reads and writes."""

    flops: int
    moved: int


@dataclass(frozen=True)
class Trace:
    """One step of one batch; bytes leave out weights, their gradients and the inputs.

    saved: kept from the forward for the backward, `casts` of it being half-precision copies of
    weights; peak: the most that lives at any moment.
    """

    forward: tuple[Op, ...]
    backward: tuple[Op, ...]
    saved: int
    peak: int
    casts: int

    @property
    def forward_flops(self) -> int:
        return sum(op.flops for op in self.forward)

    @property
    def backward_flops(self) -> int:
        """With what checkpointing and the fused attention compute a second time."""
        return sum(op.flops for op in self.backward)


def trace_step(
    network: nn.Module, call: Callable[[], Tensor], *, dtype: torch.dtype | None = None
) -> Trace:
    """Forward and backward of the sum of `call()`, a prediction that `network` makes on meta.

    dtype: the half precision of autocast, None for fp32. What `network` has that requires a
    gradient gets one, and frees it at once: gradients are not counted here.
    """
    handles = [
        p.register_post_accumulate_grad_hook(_drop) for p in network.parameters() if p.requires_grad
    ]
    ledger, gpu = _Ledger(network), _GPU(dtype)
    try:
        with ledger, gpu:
            loss = call().float().sum()
            saved, forward, casts = ledger.live, len(ledger.ops), gpu.live_casts()
            gpu.close()
            # not loss.backward(), which puts `gpu` aside: checkpointing runs the forward in there
            _engine_run_backward((loss,), (torch.ones_like(loss),), False, False, (), True, True)
    finally:
        for handle in handles:
            handle.remove()
    return Trace(
        forward=tuple(ledger.ops[:forward]),
        backward=tuple(ledger.ops[forward:]),
        saved=saved,
        peak=ledger.peak,
        casts=casts,
    )


def trace_forward(call: Callable[[], Any], *, dtype: torch.dtype | None = None) -> Trace:
    """The forward alone, without gradients: a frozen encoder, or a step of sampling."""
    ledger = _Ledger(None)
    with torch.no_grad(), ledger, _GPU(dtype):
        call()
    return Trace(forward=tuple(ledger.ops), backward=(), saved=0, peak=ledger.peak, casts=0)


def _drop(parameter: Tensor) -> None:
    parameter.grad = None


class _Ledger(TorchDispatchMode):
    """Writes down every operator, and which storages live."""

    def __init__(self, network: nn.Module | None) -> None:
        super().__init__()
        self.ops: list[Op] = []
        self.live = self.peak = 0
        self._known: weakref.WeakSet[torch.UntypedStorage] = weakref.WeakSet()
        if network is not None:
            self._known.update(p.untyped_storage() for p in network.parameters())

    def __torch_dispatch__(
        self,
        func: Any,
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        inputs = list(_tensors((args, kwargs)))
        before = {tensor.untyped_storage()._cdata for tensor in inputs}
        self._known.update(tensor.untyped_storage() for tensor in inputs)
        out = func(*args, **kwargs)
        outputs = list(_tensors(out))
        made = [t for t in outputs if t.untyped_storage()._cdata not in before]
        for tensor in made:
            self._born(tensor.untyped_storage())
        if made or func._schema.is_mutable:  # the rest are views, which cost nothing
            count = flop_registry.get(func._overloadpacket)
            flops = int(count(*args, **kwargs, out_val=out)) if count else 0
            self.ops.append(Op(flops, sum(t.nbytes for t in (*inputs, *outputs))))
        return out

    def _born(self, storage: torch.UntypedStorage) -> None:
        if storage in self._known:
            return
        size = storage.nbytes()
        self._known.add(storage)
        self.live += size
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._died, size)

    def _died(self, size: int) -> None:
        self.live -= size


class _GPU(TorchFunctionMode):
    """Autocast and attention as on a GPU: lower precision for products, fp32 for norms, and an
    attention that keeps queries, keys, values, output and one number a row, not the scores."""

    def __init__(self, dtype: torch.dtype | None) -> None:
        super().__init__()
        self._dtype = dtype
        self._cache: dict[Tensor, Tensor] | None = {}
        self._casts: list[weakref.ref[torch.UntypedStorage]] = []
        self._torchs = torch.autocast, torch.is_autocast_enabled

    def __enter__(self) -> _GPU:
        """Networks ask torch.autocast about their device, and it does not know meta tensors."""
        self._torchs = torch.autocast, torch.is_autocast_enabled
        torch.autocast, torch.is_autocast_enabled = self._autocast, self._is_enabled  # type: ignore
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        torch.autocast, torch.is_autocast_enabled = self._torchs  # type: ignore[misc]
        super().__exit__(*error)

    def _is_enabled(self, device: str = "cuda") -> bool:
        _, original = self._torchs
        return self._dtype is not None if device == META.type else original(device)

    @contextmanager
    def _autocast(
        self, device: str, *args: Any, enabled: bool = True, **kwargs: Any
    ) -> Iterator[None]:
        original, _ = self._torchs
        if device != META.type:
            with original(device, *args, enabled=enabled, **kwargs):
                yield
            return
        before, self._dtype = self._dtype, self._dtype if enabled else None
        try:
            yield
        finally:
            self._dtype = before

    def live_casts(self) -> int:
        """Bytes of the half-precision copies of weights that something still holds."""
        found = (reference() for reference in self._casts)
        return sum(storage.nbytes() for storage in found if storage is not None)

    def close(self) -> None:
        """The end of autocast's region: its copies of weights live as long as the backward asks."""
        self._cache = None

    def __torch_function__(
        self,
        func: Any,
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if self._dtype is not None and func in LOWER:
            args = tuple(self._lower(a) for a in args)
            kwargs = {name: self._lower(value) for name, value in kwargs.items()}
        elif self._dtype is not None and func in FULL:
            args = tuple(a.float() if _floating(a) else a for a in args)
        if func is F.scaled_dot_product_attention:
            return _fused_attention(*args, **kwargs)
        return func(*args, **kwargs)

    def _lower(self, value: Any) -> Any:
        if not _floating(value) or value.dtype == self._dtype:
            return value
        if not isinstance(value if value._base is None else value._base, nn.Parameter):
            return value.to(self._dtype)
        if self._cache is not None and value in self._cache:
            return self._cache[value]
        cast = value.to(self._dtype)
        self._casts.append(weakref.ref(cast.untyped_storage()))
        if self._cache is not None and value.requires_grad and value.is_leaf:  # as autocast does
            self._cache[value] = cast
        return cast


def _fused_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    **_: Any,
) -> Tensor:
    if attn_mask is not None:  # a mask costs a bias of the scores' size, which is not kept
        is_causal = False
    attention = torch.ops.aten._scaled_dot_product_flash_attention
    out: Tensor = attention(query, key, value, dropout_p, is_causal)[0]
    return out


def _floating(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point()


def _tensors(tree: Any) -> Iterator[Tensor]:
    return (leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor))


@contextmanager
def on_meta() -> Iterator[None]:
    """Modules and tensors made inside have shapes but no memory."""
    with torch.device(META):
        yield
