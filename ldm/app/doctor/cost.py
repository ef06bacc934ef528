"""What would the run take of a GPU that need not be here?"""

from __future__ import annotations

from typing import Any

from ldm.app.doctor.findings import Chapter
from ldm.data.settings import DataConfig
from ldm.page import Bars, Facts, Text
from ldm.parts import build
from ldm.training.plan import Plan
from ldm.training.support import FP8

Config = dict[str, Any]
DTYPES = {"32-true": "fp32", "bf16-mixed": "bf16", "16-mixed": "fp16", FP8: "bf16"}
TIGHT = 0.9  # of the memory; above it an allocator's bad day ends the run


def cost(cfg: Config, plan: Plan, job: Any, gpu: str | None) -> Chapter:
    """Memory by item, and the time of a step and of the run."""
    chapter = Chapter("Memory and time")
    if cfg["task"] != "diffusion":
        chapter.ok(f"only task=diffusion is estimated, not {cfg['task']}")
        return chapter
    if gpu is None:
        chapter.ok("doctor.gpu=NAME, as a100, estimates memory and time")
        return chapter
    from ldm.training.estimate import GPUS, estimate
    from ldm.training.estimate_gpus import find_gpu

    optim, settings = build(cfg["training"]["optim"]), build(cfg["training"]["trainer"])
    parts, module = job.encoders, job.module
    trained = sum(p.numel() for p in module.parameters() if p.requires_grad)
    every = sum(p.numel() for p in module.parameters())
    cached = job.data.layout is not None
    networks = [] if cached else [parts.codec.vae, parts.text.module]
    found = estimate(
        build(cfg["models"]["unet"]),
        latent_size=_latent_size(build(cfg["data"]), parts.codec.factor),
        micro_batch=plan.micro_batch,
        tokens=max(parts.text.max_tokens, 1),
        optimizer="adamw8bit" if optim.eight_bit else "adamw",
        ema=cfg["training"]["ema"]["half_life"] is not None,
        dtype=DTYPES[settings.precision],
        trainable=None if trained == every else trained,
        devices=plan.world_size,
        accumulate=plan.accumulate,
        gpu=gpu,
        encoders=sum(p.numel() * p.element_size() for n in networks for p in n.parameters()),
    )
    memory, hours = find_gpu(gpu).memory, plan.total_samples / found.images_per_s / 3600
    name = next(name for name, known in GPUS.items() if known == find_gpu(gpu))
    facts = {
        "GPU": f"{plan.world_size} × {name}, {memory / 2**30:.0f} GiB",
        "memory": f"{found.memory_total / 2**30:.1f} GiB",
        "images a second": found.images_per_s,
        "seconds a step": found.seconds_per_step,
        "time of the run": _duration(hours),
        "GPU hours": round(hours * plan.world_size, 3),
        "TFLOPs an image": found.flops_per_image / 1e12,
        "share of the GPU's peak": f"{found.mfu_assumed:.0%}",
    }
    chapter.facts |= facts | {
        "hours": hours,
        "memory_bytes": dict(found.memory),
        "notes": list(found.notes),
    }
    share = found.memory_total / memory
    told = f"{facts['memory']} of {memory / 2**30:.0f} GiB with a micro-batch of {plan.micro_batch}"
    if not found.fits:
        chapter.error(
            f"it would not fit: {told}",
            "lower training.micro_batch, or take models.unet.checkpointing=true",
        )
    elif share > TIGHT:
        chapter.warning(f"it would be tight: {told}", "lower training.micro_batch")
    else:
        chapter.ok(f"{told}; {found.images_per_s:,.0f} images/s, {_duration(hours)}")
    sizes = [size / 2**30 for size in found.memory.values()]
    chapter.elements += [
        Facts(facts),
        Bars("Memory in GiB", list(found.memory), [round(size, 3) for size in sizes]),
        *(Text(note) for note in found.notes),
    ]
    return chapter


def _duration(hours: float) -> str:
    return f"{hours:,.1f} hours" if hours >= 1 else f"{hours * 60:.1f} minutes"


def _latent_size(config: DataConfig, factor: int) -> tuple[int, int]:
    """(h, w) of the largest pictures."""
    sizes = config.buckets.sizes(config.size) if config.buckets.used else []
    height, width = max(sizes or [(config.size, config.size)], key=lambda pair: pair[0] * pair[1])
    return height // factor, width // factor
