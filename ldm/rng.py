"""Where does every random number come from?

Philox4x32-10 (Salmon et al. 2011): a number is a pure function of (seed, purpose, sample index,
place), so it does not depend on the batch a sample is in, on the order of the draws, on threads or
on the device. The words are the same on every device; log and cos may differ in the last bit.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from functools import lru_cache

import torch
from torch import Tensor

_MASK = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)  # key increments: golden ratio, sqrt(3) - 1
_ROUNDS = 10
_CACHED_WORDS = 1 << 17  # words drawn at once on the CPU
_CHUNK = 1 << 14  # blocks drawn at once in `permutation`


def uniform(seed: int, purpose: str, index: Tensor, shape: tuple[int, ...] = ()) -> Tensor:
    """Uniform in [0, 1). index: [B] int64 -> [B,*shape] float32 on its device."""
    count = math.prod(shape)

    def draw(rows: Tensor) -> Tensor:
        # 24 bits: every value is exact in float32, and 1.0 is never reached by rounding
        return (_words(seed, purpose, rows, count) >> 8).to(torch.float32) * 2.0**-24

    return _in_parts(draw, index, count).reshape(-1, *shape)


def normal(seed: int, purpose: str, index: Tensor, shape: tuple[int, ...] = ()) -> Tensor:
    """Standard normal by Box-Muller. index: [B] int64 -> [B,*shape] float32 on its device."""
    count = math.prod(shape)
    pairs = (count + 1) // 2

    def draw(rows: Tensor) -> Tensor:
        words = _words(seed, purpose, rows, 2 * pairs).reshape(-1, 2)
        # contiguous: strided input takes another code path of log and cos, with other last bits
        radius = (words[:, 0].to(torch.float32) + 1.0).mul_(2.0**-32).log_().mul_(-2.0).sqrt_()
        angle = words[:, 1].to(torch.float32).mul_(2.0 * math.pi * 2.0**-32)
        both = torch.stack([radius * angle.cos(), radius * angle.sin()], dim=-1)
        return both.reshape(-1, 2 * pairs)[:, :count]

    return _in_parts(draw, index, count).reshape(-1, *shape)


def integers(
    seed: int, purpose: str, index: Tensor, high: int, shape: tuple[int, ...] = ()
) -> Tensor:
    """Uniform integers in [0, high). index: [B] int64 -> [B,*shape] int64 on its device."""
    if not 0 < high <= 1 << 48:
        raise ValueError(f"high={high} is not in 1 … 2^48; the 62-bit draws would be biased")
    count = 2 * math.prod(shape)

    def draw(rows: Tensor) -> Tensor:
        return _joined(_words(seed, purpose, rows, count).reshape(-1, 2)) % high

    return _in_parts(draw, index, count).reshape(-1, *shape)


def permutation(seed: int, purpose: str, index: int, n: int) -> Tensor:
    """The keyed permutation number `index` of range(n): [n] int64 on the CPU."""
    row = torch.tensor([index], dtype=torch.int64)
    key = _key(seed, purpose)
    blocks = (n + 1) // 2  # two 62-bit sort keys a block
    chunks = [
        _joined(_philox(row, torch.arange(at, min(at + _CHUNK, blocks)), key).reshape(-1, 2))
        for at in range(0, blocks, _CHUNK)
    ]
    sort_keys = torch.cat(chunks)[:n] if chunks else row[:0]
    return torch.argsort(sort_keys, stable=True)  # stable: a tie is broken the same everywhere


def fold(seed: int, purpose: str, index: int = 0) -> int:
    """One non-negative 63-bit integer made of all three: an `index`, or a seed for a library."""
    text = f"{int(seed)}\0{purpose}\0{int(index)}".encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little") >> 1


def _in_parts(draw: Callable[[Tensor], Tensor], index: Tensor, count: int) -> Tensor:
    """`draw` for a few rows at a time on the CPU: outside its cache it is ten times slower."""
    rows = max(1, _CACHED_WORDS // max(1, count))
    if index.device.type != "cpu" or index.shape[0] <= rows:
        return draw(index)
    return torch.cat([draw(part) for part in torch.split(index, rows)])


def _joined(words: Tensor) -> Tensor:
    """Two 32-bit words as one 62-bit integer. [...,2] -> [...]."""
    return (words[..., 0] << 30) ^ (words[..., 1] >> 2)


def _words(seed: int, purpose: str, index: Tensor, count: int) -> Tensor:
    """`count` 32-bit words for every sample. index: [B] -> [B,count] int64."""
    if index.ndim != 1 or index.dtype != torch.int64:
        got = f"{tuple(index.shape)} {index.dtype}"
        raise ValueError(f"index is {got}; give a one-dimensional int64 tensor")
    blocks = torch.arange((count + 3) // 4, device=index.device)
    words = _philox(index, blocks, _key(seed, purpose))
    return words.reshape(index.shape[0], 4 * blocks.shape[0])[:, :count]


@lru_cache(maxsize=4096)
def _key(seed: int, purpose: str) -> tuple[int, int]:
    """A 64-bit key as two words. Hashed, so that seeds of any size and sign all differ."""
    digest = hashlib.blake2b(f"{int(seed)}\0{purpose}".encode(), digest_size=8).digest()
    return int.from_bytes(digest[:4], "little"), int.from_bytes(digest[4:], "little")


def _philox(index: Tensor, blocks: Tensor, key: tuple[int, int]) -> Tensor:
    """The words of the counters (index low, index high, block, 0). [B], [N] -> [B,N,4] int64."""
    size = (index.shape[0], blocks.shape[0])
    low, high = index & _MASK, (index >> 32) & _MASK
    block = blocks[None].expand(size)
    rows = (low[:, None].expand(size), high[:, None].expand(size), block, torch.zeros_like(block))
    return philox4x32(rows, key)


def philox4x32(counter: tuple[Tensor, ...], key: tuple[int, int]) -> Tensor:
    """Philox4x32-10 itself: four tensors of 32-bit words [...] and two key words -> [...,4] int64.

    int64 products wrap, but their 64 bits are those of the unsigned product of two 32-bit words.
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(_ROUNDS):
        p0, p1 = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        # in place on the new tensors; c1 and c3 keep their high halves, which the next mask drops
        c0 = (p1 >> 32).bitwise_xor_(c1).bitwise_xor_(k0).bitwise_and_(_MASK)
        c2 = (p0 >> 32).bitwise_xor_(c3).bitwise_xor_(k1).bitwise_and_(_MASK)
        c1, c3 = p1, p0
        k0, k1 = (k0 + _WEYL[0]) & _MASK, (k1 + _WEYL[1]) & _MASK
    return torch.stack((c0, c1 & _MASK, c2, c3 & _MASK), dim=-1)
