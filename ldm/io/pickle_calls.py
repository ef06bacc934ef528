"""What may a pickled checkpoint call, and what does it get?

Containers and tensors that only say where their bytes lie. Arguments are checked before anything
is made of them: whoever wrote the file chose them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from typing import Any

import torch

MAX_DIMENSIONS = 64
MAX = 1 << 63  # whole numbers where a size or a key is meant
MAX_REPEATED = 1 << 20  # elements of a tensor that shows its storage several times
KEYS = (str, int, float, bool, type(None))


class Refused(ValueError):
    """What is wrong with a pickle, in words that follow its name."""


@dataclass(frozen=True, slots=True, eq=False)
class Inert:
    """A name in the file, or an object made with it: does nothing and holds nothing."""

    name: str


@dataclass(frozen=True, slots=True)
class Storage:
    """What tensors lie in. key: the name of its bytes in the file; numel: elements of dtype, or
    bytes where dtype is None and the tensors say it."""

    key: str
    dtype: torch.dtype | None
    numel: int

    @property
    def nbytes(self) -> int:
        return self.numel * (self.dtype.itemsize if self.dtype else 1)


@dataclass(frozen=True, slots=True)
class PickledTensor:
    """A window into a storage. offset and stride: in elements of dtype."""

    storage: Storage
    dtype: torch.dtype
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]


def span(shape: tuple[int, ...], stride: tuple[int, ...]) -> int:
    """Elements of a storage from a tensor's first to its last, both included."""
    if 0 in shape:
        return 0
    return 1 + sum((n - 1) * step for n, step in zip(shape, stride, strict=True))


def called(function: Any, arguments: Any) -> Any:
    """The result of a function of CALLS, an inert object for all others."""
    if not isinstance(function, Inert):
        raise TypeError("only names are called")
    if function.name in CALLS:
        return CALLS[function.name](*arguments)
    return Inert(function.name)


def pairs(flat: list[Any]) -> dict[Any, Any]:
    """Keys and values by turns. Pairs with other keys than plain ones (a callback's class, say)
    are left out: hashing what a file may nest without end would overflow the stack."""
    both = zip(flat[::2], flat[1::2], strict=True)
    return {k: v for k, v in both if type(k) in KEYS and (type(k) is not int or -MAX < k < MAX)}


def _mapping(items: Any = (), *_: Any) -> dict[Any, Any]:
    """The empty dict that is filled later, or one of pairs (Python 2)."""
    given = items if isinstance(items, (list, tuple)) else ()
    return pairs([part for key, value in given for part in (key, value)])


def _tensor(storage: Any, offset: Any, shape: Any, stride: Any, *rest: Any) -> PickledTensor:
    """rest: requires_grad, hooks, metadata; the older ones end sooner."""
    return _window(storage, None, (offset, shape, stride), rest[2:3])


def _tensor_v3(*arguments: Any) -> PickledTensor:
    """As above, with a dtype before the metadata."""
    storage, offset, shape, stride, _, _, dtype, *metadata = arguments
    return _window(storage, dtype, (offset, shape, stride), metadata)


def _window(storage: Any, dtype: Any, place: tuple[Any, Any, Any], metadata: Any) -> PickledTensor:
    """A tensor that lies inside its storage and is no larger than it has reason to be."""
    offset, shape, stride = place
    if not isinstance(storage, Storage):
        raise TypeError("a tensor of something else than a storage")
    dtype = dtype or storage.dtype
    if not isinstance(dtype, torch.dtype):
        raise TypeError("a tensor without a dtype")
    if len(shape) > MAX_DIMENSIONS or any(
        type(n) is not int or not 0 <= n < MAX for n in (offset, *shape, *stride)
    ):
        raise ValueError("offset, shape and stride are no sizes")
    if any(metadata):
        raise Refused("holds a conjugate or negative view; save a copy (.resolve_conj()) instead")
    needed = span(shape, stride)
    if (offset + needed) * dtype.itemsize > storage.nbytes:
        raise Refused(
            f"declares a tensor of {offset + needed:,} elements in a storage of {storage.nbytes:,} "
            "bytes"
        )
    if prod(shape) > max(needed, MAX_REPEATED):
        raise Refused(f"declares a tensor that shows {needed:,} elements {prod(shape):,} times")
    return PickledTensor(storage, dtype, offset, tuple(shape), tuple(stride))


def _of_type(function: Any, kind: Any, arguments: Any, *_: Any) -> Any:
    """A tensor of a subclass, or with attributes: the tensor."""
    if isinstance(function, Inert) and CALLS.get(function.name) is _of_type:
        raise ValueError("a tensor of a type of a type")  # and so on without end
    return called(function, arguments)


CALLS: dict[str, Callable[..., Any]] = {
    "builtins.dict": _mapping,
    "collections.OrderedDict": _mapping,
    "collections.defaultdict": lambda *_: {},
    "torch.Size": lambda items=(): items,
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_tensor_v3": _tensor_v3,
    "torch._utils._rebuild_parameter": lambda tensor, *_: tensor,
    "torch._utils._rebuild_parameter_with_state": lambda tensor, *_: tensor,
    "torch._tensor._rebuild_from_type": _of_type,
    "torch._tensor._rebuild_from_type_v2": _of_type,
}
