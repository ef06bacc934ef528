"""How are pictures measured while training: against what, and which checkpoint is kept?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image

from ldm.app.evaluation.comparing import LEVEL, SEED
from ldm.app.evaluation.drawing import Prompt
from ldm.app.evaluation.planning import prompts_of
from ldm.app.evaluation.seeing import Eyes, open_eyes, see_pictures, see_truth
from ldm.app.together import together
from ldm.cli import ConfigError
from ldm.data.shapes import Task
from ldm.evaluation.metrics import BETTER, Pictures, measure, size_problems
from ldm.evaluation.preset import Preset
from ldm.evaluation.shapes_judge import task_of
from ldm.evaluation.truth import ShardPictures, Truth
from ldm.parts import build
from ldm.pipeline import Pipeline
from ldm.training.callbacks.checkpointing import RunCheckpoint
from ldm.training.callbacks.evaluation import Evaluation, EvaluationSettings, Keeping
from ldm.training.launch import Processes
from ldm.training.plan import to_samples

Config = dict[str, Any]


def evaluation_callback(
    cfg: Config, data: Any, pipeline: Pipeline, checkpoints: RunCheckpoint
) -> Evaluation | None:
    """None where the run has no evaluation. Raises ConfigError for data that it cannot be of.

    data: as `open_data` gives it.
    """
    settings: EvaluationSettings = build(cfg["training"]["callbacks"]["evaluation"])
    key = "training.callbacks.evaluation.every"
    every = to_samples(settings.every, train_size=data.train_size, key=key)
    if not every:
        return None
    if data.val is None:
        raise ConfigError(f"{key}={settings.every}, but there are no validation samples")
    truth = ShardPictures(data.val, "the validation samples")
    seeds = range(settings.first_seed, settings.first_seed + settings.samples)
    try:
        prompts, _ = prompts_of(truth, seeds)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    scorer = PictureScorer(settings, truth, prompts)
    keeping = None
    if settings.best is not None:
        keeping = Keeping(settings.best, BETTER[settings.best] == "lower", checkpoints)
    return Evaluation(
        pipeline,
        [prompt.caption for prompt in prompts],
        settings,
        every=every,
        prepare=scorer.prepare,
        measure=scorer,
        keeping=keeping,
    )


@dataclass(frozen=True)
class _Ready:
    eyes: Eyes
    reference: Pictures
    task: Task | None


class PictureScorer:
    """Pictures of the prompts -> numbers, the same in all processes."""

    def __init__(
        self, settings: EvaluationSettings, truth: Truth, prompts: Sequence[Prompt]
    ) -> None:
        self._settings = settings
        self._truth = truth
        self._captions = [prompt.caption for prompt in prompts]
        self._ready: _Ready | None = None

    def prepare(self, processes: Processes) -> None:
        """Loads extractors and reference. Raises ConfigError for what cannot be measured."""
        settings = self._settings
        preset = Preset(
            samples=settings.samples,
            metrics=settings.metrics,
            extractor=settings.extractor,
            clip=settings.clip,
        )
        eyes = together(processes, lambda: open_eyes(preset, processes.device))
        reference, _ = see_truth(self._truth, eyes, most=None, cache=None, processes=processes)
        task = task_of(self._captions)
        together(processes, lambda: self._check(eyes, reference, task))
        self._ready = _Ready(eyes, reference, task if "judge" in settings.metrics else None)

    def __call__(self, pictures: list[Image.Image], processes: Processes) -> dict[str, float]:
        """pictures: this process's, those numbered rank, rank + world, …"""
        assert self._ready is not None
        ready, names = self._ready, self._settings.metrics
        mine = dict(zip(processes.share(range(len(self._captions))), pictures, strict=True))
        seen, _ = see_pictures(
            lambda part: [mine[index] for index in part],
            self._captions,
            ready.eyes,
            ready.task,
            processes,
        )

        def numbers() -> Mapping[str, float]:
            found = measure(names, seen, ready.reference, seed=SEED, level=LEVEL)
            return {name: measured.value for name, measured in found.metrics.items()}

        first = processes.rank == 0
        said = processes.agree(together(processes, lambda: dict(numbers()) if first else {}))
        return dict(said)

    def _check(self, eyes: Eyes, reference: Pictures, task: Task | None) -> None:
        seen = reference.features or reference.clip
        short = size_problems(
            self._settings.metrics,
            samples=self._settings.samples,
            references=0 if seen is None else seen.count,
            dims=eyes.dims,
        )
        if "judge" in self._settings.metrics and task is None:
            short["judge"] = "judge knows captions of drawn shapes only, and these are others"
        if short:
            problems = "; ".join(short.values())
            raise ValueError(f"training.callbacks.evaluation: {problems}")
