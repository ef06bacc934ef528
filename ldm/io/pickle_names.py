"""Which names may a pickled checkpoint hold?

None of them is ever imported. A few stand for containers and tensors, which ldm/io/pickle_calls.py
builds itself; the others, which real checkpoints carry beside their tensors, become inert objects.
Every other name is refused: a pickle that holds it was made to do something, or needs its program.
"""

from __future__ import annotations

import re

import torch

LENGTH = 300  # characters
NAME = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)+", re.ASCII)

# packages whose classes checkpoints carry
PACKAGES = (
    "argparse, collections, diffusers, ldm, lightning, lightning_fabric, lightning_utilities, "
    "numpy, omegaconf, pathlib, pytorch_lightning, sgm, taming, tokenizers, torch, transformers, "
    "typing"
)
# by module: other names that only stand for a class, or for a function that makes plain values
OTHERS = {
    "builtins": "bool bytearray bytes complex float frozenset int list long object range set slice "
    "str tuple type unicode xrange",
    "_codecs": "encode",
    "collections": "deque",
    "copyreg": "_reconstructor",
    "datetime": "date datetime timedelta timezone",
    "numpy": "bool bool_ bytes_ complex64 complex128 dtype float16 float32 float64 int8 int16 "
    "int32 int64 ndarray str_ uint8 uint16 uint32 uint64",
    "numpy.core.multiarray": "scalar _reconstruct",
    "numpy.core.numeric": "_frombuffer",
    "numpy.random._pickle": "__randomstate_ctor __generator_ctor __bit_generator_ctor",
    "torch": "device",
    "torch._utils": "_rebuild_sparse_tensor _rebuild_qtensor _rebuild_nested_tensor "
    "_rebuild_wrapper_subclass _rebuild_meta_tensor_no_storage _rebuild_device_tensor_from_numpy "
    "_rebuild_device_tensor_from_cpu_tensor",
    "torch.serialization": "_get_layout",
}
# Python 2's and NumPy 2's names of the same modules
SAME = {"__builtin__": "builtins", "copy_reg": "copyreg", "numpy._core": "numpy.core"}

DTYPES = {f"torch.{k}": v for k, v in vars(torch).items() if isinstance(v, torch.dtype)}
STORAGES: dict[str, torch.dtype | None] = {  # None: only the tensors say
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
    "ComplexFloatStorage": torch.complex64,
    "ComplexDoubleStorage": torch.complex128,
    "UntypedStorage": None,
}


def canonical(module: str, name: str) -> str:
    """The dotted name, whichever Python wrote it."""
    for old, new in SAME.items():
        if module == old or module.startswith(f"{old}."):
            module = new + module.removeprefix(old)
    return f"{module}.{name}"


def is_class(full: str) -> bool:
    """Whether it is named as a class of a package whose classes checkpoints carry."""
    if len(full) > LENGTH or not NAME.fullmatch(full):
        return False
    last = full.rpartition(".")[2].lstrip("_")
    return full.partition(".")[0] in PACKAGES.split(", ") and last[:1].isupper()


def is_inert(full: str) -> bool:
    """Whether it may be in a checkpoint without being built."""
    module, _, last = full.rpartition(".")
    return is_class(full) or last in OTHERS.get(module, "").split()


def is_storage(full: str) -> bool:
    """Whether it is a storage's type, of whatever device."""
    module, _, last = full.rpartition(".")
    return last in STORAGES and module in ("torch", "torch.cuda", "torch.storage")
