"""How does a request become pictures, batch by batch?

B batch, C latent channels, h x w latent size, H x W picture size in px.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby

import torch
from PIL import Image
from torch import Tensor, nn

from ldm.diffusion.objective import Objective
from ldm.images import from_pil, to_pil
from ldm.models.codec import Codec
from ldm.models.text.base import TextEncoder
from ldm.pipeline import inputs, tiles
from ldm.pipeline.batches import Batches, BatchSize, first_size
from ldm.pipeline.contexts import Contexts
from ldm.pipeline.noise import Noise
from ldm.pipeline.options import Settings
from ldm.pipeline.pictures import Drawn, Picture
from ldm.pipeline.solving import Model, Source, invert, solve, watched_steps
from ldm.types import Conditioning, Denoised

SMALLER = "lower height and width, or use dtype=bf16"
TILED = f"decode in tiles (tiled=true), {SMALLER}"


@dataclass(frozen=True)
class Parts:
    """What a pipeline draws with."""

    unet: nn.Module
    codec: Codec
    text: TextEncoder
    objective: Objective
    device: torch.device
    prepare: bool = True

    @property
    def model(self) -> Model:
        return Model(self.unet, self.objective, self.prepare)

    @property
    def extra_channels(self) -> int:
        """What the network is fed beside the noisy latents: 0, or C + 1 to inpaint with."""
        channels: int = self.unet.config.in_channels  # type: ignore[union-attr, assignment]
        return channels - self.codec.latent_channels

    def shape(self, size: tuple[int, int]) -> tuple[int, int, int]:
        """(C, h, w) of a picture of this size."""
        factor = self.codec.factor
        return self.codec.latent_channels, size[0] // factor, size[1] // factor

    def latents(self, pixels: Tensor, tiled: bool | None) -> Tensor:
        """Pixels [B,3,H,W] to x0 [B,C,h,w]: the posterior's mean, so that no seed is in it."""
        moments = tiles.moments(self.codec, pixels.to(self.device), tiled=tiled)
        return self.codec.latents(moments, torch.zeros_like(moments.chunk(2, dim=1)[0]))


@dataclass(frozen=True, kw_only=True)
class Request:
    """What all pictures of a request share. size: (height, width); watch: steps to look at."""

    settings: Settings
    size: tuple[int, int]
    strength: float = 1.0
    paste_back: bool = True
    watch: int = 0


@dataclass(frozen=True)
class _Row:
    """A picture before it is decoded. latents: x0 [C,h,w], then what was watched."""

    index: int
    latents: list[Tensor]


def draw(
    parts: Parts, pictures: Sequence[Picture], request: Request, batch_size: BatchSize
) -> Iterator[Drawn]:
    """The pictures as they are finished; in order, but for prompts of other lengths."""
    contexts = Contexts(parts.text, request.settings)
    size = first_batch(parts, request.size, batch_size, len(pictures))
    drawing, decoding = Batches(size, advice=SMALLER), Batches(size, advice=TILED)
    chunks = [contexts.chunks(picture) for picture in pictures]
    order = sorted(range(len(pictures)), key=chunks.__getitem__)

    def work(indices: list[int]) -> list[_Row]:
        batch = [pictures[i] for i in indices]
        rows = _latents(parts, batch, [contexts.of(p, chunks[indices[0]]) for p in batch], request)
        return [_Row(i, row) for i, row in zip(indices, rows, strict=True)]

    for _, group in groupby(order, key=chunks.__getitem__):  # one length of context a batch
        for used, rows in drawing.run(list(group), work):
            for row, images in zip(rows, _decoded(parts, rows, request, decoding), strict=True):
                image, *steps = images
                picture = pictures[row.index]
                if request.paste_back and picture.mask is not None and picture.image is not None:
                    image = inputs.pasted(image, picture.image, picture.mask)
                yield Drawn(row.index, image, used, tuple(steps))


