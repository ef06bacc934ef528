"""What exactly will be measured, and can it be, before anything is drawn?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ldm.app.evaluation import folder as folders
from ldm.app.evaluation.drawing import Prompt
from ldm.app.evaluation.losses import SEED as LOSS_SEED
from ldm.app.evaluation.losses import Sample, quantity_of
from ldm.app.evaluation.request import Request
from ldm.app.evaluation.seeing import Eyes, open_eyes, see_truth
from ldm.app.evaluation.subjects import Subject, find_subjects, size_of
from ldm.app.evaluation.truths import truth_of
from ldm.app.together import together
from ldm.data.shapes import Task
from ldm.diffusion.prediction import Prediction, prediction_from_spec
from ldm.evaluation.bootstrap import DRAWS
from ldm.evaluation.metrics import METRICS, Pictures, size_problems
from ldm.evaluation.preset import INCEPTION
from ldm.evaluation.shapes_judge import task_of
from ldm.evaluation.truth import Truth
from ldm.training.launch import Processes

LOSS = "loss"


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is done with every model, the same in every process.

    samples: this process's true pictures for the loss; task: the judge's, None without it;
    protocol: plain facts; counts: of samples that cannot be used.
    """

    request: Request
    subjects: Sequence[Subject]
    truth: Truth
    eyes: Eyes
    reference: Pictures
    metrics: Sequence[str]
    prompts: Sequence[Prompt]
    samples: Sequence[Sample]
    task: Task | None
    quantity: Prediction
    size_px: int
    out: Path
    protocol: Mapping[str, Any]
    counts: dict[str, int]
    notes: list[str]


def make_plan(request: Request, processes: Processes) -> Plan:
    """Raises ConfigError in all processes, with what is wrong in one of them."""
    preset = request.preset
    subjects, notes = together(processes, lambda: find_subjects(request))
    size_px = together(processes, lambda: size_of(subjects, request.size))
    truth = together(processes, lambda: truth_of(request, subjects[0], size_px))
    prompts, lacking = together(processes, lambda: prompts_of(truth, request.seeds))
    eyes = together(processes, lambda: open_eyes(preset, processes.device))
    reference, unreadable = see_truth(
        truth, eyes, most=preset.references, cache=request.cache_dir, processes=processes
    )
    task = task_of([prompt.caption for prompt in prompts])
    metrics, left_out = together(
        processes, lambda: _metrics(request, eyes, reference, task, len(prompts))
    )
    images = preset.loss_images if LOSS in metrics else 0
    samples = together(processes, lambda: _samples(truth, images, processes))
    specs = [subject.card["objective"]["prediction"] for subject in subjects]
    quantity = quantity_of([prediction_from_spec(spec) for spec in specs])
    protocol = _protocol(request, truth, eyes, reference, size_px)
    name = "-vs-".join(dict.fromkeys(subject.slug for subject in subjects))[:80]
    out = processes.agree(
        together(
            processes,
            lambda: (
                folders.open_folder(request.out, protocol, name=name, overwrite=request.overwrite)
                if processes.rank == 0
                else None
            ),
        )
    )
    assert out is not None
    return Plan(
        request=request,
        subjects=subjects,
        truth=truth,
        eyes=eyes,
        reference=reference,
        metrics=metrics,
        prompts=prompts,
        samples=samples,
        task=task if "judge" in metrics else None,
        quantity=quantity,
        size_px=size_px,
        out=out,
        protocol=protocol,
        counts={
            "samples left out of the data's index": truth.left_out,
            "captions that cannot be used": lacking,
            "reference pictures that cannot be read": unreadable,
        },
        notes=notes + left_out,
    )


def prompts_of(truth: Truth, seeds: Sequence[int]) -> tuple[list[Prompt], int]:
    """The captions of the first samples, again from the start where there are fewer than seeds;
    and how many samples have none. Raises ValueError without any caption."""
    numbers = list(range(min(len(truth), len(seeds))))
    pairs = list(zip(numbers, truth.captions(numbers), strict=True))
    good = [(number, caption) for number, caption in pairs if caption is not None]
    if not good:
        raise ValueError(
            f"none of the first {len(numbers)} samples of {truth.name} has a caption that can be "
            "used; data.caption_key=FIELD names a field of .json, null means .txt"
        )
    chosen = (good[i % len(good)] for i in range(len(seeds)))
    prompts = [Prompt(n, caption, seed) for (n, caption), seed in zip(chosen, seeds, strict=True)]
    return prompts, len(pairs) - len(good)


def _metrics(
    request: Request, eyes: Eyes, reference: Pictures, task: Task | None, samples: int
) -> tuple[list[str], list[str]]:
    """Those asked for, else all that the pictures suffice for, with notes on the others."""
    asked = request.preset.metrics
    seen = reference.features or reference.clip
    references = 0 if seen is None else seen.count
    frechet = "fid" if request.preset.extractor == INCEPTION else "fd"
    names = (
        list(asked)
        if asked is not None
        else [
            frechet,
            *(name for name in METRICS if name not in ("fd", "fid")),
            LOSS,
        ]
    )
    short = size_problems(names, samples=samples, references=references, dims=eyes.dims)
    if "judge" in names and task is None:
        short["judge"] = "judge knows captions of drawn shapes only, and these are others"
    if asked is not None and short:
        raise ValueError("\n".join(short.values()))
    without_judge = {k: v for k, v in short.items() if k != "judge"}  # goes without saying
    return [n for n in names if n not in short], [f"left out: {t}" for t in without_judge.values()]


def _samples(truth: Truth, count: int, processes: Processes) -> list[Sample]:
    """This process's part of the first samples that have a picture and a caption."""
    numbers = list(range(min(count, len(truth))))
    captions = dict(zip(numbers, truth.captions(numbers), strict=True))
    mine = processes.share([number for number in numbers if captions[number] is not None])
    return [
        Sample(number, str(captions[number]), picture)
        for number, picture in zip(mine, truth.pictures(mine), strict=True)
        if picture is not None
    ]


def _protocol(
    request: Request, truth: Truth, eyes: Eyes, reference: Pictures, size_px: int
) -> dict[str, Any]:
    """Plain facts. Who changes one of them measures something else."""
    preset = request.preset

    def eye(part: Any) -> str | None:
        return None if part is None else f"{part.spec.name} {part.spec.hash[:8]}"

    seen = reference.features or reference.clip
    any_eye = eyes.extractor or eyes.clip
    data_hash = None if any_eye is None else truth.made_of(any_eye.spec).data_hash
    return {
        "data": truth.name,
        "data_hash": data_hash,
        "prompts": f"captions of the first samples of {truth.name}",
        "samples": preset.samples,
        "first_seed": request.first_seed,
        "size_px": size_px,
        "extractor": eye(eyes.extractor),
        "clip": eye(eyes.clip),
        "references": 0 if seen is None else seen.count,
        "loss": f"{preset.loss_images} images, {preset.loss_times} times each, seed {LOSS_SEED}",
        "intervals": f"95 %, {DRAWS} bootstrap draws",
        "dtype": request.dtype,
    }
