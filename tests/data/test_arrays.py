"""Are arrays what their own libraries wrote, and is everything else refused?"""

from __future__ import annotations

import io
import json
import pickle
from collections.abc import Callable

import numpy as np
import pytest
import torch
from safetensors.numpy import save as save_numpy
from safetensors.torch import save as save_torch

from ldm.data.arrays import from_npy, from_safetensors, is_finite, shapes_in
from ldm.data.captions import BadSampleError

Npy = Callable[..., bytes]
VALUES = np.random.default_rng(0).standard_normal((8, 3, 5))


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
@pytest.mark.parametrize("version", [(1, 0), (2, 0), (3, 0)])
def test_npy_is_that_of_numpy(dtype: type, version: tuple[int, int]) -> None:
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, VALUES.astype(dtype), version=version)
    got = from_npy(buffer.getvalue(), "moments.npy")
    assert got.dtype == dtype
    assert np.array_equal(got, VALUES.astype(dtype))
    assert shapes_in(buffer.getvalue()[:200], "moments.npy") == {"": (8, 3, 5)}


def test_safetensors_is_that_of_its_library() -> None:
    tensors = {"moments": VALUES.astype(np.float16), "context": VALUES[0].astype(np.float32)}
    data = save_numpy(tensors, metadata={"a": "b"})
    got = from_safetensors(data, "safetensors")
    assert set(got) == set(tensors)
    assert all(np.array_equal(got[name], tensors[name]) for name in tensors)
    assert shapes_in(data[:1000], "safetensors") == {"moments": (8, 3, 5), "context": (3, 5)}


def test_bfloat16_becomes_float32() -> None:
    tensor = torch.from_numpy(VALUES).to(torch.bfloat16)
    got = from_safetensors(save_torch({"latents": tensor}), "safetensors")["latents"]
    assert torch.equal(torch.from_numpy(got), tensor.float())


def header_of(text: str, payload: bytes = b"") -> bytes:
    body = text.encode("latin-1")
    return b"\x93NUMPY\x01\x00" + len(body).to_bytes(2, "little") + body + payload


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "no npy file"),
        (b"PK\x03\x04 not this one", "no npy file"),
        (b"\x93NUMPY\x01\x00\xff\xff{}", "cut off inside its header"),
        (header_of("{"), "no npy header"),
        (header_of("__import__('os').getpid()"), "no npy header"),
        (header_of("{'descr': '|O', 'fortran_order': False, 'shape': (1,)}"), "holds '|O'"),
        (header_of("{'descr': '<f8', 'fortran_order': False, 'shape': (1,)}"), "holds '<f8'"),
        (header_of("{'descr': '>f2', 'fortran_order': False, 'shape': (1,)}"), "holds '>f2'"),
        (header_of("{'descr': '<f2', 'fortran_order': True, 'shape': (1,)}"), "Fortran"),
        (header_of("{'descr': '<f2', 'fortran_order': False, 'shape': (-1,)}"), "shape"),
        (header_of("{'descr': '<f2', 'fortran_order': False, 'shape': (1.5,)}"), "shape"),
        (header_of("{'descr': '<f2', 'fortran_order': False, 'shape': 3}"), "shape"),
        (header_of("{'descr': '<f2', 'fortran_order': False, 'shape': (9**9, 9**9)}"), "no npy"),
        (
            header_of("{'descr': '<f2', 'fortran_order': False, 'shape': (999999999999,)}"),
            "it is cut off",
        ),
        (header_of("{'descr': '<f2', 'fortran_order': False, 'shape': (2,)}", b"abc"), "3 bytes"),
        (header_of("{'descr': '<f2', 'fortran_order': False, 'shape': (1,)}", b"abc"), "3 bytes"),
    ],
)
def test_what_is_no_npy_is_refused(data: bytes, said: str) -> None:
    with pytest.raises(BadSampleError) as caught:
        from_npy(data, "moments.npy")
    assert said in str(caught.value)
    assert "moments.npy" in str(caught.value)


def test_nothing_is_unpickled() -> None:
    class Evil:
        def __reduce__(self) -> tuple[object, ...]:
            return pytest.fail, ("unpickled",)

    buffer = io.BytesIO()
    np.save(buffer, np.array([Evil()], dtype=object), allow_pickle=True)
    for data in (buffer.getvalue(), pickle.dumps(Evil())):
        with pytest.raises(BadSampleError):
            from_npy(data, "npy")


def tensors_of(header: object, payload: bytes = b"") -> bytes:
    body = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(body).to_bytes(8, "little") + body + payload


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "no safetensors file"),
        ((1 << 60).to_bytes(8, "little") + b"{}", "no safetensors file"),
        (tensors_of(b"{"), "no safetensors header"),
        (tensors_of([1]), "no safetensors header"),
        (tensors_of({"a": 5}), "no usable header for 'a'"),
        (tensors_of({"a": {"dtype": "F16", "shape": [1]}}), "no usable header for 'a'"),
        (tensors_of({"a": {"dtype": "I8", "shape": [1], "data_offsets": [0, 1]}}), "as 'I8'"),
        (tensors_of({"a": {"dtype": "F16", "shape": [1], "data_offsets": [-2, 0]}}), "'a'"),
        (tensors_of({"a": {"dtype": "F16", "shape": [2], "data_offsets": [0, 2]}}, b"ab"), "[2]"),
        (tensors_of({"a": {"dtype": "F16", "shape": [1], "data_offsets": [2, 4]}}, b"ab"), "cut"),
        (tensors_of({"a": {"dtype": "F16", "shape": [-1], "data_offsets": [0, 2]}}, b"ab"), "[-1]"),
    ],
)
def test_what_is_no_safetensors_is_refused(data: bytes, said: str) -> None:
    with pytest.raises(BadSampleError) as caught:
        from_safetensors(data, "safetensors")
    assert said in str(caught.value)


def test_damage_never_raises_anything_else(npy: Npy) -> None:
    draw = np.random.default_rng(0)
    files = {
        "npy": (npy(VALUES), from_npy),
        "safetensors": (save_numpy({"moments": VALUES.astype(np.float16)}), from_safetensors),
    }
    for name, (data, read) in files.items():
        for _ in range(300):
            damaged = bytearray(data[: draw.integers(1, len(data) + 1)])
            for place in draw.integers(0, min(150, len(damaged)), 3):
                damaged[place] = draw.integers(0, 256)
            shapes_in(bytes(damaged[:100]), name)
            try:
                read(bytes(damaged), name)
            except BadSampleError:
                continue


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_one_value_is_enough(dtype: type, value: float) -> None:
    extreme = np.array([0.0, -0.0, 65504.0, -65504.0, 6e-8], dtype=dtype)
    assert is_finite(extreme)
    for place in range(5):
        array = extreme.copy()
        array[place] = value
        assert not is_finite(array)
