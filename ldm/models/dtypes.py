"""What may weights be kept in, and what of it does this device compute in?"""

from __future__ import annotations

import logging
import os
from functools import cache

import torch

log = logging.getLogger(__name__)

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def bf16_problem(device: str) -> str | None:
    """Why this device (cpu, cuda, cuda:1 …) has no bf16; None when it has, or is not there. A CPU
    has, if slowly."""
    if torch.device(device).type != "cuda" or not torch.cuda.is_available():
        return None
    if torch.cuda.is_bf16_supported(including_emulation=False):
        return None
    major, minor = torch.cuda.get_device_capability()
    return f"this GPU's compute capability {major}.{minor} has no bf16, which begins at 8.0"


def dtype_here(name: str, device: str) -> torch.dtype:
    """What `name` becomes on `device`. auto: bf16 on a GPU that has it, fp32 elsewhere.

    bf16 on a GPU without it is fp32, with one warning; float16 would overflow in a VAE. Raises
    ValueError on an unknown name.
    """
    if name not in (allowed := ("auto", *DTYPES)):
        raise ValueError(f"dtype={name!r}; allowed: {', '.join(allowed)}")
    reason = bf16_problem(device)
    if name == "auto":
        on_gpu = torch.device(device).type == "cuda"
        return torch.bfloat16 if on_gpu and reason is None else torch.float32
    if name == "bf16" and reason is not None:
        _warn(f"dtype=bf16 does not run here: {reason}. It is fp32 instead")
        return torch.float32
    return DTYPES[name]


@cache
def _warn(text: str) -> None:
    """Once, by the first process of a machine."""
    if os.environ.get("LOCAL_RANK", "0") == "0":
        log.warning("%s", text)
