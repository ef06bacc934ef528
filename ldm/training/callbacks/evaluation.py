"""How good are the pictures while training, and which checkpoint is the best so far?"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from PIL import Image

from ldm.images import to_pil
from ldm.io import checkpoint as files
from ldm.pipeline import Pipeline, SamplingOptions
from ldm.training.callbacks.checkpointing import RunCheckpoint
from ldm.training.launch import Processes
from ldm.training.module import DiffusionModule
from ldm.training.plan import Samples, crossed, to_samples
from ldm.types import Conditioning

log = logging.getLogger(__name__)
# this process's pictures (those numbered rank, rank + world, …) -> numbers, the same on all ranks
Measure = Callable[[list[Image.Image], Processes], dict[str, float]]
Prepare = Callable[[Processes], None]


@dataclass(frozen=True, kw_only=True)
class EvaluationSettings:
    """What is measured of pictures while training.

    every: samples, None for never; samples: pictures; metrics, extractor, clip: as evaluate.py has
    them; sampler, steps, guidance: None is the model's own default; best: the metric whose best
    checkpoint is kept as best.ckpt, None keeps none.
    """

    every: Samples = None
    samples: int = 64
    metrics: list[str] = field(default_factory=lambda: ["cmmd", "clip_score"])
    extractor: str = "tiny"
    clip: str | None = None
    sampler: str | None = None
    steps: int | None = None
    guidance: float | None = None
    weights: str = "ema"
    first_seed: int = 1000
    batch_size: int = 32
    best: str | None = None

    def problems(self) -> list[str]:
        """Everything wrong with the values, each with what is allowed."""
        key = "training.callbacks.evaluation"
        found = [f"{key}: {problem}" for problem in self.options().problems()]
        if self.weights not in ("ema", "raw"):
            found.append(f"{key}.weights={self.weights!r}; allowed: ema, raw")
        for name, least in (("samples", 2), ("batch_size", 1)):
            if getattr(self, name) < least:
                found.append(f"{key}.{name}={getattr(self, name)}; give {least} or more")
        try:
            to_samples(self.every, train_size=1000, key=f"{key}.every")
        except ValueError as error:
            found.append(str(error))
        return found

    def options(self) -> SamplingOptions:
        return SamplingOptions(sampler=self.sampler, steps=self.steps, guidance=self.guidance)


@dataclass(frozen=True)
class Keeping:
    """Of which metric the best checkpoint is kept, and who writes it."""

    metric: str
    lower_is_better: bool
    checkpoints: RunCheckpoint


class Evaluation(Callback):
    """Draws, measures and records `eval/…` every `every` samples and at the end, on all ranks.

    Rank r draws pictures r, r + world, … in full batches of one size, so that pictures and numbers
    do not depend on the number of ranks; all randomness is keyed, so training's is not touched. A
    checkpoint that is better than all before is written at once; best.ckpt points to it.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        captions: Sequence[str],
        settings: EvaluationSettings,
        *,
        every: int,
        prepare: Prepare,
        measure: Measure,
        keeping: Keeping | None = None,
    ) -> None:
        self.pipeline = pipeline
        self.captions = list(captions)
        self.settings = settings
        self.every = every
        self.best: float | None = None
        self.best_samples: int | None = None
        self._prepare = prepare
        self._measure = measure
        self._keeping = keeping
        self._contexts: list[Conditioning] = []

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert isinstance(pl_module, DiffusionModule)
        self._prepare(_processes(trainer, pl_module))  # what cannot be measured ends the run now

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, *_: object
    ) -> None:
        assert isinstance(pl_module, DiffusionModule)
        if trainer.fit_loop._should_accumulate():
            return
        seen, plan = pl_module.samples_seen, pl_module.plan
        if trainer.global_step >= plan.steps or crossed(self.every, seen - plan.batch_size, seen):
            self.run(trainer, pl_module)

    def run(self, trainer: L.Trainer, module: DiffusionModule) -> dict[str, float]:
        """Every rank must call it. Gives the numbers, the same on all ranks."""
        started = time.perf_counter()
        processes = _processes(trainer, module)
        with module.pausing():
            numbers = self._measure(self._draw(trainer, module, processes), processes)
        took = {"took_s": time.perf_counter() - started}
        module.record({f"eval/{name}": value for name, value in (numbers | took).items()})
        if trainer.is_global_zero:
            said = ", ".join(f"{name} {value:.4g}" for name, value in numbers.items())
            log.info("evaluation after %d samples: %s", module.samples_seen, said)
        self._keep(trainer, module, numbers)
        return numbers

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best, "best_samples": self.best_samples}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.best, self.best_samples = state_dict["best"], state_dict["best_samples"]

    def _draw(
        self, trainer: L.Trainer, module: DiffusionModule, processes: Processes
    ) -> list[Image.Image]:
        use_ema = self.settings.weights == "ema" and module.ema is not None
        was_training = module.training
        module.eval()
        self.pipeline.device = module.device
        with (
            module.ema.swapped() if use_ema and module.ema else nullcontext(),
            torch.inference_mode(),
            trainer.strategy.precision_plugin.forward_context(),
        ):
            pictures = self._pictures(processes.share(range(len(self.captions))))
        module.train(was_training)
        return pictures

    def _pictures(self, mine: list[int]) -> list[Image.Image]:
        size = min(self.settings.batch_size, len(self.captions))
        parts = [mine[start : start + size] for start in range(0, len(mine), size)]
        text = self.pipeline.text
        if len(self._contexts) != len(parts) or text.gradients:  # of a trained text encoder
            filled = [part + [part[-1]] * (size - len(part)) for part in parts]
            self._contexts = [text.encode([self.captions[i] for i in part]) for part in filled]
        null, first = text.null(1), self.settings.first_seed
        pictures: list[Image.Image] = []
        for part, cond in zip(parts, self._contexts, strict=True):
            seeds = [first + i for i in part] + [first + part[-1]] * (size - len(part))
            x0 = self.pipeline.latents(cond, null, seeds, options=self.settings.options())
            pictures += to_pil(self.pipeline.codec.decode(x0))[: len(part)]
        return pictures

    def _keep(self, trainer: L.Trainer, module: DiffusionModule, numbers: dict[str, float]) -> None:
        if self._keeping is None:
            return
        value = numbers[self._keeping.metric]
        sign = 1 if self._keeping.lower_is_better else -1
        if self.best is not None and not sign * value < sign * self.best:
            return
        before = self.state_dict()
        self.best, self.best_samples = value, module.samples_seen  # before: it goes into the file
        checkpoints = self._keeping.checkpoints
        problem = checkpoints.save(trainer, module)
        if problem is not None:
            self.load_state_dict(before)
            log.warning("the best checkpoint so far could not be written: %s", problem)
        elif trainer.is_global_zero:
            files.point_best(files.checkpoint_path(checkpoints.folder, module.samples_seen))
            log.info("best %s so far: %.4g; best.ckpt is of now", self._keeping.metric, value)


def _processes(trainer: L.Trainer, module: DiffusionModule) -> Processes:
    return Processes(trainer.global_rank, trainer.world_size, str(module.device))
