"""How much memory and time would a training step take on a GPU that is not here?

A step is traced on meta tensors (estimate_trace.py): FLOPs, bytes moved and bytes kept are counted
on the network itself. What is assumed: each kernel takes the longer of its FLOPs at PRODUCTS of
the data sheet's peak and its bytes at STREAM of the bandwidth, and all of them at least LAUNCH_S
each. PRODUCTS is the one fitted number, to published runs; docs/scaling.md compares with others.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import lru_cache

import torch

from ldm.models.unet import UNet, UNetConfig
from ldm.training.estimate_gpus import GIB, GPU, GPUS, all_reduce_s, find_gpu
from ldm.training.estimate_trace import Op, Trace, on_meta, trace_step

__all__ = ["GPUS", "Estimate", "Run", "estimate", "of_trace"]

PRODUCTS = 0.39  # of the peak FLOP/s: SD 2 on 8 A100, 1,100 and 290 images/s (MosaicML, 2023)
STREAM = 0.7  # of the memory's bandwidth, in kernels that are bound by it
LINKS = 0.7  # of the network's bandwidth, in an all-reduce
LAST_BUCKET = 0.05  # of the gradients
LAUNCH_S = 12e-6  # Python, dispatch and launch of a kernel, while the GPU works on earlier ones
CONTEXT = 0.6 * GIB  # CUDA's context and the libraries' workspaces
FRAGMENTS = 0.08  # of the activations, which the allocator cannot use

DTYPES = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}
MOMENTS = {"adamw": 8.0, "adamw8bit": 2 + 2 * 4 / 256}  # bytes a parameter; a scale each 256
# read and written a parameter: the gradient's norm and clipping 12, AdamW 12 + 2 x moments, EMA 12
CLIP, WEIGHTS, AVERAGE = 12, 12, 12


@dataclass(frozen=True, kw_only=True)
class Run:
    """How the step is made. micro_batch: images a device and forward; accumulate: forwards a step.

    encoders: bytes of frozen encoders on the device, 0 for cached latents and captions.
    """

    micro_batch: int
    accumulate: int = 1
    devices: int = 1
    gpu: str = "a100"
    optimizer: str = "adamw"
    ema: bool = True
    dtype: str = "bf16"
    encoders: int = 0

    def __post_init__(self) -> None:
        problems = [
            f"{name}={value}; 1 or more"
            for name in ("micro_batch", "accumulate", "devices")
            if (value := getattr(self, name)) < 1
        ]
        for name, known in (("optimizer", MOMENTS), ("dtype", DTYPES)):
            if getattr(self, name) not in known:
                problems.append(f"{name}={getattr(self, name)!r}; known: {', '.join(known)}")
        if self.encoders < 0:
            problems.append(f"encoders={self.encoders}; bytes, 0 or more")
        try:
            find_gpu(self.gpu)
        except ValueError as error:
            problems.append(str(error))
        if problems:
            raise ValueError("estimate: " + "; ".join(problems))


@dataclass(frozen=True)
class Estimate:
    """Bytes a device, by item, and the time of one optimiser step of all devices, by item.

    flops_per_image: of training, without what is computed twice; mfu_assumed: the share of the
    GPU's peak that these would be in the time given; all_reduce_s: hidden behind the backward or
    not.
    """

    memory: dict[str, int]
    memory_total: int
    fits: bool
    flops_per_image: float
    seconds: dict[str, float]
    seconds_per_step: float
    images_per_s: float
    mfu_assumed: float
    all_reduce_s: float
    notes: tuple[str, ...]


def estimate(
    unet_config: UNetConfig,
    *,
    latent_size: tuple[int, int],
    micro_batch: int,
    tokens: int,
    optimizer: str = "adamw",
    ema: bool = True,
    dtype: str = "bf16",
    checkpointing: bool | None = None,
    trainable: int | None = None,
    devices: int = 1,
    accumulate: int = 1,
    gpu: str = "a100",
    encoders: int | None = None,
) -> Estimate:
    """What training this network would take. latent_size: (h, w); tokens: text positions.

    checkpointing None: as unet_config says. trainable: parameters trained, None for all; of a part
    the activations of training all are counted, an upper bound. encoders: bytes of the frozen
    encoders, None for cached latents and captions. Raises ValueError with all that is wrong.
    """
    run = Run(
        micro_batch=micro_batch,
        accumulate=accumulate,
        devices=devices,
        gpu=gpu,
        optimizer=optimizer,
        ema=ema,
        dtype=dtype,
        encoders=encoders or 0,
    )
    if min(*latent_size, tokens) < 1:
        raise ValueError(f"estimate: latent_size={latent_size}, tokens={tokens}; 1 or more each")
    if checkpointing is not None:
        unet_config = replace(unet_config, checkpointing=checkpointing)
    notes = []
    parameters, trace = _traced(unet_config, latent_size, micro_batch, tokens, dtype, False)
    trained = parameters if trainable is None else trainable
    if trained < 0:
        raise ValueError(f"estimate: trainable={trainable}; 0 or more parameters, or None for all")
    if trained < parameters:
        _, frozen = _traced(unet_config, latent_size, micro_batch, tokens, dtype, True)
        trace = replace(trace, backward=frozen.backward)
        notes.append("a part is trained: the activations are those of all, an upper bound")
    found = of_trace(trace, run, parameters=parameters, trained=trained)
    return replace(found, notes=(*found.notes, *notes))


def of_trace(trace: Trace, run: Run, *, parameters: int, trained: int) -> Estimate:
    """The same for a step that was traced elsewhere, of a network with adapters for example.

    parameters: all that are held in fp32; trained: those with a gradient.
    """
    gpu = find_gpu(run.gpu)
    kept = trace.peak - trace.casts
    memory = {
        "weights": 4 * parameters,
        "gradients": 4 * trained,
        "optimizer": round(MOMENTS[run.optimizer] * trained),
        "EMA": 4 * trained * run.ema,
        "half-precision weights": trace.casts,
        "activations": kept,
        "frozen encoders": run.encoders,
        "CUDA and fragmentation": round(CONTEXT + FRAGMENTS * kept),
    }
    forward_s, backward_s = (
        kernels_s(ops, gpu, dtype=run.dtype) for ops in (trace.forward, trace.backward)
    )
    reduce_s = all_reduce_s(4 * trained, run.devices, gpu, share=LINKS)
    update = CLIP + WEIGHTS + 2 * MOMENTS[run.optimizer]
    seconds = {
        "network": run.accumulate * (forward_s + backward_s),
        # DDP sums bucket by bucket while it goes backward; the last one nobody hides
        "all-reduce, not hidden": max(reduce_s - backward_s, LAST_BUCKET * reduce_s),
        "clipping and AdamW": update * trained / (STREAM * gpu.bandwidth),
        "EMA": AVERAGE * run.ema * trained / (STREAM * gpu.bandwidth),
    }
    step_s = sum(seconds.values())
    images_per_s = run.micro_batch * run.accumulate * run.devices / step_s
    share = min(trained / parameters, 1.0)
    flops = (2 + share) * trace.forward_flops / run.micro_batch
    total = sum(memory.values())
    return Estimate(
        memory=memory,
        memory_total=total,
        fits=total <= gpu.memory,
        flops_per_image=flops,
        seconds=seconds,
        seconds_per_step=step_s,
        images_per_s=images_per_s,
        mfu_assumed=flops * images_per_s / run.devices / _peak(gpu, run.dtype),
        all_reduce_s=reduce_s,
        notes=tuple(_notes(run, gpu)),
    )


def kernels_s(ops: Iterable[Op], gpu: GPU, *, dtype: str = "bf16") -> float:
    """Seconds of kernels one after the other; of small ones those that the CPU needs to ask."""
    product, stream, ops = PRODUCTS * _peak(gpu, dtype), STREAM * gpu.bandwidth, tuple(ops)
    busy = sum(max(op.flops / product, op.moved / stream) for op in ops)
    return max(busy, LAUNCH_S * len(ops))


def _peak(gpu: GPU, dtype: str) -> float:
    return gpu.single if dtype == "fp32" else gpu.half


@lru_cache(maxsize=32)
def _traced(
    config: UNetConfig, size: tuple[int, int], rows: int, tokens: int, dtype: str, frozen: bool
) -> tuple[int, Trace]:
    """Parameters and the trace. frozen: gradients of the activations alone."""
    with on_meta():
        unet = UNet(config).requires_grad_(not frozen)
        x = torch.empty(rows, config.in_channels, *size, requires_grad=frozen)
        t, context = torch.empty(rows), None
        if config.cross_attention_dim is not None:
            context = torch.empty(rows, tokens, config.cross_attention_dim)
    trace = trace_step(unet, lambda: unet(x, t, context), dtype=DTYPES[dtype])
    return sum(p.numel() for p in unet.parameters()), trace


def _notes(run: Run, gpu: GPU) -> Iterable[str]:
    yield (
        f"no measurement: kernels at {PRODUCTS:.0%} of the peak or {STREAM:.0%} of the bandwidth, "
        "fitted to one published A100 run; expect the time to be right within a third"
    )
    if run.dtype == "bf16" and not gpu.bf16:
        yield f"{run.gpu} has no bf16; use 16-mixed (dtype fp16), with the same memory and time"
    if run.optimizer == "adamw8bit":
        yield "adamw8bit: two bytes a parameter and a scale each 256, from its format"
    if run.encoders:
        yield "the frozen encoders' memory is counted, their time is not"
    else:
        yield "latents and captions come from a cache: no encoder is on the device"
