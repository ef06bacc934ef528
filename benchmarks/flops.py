"""How many FLOPs is a training step, and which share of the matrix peak is that?

    python benchmarks/flops.py [--device auto]        the counts, and this machine's peak

Counted by torch.utils.flop_counter on meta tensors, which have shapes but no numbers: a
multiply-add is 2, sums and norms are none. A step is three forwards, as MosaicML counts (the
backward has two products for each of the forward's); what is computed a second time, in attention
or under checkpointing, does not raise it. The network alone: no autoencoder, no text encoder.
"""

from __future__ import annotations

import argparse
import re
import time
from collections.abc import Callable
from dataclasses import replace
from functools import cache

import torch
from networks import shape
from torch.utils.flop_counter import FlopCounterMode

from ldm.models.unet import UNet
from ldm.training.estimate_gpus import GPUS

TOKENS = 77
FACTOR = 8  # pixels a latent position on each side
PUBLISHED = {("sd21", 256): 0.543e12, ("sd21", 512): 2.41e12}  # MosaicML 2023, of training
NETWORKS = {"sd15": "SD 1.5", "sd21": "SD 2"}
SIZES_PX = (256, 512)
SIDES = {"cuda": (4096, 8192, 12288, 16384), "cpu": (512, 1024, 2048)}  # of square matrices
# names as the driver has them, of boards that reach the number of the data sheet's SXM module
BOARDS = {"NVIDIA B200": "b200", "NVIDIA H200": "h200", "NVIDIA H100 80GB HBM3": "h100"}


@cache
def forward_flops(size: str, px: int) -> int:
    """Of one image through the shipped network of that name."""
    network, inputs = _on_meta(size, px)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        network(*inputs)
    return int(counter.get_total_flops())


def training_flops(size: str, px: int) -> int:
    """Of one image: three forwards."""
    return 3 * forward_flops(size, px)


@cache
def exact_training_flops(size: str, px: int) -> int:
    """As autograd asks for them: no gradients of the inputs, so a little less than three."""
    network, inputs = _on_meta(size, px)
    with FlopCounterMode(display=False) as counter:
        network(*inputs).sum().backward()
    return int(counter.get_total_flops())


def _on_meta(size: str, px: int) -> tuple[UNet, tuple[torch.Tensor, ...]]:
    config = replace(shape(size), upcast_attention=False)  # meta knows no autocast to leave
    side, width = px // FACTOR, config.cross_attention_dim
    assert width is not None
    with torch.device("meta"):
        inputs = torch.empty(1, config.in_channels, side, side), torch.empty(1)
        return UNet(config), (*inputs, torch.empty(1, TOKENS, width))


def matmul_peak(
    device: str,
    dtype: torch.dtype,
    *,
    seconds: float = 1.0,
    now: Callable[[], float] = time.perf_counter,
) -> dict[int, float]:
    """FLOP/s of square products of random matrices by their side, the best of those timed.

    Random, for a GPU multiplies zeros faster; seconds: of products for each side, by the wall;
    now: the clock that times them.
    """
    found = {}
    for side in SIDES[device]:
        rng = torch.Generator(device).manual_seed(0)
        a, b = (torch.randn(side, side, device=device, generator=rng).to(dtype) for _ in "ab")
        best, end = 0.0, time.monotonic() + seconds
        repeats = 10 if device == "cuda" else 1
        _timed_products(a, b, repeats, now)
        while not best or time.monotonic() < end:
            best = max(best, 2 * side**3 * repeats / _timed_products(a, b, repeats, now))
        found[side] = best
    if device == "cuda":
        torch.cuda.empty_cache()
    return found


def _timed_products(
    a: torch.Tensor, b: torch.Tensor, repeats: int, now: Callable[[], float]
) -> float:
    _wait(a)
    begin = now()
    for _ in range(repeats):
        torch.mm(a, b)
    _wait(a)
    return now() - begin


def _wait(like: torch.Tensor) -> None:
    if like.is_cuda:
        torch.cuda.synchronize()


def data_sheet_peak(name: str) -> float | None:
    """Dense bf16 FLOP/s of the GPU of that name; None when it is not known."""
    if re.match(r"NVIDIA A100[- ]", name):  # all of its boards have the same
        return GPUS["a100-80"].half
    return GPUS[BOARDS[name]].half if name in BOARDS else None


def mfu(size: str, px: int, *, images_per_s: float, peak: float) -> float:
    """Model-FLOPs utilisation (Chowdhery et al. 2022, appendix B): a share of `peak` FLOP/s."""
    return training_flops(size, px) * images_per_s / peak


def counts(size: str, px: int) -> dict[str, int]:
    """FLOPs of one image: of the forward, of training, and of training as autograd does it."""
    return {
        "forward": forward_flops(size, px),
        "training": training_flops(size, px),
        "by_autograd": exact_training_flops(size, px),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda"])
    device = parser.parse_args().device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    for size, name in NETWORKS.items():
        for px in SIZES_PX:
            found = [f"{what} {flops / 1e12:.4f}" for what, flops in counts(size, px).items()]
            print(f"{name}, {px} px, TFLOP an image: {', '.join(found)}")
    for side, speed in matmul_peak(device, torch.bfloat16).items():
        print(f"bf16 product of {side} x {side} matrices on {device}: {speed / 1e12:.2f} TFLOP/s")


if __name__ == "__main__":
    main()
