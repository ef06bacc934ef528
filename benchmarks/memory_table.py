"""Which ways of fine-tuning SD 1.5 fit on 8, 12 and 24 GB? The tables of docs/finetuning/memory.md.

    python benchmarks/memory_table.py [--write]

Estimated: the step is traced without a device, adapters attached (ldm/training/estimate_trace.py).
Prints the tables; --write puts them into the page.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache, partial

import torch
from doc_tables import Table, differences, figure, fill
from scaling_model import REPOSITORY, TOKENS, unet
from torch import nn
from transformers import CLIPTextModel

from ldm.adapters.attach import Adapter, attached
from ldm.adapters.hypernetwork import Hypernetwork, HypernetworkConfig
from ldm.adapters.lora import LoRA, LoRAConfig
from ldm.models.text.clip import clip_l_config
from ldm.models.unet import UNet
from ldm.models.vae import AutoencoderKL, VAEConfig
from ldm.training.estimate import Estimate, Run, of_trace
from ldm.training.estimate_gpus import GIB
from ldm.training.estimate_trace import Trace, on_meta, trace_forward, trace_step

PAGE = REPOSITORY / "docs" / "finetuning" / "memory.md"
SIZE = 512
CARDS = (8, 12, 16, 24)  # GiB
LORA = LoRAConfig(rank=16, alpha=16.0)
HYPERNETWORK_WIDTHS = (320, 640, 768, 1280)  # of the contexts in SD 1, as web UIs have them


@dataclass(frozen=True, kw_only=True)
class Way:
    """One way of fine-tuning. cached: latents and texts from a cache, no encoder on the device."""

    kind: str
    checkpointing: bool = True
    optimizer: str = "adamw"
    ema: bool = True
    cached: bool = False


@dataclass(frozen=True)
class Step:
    """A traced step, and how many parameters are held and how many of them trained."""

    trace: Trace
    parameters: int
    trained: int


WAYS = {
    "full": Way(kind="full", checkpointing=False),
    "full, checkpointing": Way(kind="full"),
    "full, checkpointing, 8-bit AdamW": Way(kind="full", optimizer="adamw8bit"),
    "full, checkpointing, 8-bit AdamW, no EMA": Way(kind="full", optimizer="adamw8bit", ema=False),
    "inpainting (9 channels), checkpointing": Way(kind="inpainting"),
    "inpainting, checkpointing, 8-bit AdamW, no EMA": Way(
        kind="inpainting", optimizer="adamw8bit", ema=False
    ),
    "LoRA, rank 16": Way(kind="lora", checkpointing=False),
    "LoRA, rank 16, checkpointing": Way(kind="lora"),
    "hypernetwork": Way(kind="hypernetwork", checkpointing=False),
    "hypernetwork, checkpointing": Way(kind="hypernetwork"),
    "textual inversion": Way(kind="inversion", checkpointing=False),
    "textual inversion, checkpointing": Way(kind="inversion"),
}

# measured by others on a T4: SD 1 at 512 px, DreamBooth of the UNet with latents and texts cached,
# fp16, no EMA (the table in ShivamShrirao/diffusers, examples/dreambooth): images, GB
EIGHT = Way(kind="full", optimizer="adamw8bit", ema=False, cached=True)
MEASURED = {
    "8-bit, checkpointing, 1 image": (EIGHT, 1, 9.92),
    "8-bit, checkpointing, 2 images": (EIGHT, 2, 10.4),
    "8-bit, checkpointing, 1 image, accumulation 2": (EIGHT, 1, 11.56),
    "8-bit, 1 image": (replace(EIGHT, checkpointing=False), 1, 11.17),
    "8-bit, 2 images": (replace(EIGHT, checkpointing=False), 2, 13.67),
    "8-bit, 1 image, accumulation 2": (replace(EIGHT, checkpointing=False), 1, 13.7),
    "AdamW, checkpointing, 1 image": (replace(EIGHT, optimizer="adamw"), 1, 15.79),
}


# -- steps ----------------------------------------------------------------------------------------


@cache
def step(kind: str, checkpointing: bool, images: int) -> Step:
    """One step of SD 1.5 at 512 px in bf16."""
    name = "sd15_inpaint" if kind == "inpainting" else "sd15"
    config = replace(unet(name), checkpointing=checkpointing)
    with on_meta():
        network = UNet(config).requires_grad_(kind in ("full", "inpainting"))
        x, t = torch.empty(images, config.in_channels, SIZE // 8, SIZE // 8), torch.empty(images)
        context = torch.empty(images, TOKENS, 768)
    if kind == "inversion":
        return _inversion(network, x, t)
    with _adapted(network, kind) as adapter:
        held = nn.ModuleList([network, *([] if adapter is None else [adapter])])
        trace = trace_step(held, partial(network, x, t, context), dtype=torch.bfloat16)
    return Step(trace, _count(held), _count(held, trained=True))


@contextmanager
def _adapted(network: UNet, kind: str) -> Iterator[Adapter | None]:
    if kind in ("full", "inpainting"):
        yield None
        return
    with on_meta():
        adapter: Adapter = (
            LoRA(network, LORA)
            if kind == "lora"
            else Hypernetwork(HYPERNETWORK_WIDTHS, HypernetworkConfig())
        )
    with attached(network, adapter):
        yield adapter


def _inversion(network: UNet, x: torch.Tensor, t: torch.Tensor) -> Step:
    """One new vector: the gradient goes back through the UNet and the text encoder to it."""
    with on_meta():
        text = CLIPTextModel(clip_l_config()).requires_grad_(False)
        tokens = torch.zeros(len(x), TOKENS, dtype=torch.long)
    words = text.get_input_embeddings().weight.requires_grad_()
    held = nn.ModuleList([network, text])

    def call() -> torch.Tensor:
        prediction: torch.Tensor = network(x, t, text(tokens).last_hidden_state)
        return prediction

    trace = trace_step(held, call, dtype=torch.bfloat16)
    return Step(trace, _count(held), words.shape[1])


def _count(module: nn.Module, *, trained: bool = False) -> int:
    return sum(p.numel() for p in module.parameters() if p.requires_grad or not trained)


@cache
def encoding_peak(images: int) -> int:
    """Bytes that live at once while the VAE encodes, in bf16."""
    with on_meta():
        vae = AutoencoderKL(VAEConfig()).bfloat16()
        pixels = torch.empty(images, 3, SIZE, SIZE, dtype=torch.bfloat16)
    return trace_forward(partial(vae.encode, pixels)).peak


def total(way: Way, images: int) -> int:
    """Bytes on the device."""
    return estimated(way, images).memory_total


@cache
def estimated(way: Way, images: int) -> Estimate:
    """The step of one way, with the frozen encoders unless their output is cached."""
    found = step(way.kind, way.checkpointing, images)
    trace, encoders = found.trace, 0
    if not way.cached:
        trace = replace(trace, peak=max(trace.peak, encoding_peak(images)))
        encoders = 2 * _weights("vae") + 2 * _weights("text") * (way.kind != "inversion")
    run = Run(
        micro_batch=images,
        gpu="rtx3090",
        optimizer=way.optimizer,
        ema=way.ema,
        encoders=encoders,
    )
    return of_trace(trace, run, parameters=found.parameters, trained=found.trained)


@cache
def _weights(which: str) -> int:
    with on_meta():
        return _count(
            AutoencoderKL(VAEConfig()) if which == "vae" else CLIPTextModel(clip_l_config())
        )


def images_in(way: Way, room: float) -> int:
    """How many images a forward fit; memory is a line in their number."""
    one, two = total(way, 1), total(way, 2)
    return max(0, 1 + int((room - one) // (two - one))) if one <= room else 0


# -- the tables -----------------------------------------------------------------------------------


def fits() -> Table:
    """GiB with one image and with four, and how many fit."""
    rows = []
    for name, way in WAYS.items():
        found = step(way.kind, way.checkpointing, 1)
        one, two = total(way, 1), total(way, 2)  # memory is a line in the number of images
        numbers = [figure(one / GIB), figure((one + 3 * (two - one)) / GIB)]
        counts = [images_in(way, card * GIB) for card in CARDS]
        cells = [str(count) if count else "–" for count in counts]
        rows.append([name, f"{found.trained:,}", *numbers, *cells])
    cards = [f"images in {card} GB" for card in CARDS]
    return Table(["", "trained", "GiB, 1 image", "4 images", *cards], rows)


def items() -> Table:
    """What the GiB with one image are made of."""
    names = ["full, checkpointing", "full, checkpointing, 8-bit AdamW, no EMA"]
    names += ["LoRA, rank 16, checkpointing", "textual inversion, checkpointing"]
    rows = []
    heads: list[str] = []
    for name in names:
        memory = estimated(WAYS[name], 1).memory
        heads = list(memory)
        rows.append([name, *(f"{value / GIB:.2f}" for value in memory.values())])
    return Table(["", *heads], rows)


def measured() -> Table:
    """Others' measurements on a T4, and the estimate."""
    rows = [
        [name, figure(theirs), figure(total(way, images) / 1e9)]
        + [f"{total(way, images) / 1e9 / theirs:.2f}"]
        for name, (way, images, theirs) in MEASURED.items()
    ]
    return Table(["", "measured, GB", "estimated, GB", "ratio"], rows)


TABLES: dict[str, Callable[[], Table]] = {"fits": fits, "items": items, "measured": measured}


def problems() -> list[str]:
    """Where the page differs from what is derived now."""
    return differences(PAGE.read_text(), {n: make() for n, make in TABLES.items()}, within=0.05)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", action="store_true", help="into docs/finetuning/memory.md")
    args = parser.parse_args()
    tables = {name: make() for name, make in TABLES.items()}
    for name, table in tables.items():
        print(f"{name}: {TABLES[name].__doc__}\n\n{table.markdown()}")
    if args.write:
        PAGE.write_text(fill(PAGE.read_text(), tables))


if __name__ == "__main__":
    main()