def inverted(
    parts: Parts, pictures: Sequence[Picture], request: Request, batch_size: BatchSize
) -> Tensor:
    """The latents [N,C,h,w] at the sampler's first level from which the images come."""
    settings = request.settings
    contexts = Contexts(parts.text, settings)
    chunks = max(contexts.chunks(picture) for picture in pictures)

    @torch.inference_mode()
    def work(batch: list[Picture]) -> list[Tensor]:
        pixels = from_pil([p.image for p in batch if p.image is not None])
        cond = Conditioning.cat([contexts.of(p, chunks)[0] for p in batch]).to(parts.device)
        cond = replace(cond, concat=concat(parts, request, len(batch)))
        return list(invert(parts.model, cond, parts.latents(pixels, settings.tiled), settings))

    size = first_batch(parts, request.size, batch_size, len(pictures))
    batches = Batches(size, advice=TILED)
    return torch.stack([row for _, rows in batches.run(pictures, work) for row in rows])


def first_batch(parts: Parts, size: tuple[int, int], asked: BatchSize, count: int) -> int:
    """The batch size to begin with."""
    _, height, width = parts.shape(size)
    return first_size(asked, positions=height * width, count=count, device=parts.device)


def concat(
    parts: Parts,
    request: Request,
    count: int,
    pixels: Tensor | None = None,
    mask: Tensor | None = None,
) -> Tensor | None:
    """[count,1+C,h,w] for a network that was trained to inpaint: mask, latents of what is kept.

    pixels [B,3,H,W], mask [B,1,H,W]; None: everything is drawn anew. None for other networks.
    """
    if parts.extra_channels == 0:
        return None
    if pixels is None or mask is None:
        pixels, mask = torch.zeros(1, 3, *request.size), torch.ones(1, 1, *request.size)
    kept = parts.latents(inputs.hidden(pixels, mask), request.settings.tiled)
    small = inputs.mask_latents(mask, parts.codec.factor).to(parts.device)
    return torch.cat([small, kept], dim=1).expand(count, -1, -1, -1)


@torch.inference_mode()
def _latents(
    parts: Parts,
    batch: list[Picture],
    contexts: list[tuple[Conditioning, Conditioning]],
    request: Request,
) -> list[list[Tensor]]:
    """A batch's x0, and what was believed of it at the watched steps: a list a picture."""
    cond, uncond = (Conditioning.cat(side).to(parts.device) for side in zip(*contexts, strict=True))
    images = [p.image for p in batch if p.image is not None]
    masks = [p.mask for p in batch if p.mask is not None]
    starts = [p.start for p in batch if p.start is not None]
    pixels = from_pil(images) if images else None
    mask = inputs.mask_pixels(masks) if masks else None
    joined = concat(parts, request, len(batch), pixels, mask)
    source = _source(parts, pixels, mask, request)
    watched: list[Tensor] = []
    at = watched_steps(parts.model, request.settings, source, request.watch)

    def look(step: int, belief: Denoised) -> None:
        if step in at:
            watched.append(belief.x0)

    x0 = solve(
        parts.model,
        replace(cond, concat=joined),
        replace(uncond, concat=joined),
        Noise([p.seed for p in batch], parts.shape(request.size), parts.device),
        request.settings,
        source=source,
        start=torch.stack(starts).to(parts.device) if starts else None,
        on_step=look if at else None,
    )
    return [[latents[i] for latents in (x0, *watched)] for i in range(len(batch))]


def _source(
    parts: Parts, pixels: Tensor | None, mask: Tensor | None, request: Request
) -> Source | None:
    """The image's latents, where they play a part."""
    keeps = mask is not None and parts.extra_channels == 0
    if pixels is None or (request.strength == 1 and not keeps):
        return None
    x0 = parts.latents(pixels, request.settings.tiled)
    if mask is None or not keeps:
        return Source(x0, request.strength)
    small = inputs.mask_latents(mask, parts.codec.factor).to(parts.device)
    return Source(x0, request.strength, small)


def _decoded(
    parts: Parts, rows: Sequence[_Row], request: Request, batches: Batches
) -> list[list[Image.Image]]:
    """The pictures of every row."""

    @torch.inference_mode()
    def work(latents: list[Tensor]) -> list[Image.Image]:
        x0 = torch.stack(latents)
        return to_pil(tiles.decoded(parts.codec, x0, tiled=request.settings.tiled))

    flat = [latents for row in rows for latents in row.latents]
    images = iter([image for _, part in batches.run(flat, work) for image in part])
    return [[next(images) for _ in row.latents] for row in rows]
