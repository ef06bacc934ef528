"""What can this machine's devices do, found out by trying it?

Each question is answered with the reason why not, None when it can. Devices are cpu and cuda.
"""

from __future__ import annotations

import os
import shutil
import sys

import torch
from torch import nn

from ldm.training.eight_bit import PACKAGE, eight_bit_adamw, is_installed

QUANTISED = 8192  # elements: bitsandbytes keeps smaller tensors in fp32
ARM = ("aarch64", "arm64")


def cpu_has_bf16() -> bool:
    """Whether products of bfloat16 have instructions of their own.

    oneDNN takes them from AVX-512 on, but emulates them where the CPU has no more than that.
    """
    backend = torch.backends.mkldnn.is_available()
    if not backend or not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return False
    if not hasattr(torch.cpu, "get_capabilities"):  # an older torch: believe oneDNN
        return True
    found = torch.cpu.get_capabilities()
    names = ("avx512_bf16", "amx_bf16", "avx_ne_convert")
    return found.get("architecture") in ARM or any(found.get(name) for name in names)


def compile_problem(device: str) -> str | None:
    """Compiles a function of one line, forward and backward: seconds, of the minutes to come.

    On the machine of this process; LOCAL_RANK says which of its GPUs is this process's own.
    """
    if device == "cpu" and (missing := _no_cxx()):
        return missing
    rank = os.environ.get("LOCAL_RANK", "0")
    place = torch.device(f"cuda:{rank}" if device == "cuda" else device)
    try:
        value = torch.ones(8, device=place, requires_grad=True)
        torch.compile(lambda x: (2 * x + 1).sum())(value).backward()
    except Exception as error:  # of the compiler, of triton, of the linker: whatever is missing
        return f"torch.compile fails here: {in_a_line(error)}"
    return None


def _no_cxx() -> str | None:
    """Where inductor looks: $CXX, else the platform's own; it makes C++ for a CPU."""
    own = {"win32": "cl", "darwin": "clang++"}.get(sys.platform, "g++")
    name = os.environ.get("CXX", own)
    if shutil.which(name) is not None:
        return None
    where = f"$CXX is {name}" if "CXX" in os.environ else f"{own} is not on the PATH"
    return f"no C++ compiler found: {where}; install {own}, or name another one in $CXX"


def eight_bit_problem(device: str) -> str | None:
    """Takes one step with bitsandbytes, whose kernels are not there for every device."""
    if not is_installed():
        return f"the package {PACKAGE} is not installed: pip install {PACKAGE}"
    try:
        weight = nn.Parameter(torch.ones(QUANTISED, device=device))
        weight.grad = torch.ones_like(weight)
        make = eight_bit_adamw()
        make([weight], lr=1e-3, betas=(0.9, 0.999), eps=1e-8, fused=False).step()
    except Exception as error:  # of a native library that was built for another machine
        return f"{PACKAGE} fails on {device}: {in_a_line(error)}"
    return None


def in_a_line(error: BaseException) -> str:
    """What was wrong, of the messages of compilers, which go on for pages."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    said = next((line for line in lines if not line.startswith("backend=")), type(error).__name__)
    compilers = next((line for line in lines if "error: " in line and line != said), "")
    return ": ".join(part[:160] for part in (said, compilers) if part)
