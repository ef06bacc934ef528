"""How does an evaluation go, from the configuration to the report?"""

from __future__ import annotations

import logging
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console

from ldm.app.evaluation.comparing import Found
from ldm.app.evaluation.folder import write_results
from ldm.app.evaluation.measuring import measure_subject
from ldm.app.evaluation.planning import Plan, make_plan
from ldm.app.evaluation.request import Request
from ldm.app.evaluation.results import document
from ldm.app.together import on_all, together
from ldm.evaluation import report
from ldm.pipeline import Pipeline
from ldm.training.launch import Devices, Processes

log = logging.getLogger(__name__)


def run(request: Request, *, devices: Devices, device: str) -> int:
    """Gives the exit code. Raises ConfigError in the first process, for all."""
    return on_all(partial(_evaluate, request), devices=devices, device=device)


def _evaluate(request: Request, processes: Processes) -> None:
    plan = make_plan(request, processes)
    found: list[Found] = []
    ceiling: dict[str, Any] = {}
    for subject in plan.subjects:
        measured, pipe = measure_subject(plan, subject, processes)
        found += measured
        if not ceiling and plan.task is not None:
            ceiling = together(processes, lambda p=pipe: _ceiling(plan, p, processes))
    together(processes, lambda: _finish(plan, found, ceiling, processes))


def _ceiling(plan: Plan, pipe: Pipeline, processes: Processes) -> dict[str, Any]:
    """What the judge says of true pictures, and of what the first model's VAE makes of them."""
    assert plan.task is not None
    if processes.rank != 0:
        return {}
    return report.ceiling(pipe.codec, plan.task, device=pipe.device)


def _finish(plan: Plan, found: list[Found], ceiling: dict[str, Any], processes: Processes) -> None:
    """Numbers, loggers, tables and the report, by the first process."""
    if processes.rank != 0:
        return
    said = document(plan, found, processes)
    write_results(plan.out, said)
    if plan.request.logger is not None:
        from ldm.app.evaluation.sinks import log_entries  # lightning's loggers, on use

        captions = [prompt.caption for prompt in plan.prompts]
        log_entries(plan.request.logger, plan.out, found, captions)
    console = Console()
    named = {_label(entry, found): entry.metrics for entry in found}
    if ceiling:
        console.print(report.judged_table(ceiling, named))
    console.print(report.metrics_table(named))
    for curve in dict.fromkeys(entry.curve for entry in found):
        if curve is not None:
            table = report.curve_table(curve)
            if table is not None:
                console.print(table)
    for row in said["paired"]:
        if "," not in row["quantity"]:  # not those of a part of the times
            console.print(row["text"], highlight=False, soft_wrap=True)
    for note in said["notes"]:
        console.print(f"note: {note}", highlight=False, soft_wrap=True)
    console.print(f"report: {_write_report(plan.out)}", highlight=False, soft_wrap=True)


def _write_report(out: Path) -> Path:
    from ldm.evaluation.page import write_report  # with its templates only when it is written

    return write_report(out)


def _label(entry: Found, found: list[Found]) -> str:
    """The name, or the whole id where several have it."""
    unique = sum(other.label == entry.label for other in found) == 1
    return entry.label if unique else entry.id
