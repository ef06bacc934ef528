"""How do the bytes of an npy or safetensors member become arrays?

Both formats are read here and not by their libraries: a member is a few kilobytes, and parsing the
same header again for every sample would cost more than reading it. Nothing is ever unpickled.
"""

from __future__ import annotations

import ast
import json
import math
from collections.abc import Mapping
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from ldm.data.captions import BadSampleError

_MAGIC = b"\x93NUMPY"
_MAX_HEADER = 1 << 16  # bytes
_MAX_SIDES = 8
_NPY = {"<f2": np.dtype("<f2"), "<f4": np.dtype("<f4")}
_SAFETENSORS = {"F16": np.dtype("<f2"), "F32": np.dtype("<f4"), "BF16": np.dtype("<u2")}

Shape = tuple[int, ...]
Floats = NDArray[np.float16] | NDArray[np.float32]
_Tensors = dict[str, tuple[str, Shape, int, int]]  # name -> dtype, shape, begin, end


def from_npy(data: bytes, name: str) -> Floats:
    """The float16 or float32 array of an npy member, a view of its bytes; name: for messages."""
    if data[:6] != _MAGIC or len(data) < 10:
        raise BadSampleError(f"the .{name} member is no npy file")
    wide = data[6] >= 2  # from version 2 on the length of the header takes four bytes
    begin = 12 if wide else 10
    length = int.from_bytes(data[8:begin], "little")
    if length > min(_MAX_HEADER, len(data) - begin):
        raise BadSampleError(f"the .{name} member is cut off inside its header")
    try:
        dtype, shape = _npy_header(data[begin : begin + length])
    except ValueError as error:
        raise BadSampleError(f"the .{name} member {error}") from None
    return _view(data, dtype, shape, begin + length, len(data), name)


def from_safetensors(data: bytes, name: str) -> dict[str, Floats]:
    """The float tensors of a safetensors member, views of its bytes; bfloat16 becomes float32."""
    length = int.from_bytes(data[:8], "little")
    if len(data) < 8 or length > min(_MAX_HEADER, len(data) - 8):
        raise BadSampleError(f"the .{name} member is no safetensors file, or cut off")
    try:
        tensors = _safetensors_header(data[8 : 8 + length])
    except ValueError as error:
        raise BadSampleError(f"the .{name} member {error}") from None
    found: dict[str, Floats] = {}
    for tensor, (kind, shape, begin, end) in tensors.items():
        where = f"{name} ({tensor})"
        array = _view(data, _SAFETENSORS[kind], shape, 8 + length + begin, 8 + length + end, where)
        if kind == "BF16":  # the upper half of a float32
            array = (array.astype(np.uint32) << 16).view(np.float32)
        found[tensor] = array
    return found


def shapes_in(head: bytes, ext: str) -> dict[str, Shape]:
    """The shapes that the beginning of a member tells: an npy file's is called ''; {}: none."""
    try:
        if ext == "safetensors":
            length = int.from_bytes(head[:8], "little")
            return {name: at[1] for name, at in _safetensors_header(head[8 : 8 + length]).items()}
        begin = 12 if head[6:7] >= b"\x02" else 10
        return {"": _npy_header(head[begin : begin + int.from_bytes(head[8:begin], "little")])[1]}
    except ValueError:
        return {}


def is_finite(array: Floats) -> bool:
    """Whether no value is infinite or nan."""
    if array.dtype == np.float16:  # numpy has no fast isfinite for it; all ones in the exponent
        return not bool(((array.view(np.uint16) & 0x7C00) == 0x7C00).any())
    return bool(np.isfinite(array).all())


@lru_cache(maxsize=256)
def _npy_header(text: bytes) -> tuple[np.dtype, Shape]:  # type: ignore[type-arg]
    try:
        header = ast.literal_eval(text.decode("latin-1"))
        kind, shape = header["descr"], header["shape"]
        fortran = header["fortran_order"]
    except (ValueError, SyntaxError, KeyError, TypeError, RecursionError, MemoryError):
        raise ValueError("has no npy header") from None
    if not isinstance(kind, str) or kind not in _NPY:
        raise ValueError(f"holds {kind!r:.40}; float16 and float32 are read ({', '.join(_NPY)})")
    if fortran:
        raise ValueError("is in Fortran order; write it with numpy.ascontiguousarray")
    return _NPY[kind], _checked(shape)


@lru_cache(maxsize=256)
def _safetensors_header(text: bytes) -> _Tensors:
    try:
        header = json.loads(text)
    except (ValueError, RecursionError):
        raise ValueError("has no safetensors header") from None
    if not isinstance(header, Mapping):
        raise ValueError("has no safetensors header")
    found: _Tensors = {}
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        try:
            kind, shape, (begin, end) = entry["dtype"], entry["shape"], entry["data_offsets"]
            numbers = all(type(n) is int and n >= 0 for n in (begin, end))
        except (KeyError, TypeError, ValueError):
            raise ValueError(f"has no usable header for {name!r:.40}") from None
        if not isinstance(kind, str) or kind not in _SAFETENSORS or not numbers:
            known = ", ".join(_SAFETENSORS)
            raise ValueError(f"holds {name!r:.40} as {kind!r:.40}; {known} are read")
        found[name] = (kind, _checked(shape), begin, end)
    return found


def _checked(shape: object) -> Shape:
    if not isinstance(shape, (tuple, list)) or len(shape) > _MAX_SIDES:
        raise ValueError(f"has the shape {shape!r:.60}")
    if not all(type(side) is int and side >= 0 for side in shape):
        raise ValueError(f"has the shape {shape!r:.60}")
    return tuple(shape)


def _view(
    data: bytes,
    dtype: np.dtype,  # type: ignore[type-arg]
    shape: Shape,
    begin: int,
    end: int,
    name: str,
) -> Floats:
    count = math.prod(shape)
    if end > len(data) or end - begin != count * dtype.itemsize:
        raise BadSampleError(
            f"the .{name} member has {min(end, len(data)) - begin} bytes for "
            f"{list(shape)} {dtype.name}; it is cut off or wrong"
        )
    return np.frombuffer(data, dtype=dtype, count=count, offset=begin).reshape(shape)
