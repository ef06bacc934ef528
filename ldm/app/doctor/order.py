"""Do samples, lanes, processes and workers go into each other?"""

from __future__ import annotations

import math
import os
from collections import Counter
from typing import Any

from ldm.app.doctor.findings import Chapter
from ldm.app.doctor.settings import DoctorSettings
from ldm.data.loader import Workers
from ldm.data.reader import Reader
from ldm.page import Bars, Facts
from ldm.parts import build, run_settings
from ldm.training.plan import Plan, make_plan

Config = dict[str, Any]


def order(cfg: Config, data: Any, settings: DoctorSettings) -> tuple[Plan | None, Chapter]:
    """The plan (None: there is none that fits), and what becomes of an epoch's samples."""
    chapter = Chapter("Samples and processes")
    trainer = build(cfg["training"]["trainer"])
    world = settings.processes or trainer.world_size
    try:
        plan = make_plan(
            run_settings(cfg), train_size=data.train_size, val_size=data.val_size, world_size=world
        )
    except ValueError as error:
        for problem in str(error).split("\n"):
            chapter.error(problem)
        return None, chapter
    rest = plan.train_size % plan.batch_size
    facts: dict[str, Any] = {
        "samples an epoch": plan.train_size,
        "validation samples": plan.val_size,
        "processes": world,
        "batch": f"{plan.batch_size} = {world} × micro-batch {plan.micro_batch} × "
        f"accumulation {plan.accumulate}",
        "whole batches an epoch": plan.train_size // plan.batch_size,
        "samples left over": f"{rest}, which share a batch with the next epoch's first",
        "workers a process": data.config.num_workers,
    }
    if plan.train_size < plan.batch_size:
        chapter.warning(
            f"an epoch has {plan.train_size} samples, a batch {plan.batch_size}: the same picture "
            "is in it more than once",
            "lower training.batch_size",
        )
    _workers(chapter, data.config.num_workers, trainer.device_count, settings)
    if isinstance(data.train, Reader):
        _lines(chapter, data, plan, facts)
    else:
        chapter.warning(
            "data.mode=stream: a resumed run goes on with other samples, and no batch can be "
            "made again",
            "data.mode=ordered wherever shards are files or URLs",
        )
    chapter.facts |= facts
    chapter.elements.insert(0, Facts(facts))
    if not chapter.findings:
        chapter.ok(f"every process reads {plan.micro_batch} samples of each micro-batch")
    return plan, chapter


def _workers(chapter: Chapter, count: int, processes: int, settings: DoctorSettings) -> None:
    """settings.processes: of a machine elsewhere, whose cores are not known."""
    if settings.processes is not None:
        return
    usable = Workers(count=count).usable()
    cores = len(os.sched_getaffinity(0))
    if usable < count or count * processes > cores:
        chapter.warning(
            f"{processes} × {count} workers on the {cores} cores of this machine",
            f"data.num_workers={max(cores // processes - 1, 0)} leaves a core to each process",
        )


def _lines(chapter: Chapter, data: Any, plan: Plan, facts: dict[str, Any]) -> None:
    spec = data.order_spec
    if data.train.index.remote:
        lanes = int(spec.get("lanes", data.config.lanes))
        shared = math.gcd(plan.world_size, lanes)
        facts |= {"lanes": lanes, "shards of a group": spec.get("group", "by source")}
        if shared < min(plan.world_size, lanes):
            chapter.warning(
                f"{plan.world_size} processes and {lanes} lanes have no common share: every "
                f"process reads {lanes // shared} lanes, and so nearly every shard of a group",
                f"data.lanes={plan.world_size * max(round(lanes / plan.world_size), 1)} (another "
                "order: not in a run that has begun)",
            )
    for folder, manifest in data.manifests.items():
        facts[f"manifest of {folder or '.'}"] = "none" if manifest is None else dict(manifest)
    if "mixture" in spec:
        facts["mixture"] = spec["mixture"]
    if "buckets" in spec:
        _buckets(chapter, data, plan)


def _buckets(chapter: Chapter, data: Any, plan: Plan) -> None:
    """How full the buckets are, and what of each stays for the next epoch."""
    held: Counter[str] = Counter()
    for (height, width), size in zip(data.train.shapes, data.train.index.sizes, strict=True):
        held[f"{width} × {height}"] += size
    rests = [int(bucket["rest"]) for bucket in data.order_spec["buckets"]]
    total = sum(held.values())
    if sum(rests) > 0.1 * total:
        chapter.warning(
            f"{sum(rests)} of {total} samples stay in their bucket for the next epoch",
            "lower training.batch_size or data.buckets.max_aspect",
        )
    chapter.facts["buckets"] = dict(held)
    chapter.elements.append(Bars("Samples by bucket", list(held), list(held.values())))
