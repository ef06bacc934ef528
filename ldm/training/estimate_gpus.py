"""How much can each GPU hold, compute and move, by its data sheet?"""

from __future__ import annotations

from dataclasses import dataclass
from difflib import get_close_matches

GIB = 2**30
PER_NODE = 8  # GPUs of one machine


@dataclass(frozen=True)
class GPU:
    """memory: bytes that a driver shows. half, single: FLOP/s, dense products of half-precision
    numbers summed in fp32, and plain fp32. Bytes a second: bandwidth of its memory; within: to
    the other GPUs of its machine, one way; across: its share of the machine's network.

    bf16: whether it multiplies bfloat16; the older ones have float16 only.
    """

    memory: int
    half: float
    single: float
    bandwidth: float
    within: float
    across: float
    bf16: bool = True


# clouds wire the data-centre GPUs with 200 or 400 Gbit/s each, the others with 100 a machine
_SLOW = 100e9 / 8 / PER_NODE
_PCIE3, _PCIE4, _PCIE5 = 16e9, 32e9, 64e9

GPUS: dict[str, GPU] = {
    "b200": GPU(179 * GIB, 2250e12, 75e12, 8.0e12, 900e9, 50e9),
    "h200": GPU(140 * GIB, 989e12, 67e12, 4.8e12, 450e9, 50e9),
    "h100": GPU(80 * GIB, 989e12, 67e12, 3.35e12, 450e9, 50e9),
    "a100-80": GPU(80 * GIB, 312e12, 19.5e12, 2.039e12, 300e9, 25e9),
    "a100-40": GPU(40 * GIB, 312e12, 19.5e12, 1.555e12, 300e9, 25e9),
    "v100-32": GPU(32 * GIB, 125e12, 15.7e12, 0.9e12, 150e9, 6.25e9, bf16=False),
    "v100-16": GPU(16 * GIB, 125e12, 15.7e12, 0.9e12, 150e9, 6.25e9, bf16=False),
    "l40s": GPU(45 * GIB, 362e12, 91.6e12, 0.864e12, _PCIE4, _SLOW),
    "l4": GPU(22 * GIB, 121e12, 30.3e12, 0.3e12, _PCIE4, _SLOW),
    "a10": GPU(22 * GIB, 125e12, 31.2e12, 0.6e12, _PCIE4, _SLOW),
    "t4": GPU(15 * GIB, 65e12, 8.1e12, 0.32e12, _PCIE3, _SLOW, bf16=False),
    "rtx5090": GPU(32 * GIB, 209.5e12, 104.8e12, 1.792e12, _PCIE5, _SLOW),
    "rtx4090": GPU(24 * GIB, 165.2e12, 82.6e12, 1.008e12, _PCIE4, _SLOW),
    "rtx3090": GPU(24 * GIB, 71e12, 35.6e12, 0.936e12, _PCIE4, _SLOW),
    "rtx4070-12": GPU(12 * GIB, 58.3e12, 29.1e12, 0.504e12, _PCIE4, _SLOW),
    "rtx3060-12": GPU(12 * GIB, 25.5e12, 12.7e12, 0.36e12, _PCIE4, _SLOW),
    "rtx4060-8": GPU(8 * GIB, 30.2e12, 15.1e12, 0.272e12, _PCIE4, _SLOW),
    "rtx3070-8": GPU(8 * GIB, 40.6e12, 20.3e12, 0.448e12, _PCIE4, _SLOW),
}
ALIASES = {
    "a100": "a100-80",
    "v100": "v100-32",
    "rtx3060": "rtx3060-12",
    "rtx3070": "rtx3070-8",
    "rtx4060": "rtx4060-8",
    "rtx4070": "rtx4070-12",
}


def find_gpu(name: str) -> GPU:
    """The GPU of that name or alias. Raises ValueError with the nearest name."""
    plain = name.lower().replace(" ", "")
    plain = ALIASES.get(plain, plain)
    if plain not in GPUS:
        near = get_close_matches(plain, [*GPUS, *ALIASES], 1, 0.0)[0]
        raise ValueError(f"gpu={name!r} is not known; nearest: {near}; known: {', '.join(GPUS)}")
    return GPUS[plain]


def all_reduce_s(size: int, devices: int, gpu: GPU, *, share: float) -> float:
    """Seconds to sum `size` bytes over `devices` when links reach `share` of their data sheet.

    A ring moves 2 (n-1)/n of the bytes over every link. Over several machines: each sums within,
    every GPU then exchanges its eighth with its likes in the other machines, and passes it on.
    """
    inside = min(devices, PER_NODE)
    nodes = -(-devices // PER_NODE)
    within = 2 * (inside - 1) / inside * size / gpu.within
    across = 2 * (nodes - 1) / nodes * size / inside / gpu.across
    return (within + across) / share
