"""What does the model paint now into the holes of fixed validation pictures?"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from ldm.data.source import Data
from ldm.images import from_pil, to_pil, to_uint8
from ldm.pipeline import Pipeline
from ldm.pipeline.inputs import hidden
from ldm.training.callbacks.sampling import ImageSink, SampleGrid, SampleSettings
from ldm.training.inpainting import InpaintingSettings
from ldm.types import ImageBatch


class InpaintGrid(SampleGrid):
    """The first validation pictures, each with its hole and painted anew, side by side.

    As many as `settings` has prompts, with their own captions and settings' seeds; the masks are
    boxes and strokes, keyed by the picture's place. Else as SampleGrid.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        folder: Path,
        settings: SampleSettings,
        *,
        data: Data,
        seed: int,
        sink: ImageSink | None = None,
    ) -> None:
        assert data.val is not None
        batch = data.val.batch(torch.arange(min(len(settings.prompts), data.val_size)))
        assert isinstance(batch, ImageBatch)  # app refuses cached latents
        seeds = None if settings.seeds is None else settings.seeds[: len(batch)]
        shown = replace(settings, prompts=list(batch.captions), seeds=seeds)
        super().__init__(pipeline, folder, shown, sink=sink)
        self.pixels = batch.pixels
        self.masks = _visible(
            InpaintingSettings(full=0.0, boxes=0.5).masks(batch, seed, "grid-mask"),
            pipeline.codec.factor,
        )

    def _pictures(self, mine: list[int]) -> Tensor:
        """Hole and result beside each other: [n,H,2W,3] uint8."""
        pixels, masks = self.pixels[mine], self.masks[mine]
        painted = self.pipeline.inpaint(
            [self.prompts[j] for j in mine],
            to_pil(pixels),
            to_pil((2 * masks - 1).expand(-1, 3, -1, -1)),
            seeds=[self.seeds[j] for j in mine],
            batch_size=len(mine),
        )
        return torch.cat([to_uint8(hidden(pixels, masks)), to_uint8(from_pil(painted))], dim=2)


def _visible(masks: Tensor, factor: int) -> Tensor:
    """Everything hidden where no latent position sees the mask, which a pipeline would refuse."""
    seen = F.interpolate(masks, scale_factor=1 / factor, mode="nearest").flatten(1).any(1)
    return torch.where(seen[:, None, None, None], masks, torch.ones_like(masks))
