"""How is one model drawn with and measured, by any number of processes?"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from ldm import gallery, pipeline
from ldm.app.evaluation import drawing as drawings
from ldm.app.evaluation.comparing import LEVEL, SEED, Found, whole_loss
from ldm.app.evaluation.drawing import Drawing
from ldm.app.evaluation.folder import write_records
from ldm.app.evaluation.losses import losses, table_of
from ldm.app.evaluation.planning import LOSS, Plan
from ldm.app.evaluation.request import Settings
from ldm.app.evaluation.seeing import see_pictures
from ldm.app.evaluation.subjects import Subject
from ldm.app.together import together
from ldm.evaluation.metrics import Measured, Measurement, Pictures, measure
from ldm.evaluation.paired import LossTable
from ldm.evaluation.ranks import gathered
from ldm.evaluation.statistics import Features
from ldm.pipeline import Pipeline
from ldm.training.launch import Processes

log = logging.getLogger(__name__)


def measure_subject(
    plan: Plan, subject: Subject, processes: Processes
) -> tuple[list[Found], Pipeline]:
    """One result for every way of drawing, complete in the first process; and the model."""
    request = plan.request
    pipe = together(
        processes,
        lambda: pipeline.load(
            subject.path, weights=subject.weights, device=processes.device, dtype=request.dtype
        ),
    )
    size = (plan.size_px, plan.size_px)
    batch_size = drawings.batch_size_of(pipe, size, request.batch_size)
    model = pipe.fingerprint()
    found = []
    for settings in request.grid:
        entry = _entry(pipe, subject, settings)
        drawing = Drawing(
            folder=plan.out / "pictures" / entry.id,
            prompts=plan.prompts,
            settings=settings,
            size=size,
            batch_size=batch_size,
            model=model,
        )
        _draw(plan, pipe, drawing, entry, processes)
        _measure(plan, drawing, entry, processes)
        found.append(entry)
    if LOSS in plan.metrics:
        table = _losses(plan, pipe, batch_size, found[0].label, processes)
        found[0].table = table
        for entry in found:  # how pictures are drawn does not change what the network believes
            entry.metrics[LOSS] = whole_loss(table, plan.quantity.name)
    return found, pipe


def _entry(pipe: Pipeline, subject: Subject, settings: Settings) -> Found:
    said = drawings.settled(pipe, settings)
    facts = {
        "checkpoint": subject.given,
        "name": subject.name,
        "weights": pipe.weights,
        "samples_seen": subject.samples_seen,
        "sampler": said["sampler"],
        "steps": said["steps"],
        "guidance": said["guidance"],
    }
    way = f"{said['sampler']}-{said['steps']}-g{said['guidance']:g}"
    return Found(
        id=f"{subject.slug}-{pipe.weights}-{way}",
        label=subject.name,
        card=pipe.card,
        facts=facts,
        curve=subject.curve,
    )


def _draw(plan: Plan, pipe: Pipeline, drawing: Drawing, entry: Found, processes: Processes) -> None:
    total = len(processes.share(drawing.prompts))
    with gallery.progress_bar(entry.id, total, shown=processes.rank == 0) as bar:
        done = 0

        def advance(count: int) -> None:
            nonlocal done
            done += count
            bar(done, total)

        broken = together(processes, lambda: drawings.draw(pipe, drawing, processes, advance))
    again = sum(processes.gather(broken))
    if again:
        plan.counts["damaged pictures drawn again"] = (
            plan.counts.get("damaged pictures drawn again", 0) + again
        )
    strips = together(
        processes,
        lambda: (
            drawings.draw_strips(pipe, drawing, plan.request.strips) if processes.rank == 0 else []
        ),
    )
    entry.strips = [str(path.relative_to(plan.out)) for path in strips]


def _measure(plan: Plan, drawing: Drawing, entry: Found, processes: Processes) -> None:
    captions = [prompt.caption for prompt in plan.prompts]
    seen, verdicts = see_pictures(
        lambda part: drawings.read_drawn(drawing, part), captions, plan.eyes, plan.task, processes
    )
    found = together(processes, lambda: _numbers(plan, seen) if processes.rank == 0 else None)
    mine = processes.share(range(len(captions)))
    parts = processes.gather(drawings.seconds_of(drawing, mine))
    if found is None:
        return
    entry.metrics = dict(found.metrics)
    seconds = drawings.middle([value for part in parts for value in part])
    if seconds is not None:
        entry.metrics["seconds"] = Measured(
            value=seconds, better="lower", samples=len(captions), unit="s a picture"
        )
    if found.clip_scores is not None:
        entry.scores["clip_score"] = found.clip_scores
    if seen.right is not None:
        every = seen.right.values[:, -1].tolist()
        entry.scores["judge"] = dict(zip(seen.right.index.tolist(), every, strict=True))
    write_records(drawing.folder, _records(plan, found, verdicts))


def _numbers(plan: Plan, seen: Pictures) -> Measurement:
    return measure(plan.metrics, seen, plan.reference, seed=SEED, level=LEVEL)


def _records(
    plan: Plan, found: Measurement, verdicts: Sequence[dict[str, Any]]
) -> list[dict[str, Any]]:
    records = []
    for index, prompt in enumerate(plan.prompts):
        record: dict[str, Any] = {
            "file": f"{index:06d}.png",
            "index": index,
            "caption": prompt.caption,
            "seed": prompt.seed,
        }
        if found.clip_scores is not None:
            record["clip_score"] = found.clip_scores[index]
        if verdicts[index]:
            record["judge"] = verdicts[index]
        records.append(record)
    return records


def _losses(
    plan: Plan, pipe: Pipeline, batch_size: int, label: str, processes: Processes
) -> LossTable:
    times = plan.request.preset.loss_times
    total = len(plan.samples) * times
    with gallery.progress_bar(f"loss of {label}", total, shown=processes.rank == 0) as bar:
        done = 0

        def advance(count: int) -> None:
            nonlocal done
            done += count
            bar(done, total)

        own = together(
            processes,
            lambda: losses(
                pipe,
                plan.samples,
                times=times,
                quantity=plan.quantity,
                batch_size=batch_size,
                advance=advance,
            ),
        )
    everyone = gathered(own, device=processes.device)
    return together(processes, lambda: _table(plan, everyone))


def _table(plan: Plan, everyone: Features) -> LossTable:
    if everyone.count < 2:
        raise ValueError(
            f"{everyone.count} of the first samples of {plan.truth.name} have a picture and a "
            "caption; loss needs 2 or more: give data=… with more, or leave loss out of metrics"
        )
    return table_of(everyone, plan.quantity)
