"""What does metrics.json say, and the console?"""

from __future__ import annotations

import platform
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

from ldm.app.evaluation.comparing import Found, compare_entries, loss_curve
from ldm.app.evaluation.folder import keep_curve
from ldm.app.evaluation.losses import EDGES
from ldm.app.evaluation.planning import Plan
from ldm.evaluation.metrics import Measured
from ldm.evaluation.pareto import axes_of, better_of, front
from ldm.training.launch import Processes
from ldm.training.run_folder import provenance

SWEPT = ("guidance", "steps", "sampler", "weights")


def document(plan: Plan, found: Sequence[Found], processes: Processes) -> dict[str, Any]:
    """All of metrics.json but its format; copies the runs' curves."""
    paired, notes = compare_entries(found)
    curves = {entry.id: loss_curve(entry.table) for entry in found if entry.table is not None}
    sweep, more = _sweep(plan, found)
    return {
        "made": _made(processes),
        "protocol": {**plan.protocol, "metrics": list(plan.metrics)},
        "entries": [_entry(entry) for entry in found],
        "loss_by_time": {"edges": list(EDGES), "entries": curves},
        "paired": paired,
        "sweep": sweep,
        "training": {
            entry.id: keep_curve(plan.out, entry.id, entry.curve)
            for entry in _first_of_each_run(found)
            if entry.curve is not None
        },
        "counts": plan.counts,
        "notes": [*plan.notes, *notes, *more],
    }


def _entry(entry: Found) -> dict[str, Any]:
    return {
        "id": entry.id,
        **entry.facts,
        "metrics": {name: _measured(value) for name, value in entry.metrics.items()},
        "pictures": f"pictures/{entry.id}",
        "strips": entry.strips,
    }


def _measured(value: Measured) -> dict[str, Any]:
    said = asdict(value)
    return {key: said[key] for key in said if said[key] != ""}


def _first_of_each_run(found: Sequence[Found]) -> list[Found]:
    """A run's curves are the same for all its entries."""
    first: dict[Any, Found] = {}
    for entry in found:
        first.setdefault(entry.curve, entry)
    return list(first.values())


def _sweep(plan: Plan, found: Sequence[Found]) -> tuple[dict[str, Any] | None, list[str]]:
    """The axes that were swept and the front of two numbers; None where nothing was swept."""
    request = plan.request
    if len(request.grid) == 1 and len(request.weights) == 1:
        return None, []
    axes = {name: list(dict.fromkeys(entry.facts[name] for entry in found)) for name in SWEPT}
    measured = set.intersection(*(set(entry.metrics) for entry in found))
    names = request.pareto or axes_of(list(measured), guidance_varies=len(axes["guidance"]) > 1)
    if names is None or not set(names) <= measured:
        missing = "no quality" if names is None else " and ".join(sorted(set(names) - measured))
        return {"axes": axes, "pareto": []}, [f"no Pareto front: {missing} was measured"]
    points = {
        entry.id: (entry.metrics[names[0]].value, entry.metrics[names[1]].value) for entry in found
    }
    kept = front(points, better_of(names))
    return {"axes": axes, "metrics": list(names), "pareto": kept}, []


def _made(processes: Processes) -> dict[str, Any]:
    return {
        **provenance(),
        "ldm": version("ldm"),
        "python": platform.python_version(),
        "device": processes.device,
        "processes": processes.world,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
    }
