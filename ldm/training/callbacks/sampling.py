"""What does the model draw now, from fixed prompts and seeds?"""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from PIL import Image
from torch import Tensor

from ldm.images import from_uint8, grid, to_pil, to_uint8
from ldm.pipeline import Pipeline
from ldm.training.module import DiffusionModule
from ldm.training.plan import crossed
from ldm.types import Conditioning

log = logging.getLogger(__name__)
ImageSink = Callable[[str, list[Image.Image], list[str], int], None]


@dataclass(frozen=True, kw_only=True)
class SampleSettings:
    """Which pictures are drawn while training. seeds: one a prompt, or None for 0, 1, 2, …"""

    prompts: list[str]
    seeds: list[int] | None = None
    weights: str = "ema"
    columns: int = 4

    def problems(self) -> list[str]:
        """Everything wrong with the values, each with what is allowed."""
        found = []
        if self.weights not in ("ema", "raw"):
            found.append(f"training.callbacks.samples.weights={self.weights!r}; allowed: ema, raw")
        if self.seeds is not None and len(self.seeds) != len(self.prompts):
            found.append(
                f"training.callbacks.samples: {len(self.seeds)} seeds for {len(self.prompts)} "
                "prompts; give one each, or null"
            )
        if not self.prompts:
            found.append("training.callbacks.samples.prompts is empty; sample_every=null for none")
        return found


class SampleGrid(Callback):
    """txt2img every `plan.sample_every` samples and at the end: a captioned grid on disk and in
    the loggers.

    Every rank draws the prompts j with j % world == rank, padded to the same number, so the
    pictures do not depend on the number of ranks; all randomness is keyed, so training's is not
    touched. Prompts are encoded once, at the start.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        folder: Path,
        settings: SampleSettings,
        *,
        sink: ImageSink | None = None,
    ) -> None:
        self.pipeline = pipeline
        self.folder = folder
        self.prompts = list(settings.prompts)
        self.seeds = settings.seeds or list(range(len(settings.prompts)))
        self.weights = settings.weights
        self.columns = settings.columns
        self._sink = sink
        self._contexts: tuple[Conditioning, Conditioning] | None = None

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, *_: object
    ) -> None:
        assert isinstance(pl_module, DiffusionModule)
        plan, seen = pl_module.plan, pl_module.samples_seen
        if not plan.sample_every or trainer.fit_loop._should_accumulate():
            return
        at_end = trainer.global_step >= plan.steps
        if at_end or crossed(plan.sample_every, seen - plan.batch_size, seen):
            with pl_module.pausing():
                self.run(trainer, pl_module)

    def run(self, trainer: L.Trainer, module: DiffusionModule) -> Tensor:
        """Draws, gathers and writes; every rank must call it. Returns all pictures [N,H,W,3]."""
        pictures = self._gather(trainer, self._draw(trainer, module))
        if trainer.is_global_zero:
            self._write(pictures, module)
        return pictures

    def _draw(self, trainer: L.Trainer, module: DiffusionModule) -> Tensor:
        world, rank, count = trainer.world_size, trainer.global_rank, len(self.prompts)
        share = -(-count // world)
        mine = [min(rank + k * world, count - 1) for k in range(share)]
        self.pipeline.device = module.device
        use_ema = self.weights == "ema" and module.ema is not None
        was_training = module.training
        module.eval()
        with (
            module.ema.swapped() if use_ema and module.ema else nullcontext(),
            torch.inference_mode(),
            trainer.strategy.precision_plugin.forward_context(),
        ):
            pictures = self._pictures(mine)
        module.train(was_training)
        return pictures.to(module.device).clone()  # NCCL gathers on the device only

    def _pictures(self, mine: list[int]) -> Tensor:
        """What the model draws for these prompts: [n,H,W,3] uint8."""
        cond, null = self._encoded(mine)
        x0 = self.pipeline.latents(cond, null, [self.seeds[j] for j in mine])
        return to_uint8(self.pipeline.codec.decode(x0))

    def _encoded(self, mine: list[int]) -> tuple[Conditioning, Conditioning]:
        if self._contexts is None or self.pipeline.text.gradients:  # of a trained text encoder
            with torch.inference_mode():
                text = self.pipeline.text
                self._contexts = (text.encode([self.prompts[j] for j in mine]), text.null(1))
        return self._contexts

    def _gather(self, trainer: L.Trainer, mine: Tensor) -> Tensor:
        everyone = trainer.strategy.all_gather(mine)  # [W,share,H,W,3]; one process: unchanged
        if everyone.ndim == mine.ndim:
            everyone = everyone[None]
        return everyone.transpose(0, 1).flatten(0, 1)[: len(self.prompts)].cpu()

    def _write(self, pictures: Tensor, module: DiffusionModule) -> None:
        images = to_pil(from_uint8(pictures))
        path = self.folder / f"s{module.samples_seen:09d}.png"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            grid(images, self.prompts, columns=self.columns).save(path)
        except OSError as error:  # a picture is no reason to stop
            log.warning("%s: %s; the run goes on without this grid", path, error)
            with suppress(OSError):
                path.unlink(missing_ok=True)  # half a picture
        else:
            log.info("samples (%s weights): %s", self.weights, path)
        if self._sink is not None:
            self._sink(f"samples/{self.weights}", images, self.prompts, module.samples_seen)
