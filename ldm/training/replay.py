"""How is the batch of a step that was not finite made again?

All draws are keyed by (seed, purpose, i): the numbers of the samples in the report and the seed
give the same pictures, crops, captions, dropout, times and noise. docs/faults.md has the report.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ldm.training import nonfinite
from ldm.training.base import Batch, TrainedModule

MAX_BYTES = 1 << 28  # of a report; one of 100,000 samples has 40 MB
CLOSE = 1e-3  # relative: another device or number of threads adds up in another order
EXACT = ("i", "key", "caption", "micro_batch")
FACTS = ("samples_seen", "batch_size", "rank", "world_size", "seed")


@dataclass(frozen=True)
class Difference:
    """A number that the report and the replay do not share. sample: its i, None for the step."""

    name: str
    sample: int | None
    reported: Any
    replayed: Any


def read_report(path: Path) -> dict[str, Any]:
    """A report as training wrote it. Raises FileNotFoundError, or ValueError with what is wrong."""
    if not path.is_file():
        near = sorted(found.name for found in path.parent.glob("nonfinite-*.json"))
        has = f"{path.parent} has {', '.join(near[:3])}" if near else f"{path.parent} has no report"
        raise FileNotFoundError(f"replay={path} does not exist; {has}")
    if path.stat().st_size > MAX_BYTES:
        raise ValueError(f"replay={path} has {path.stat().st_size} bytes; a report is smaller")
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"replay={path} is not json: {error}") from None
    if not isinstance(report, dict) or report.get("format") != nonfinite.REPORT_FORMAT:
        came = report.get("format") if isinstance(report, dict) else type(report).__name__
        raise ValueError(
            f"replay={path} has the format {came!r}; give a reports/nonfinite-….json of a run "
            f"({nonfinite.REPORT_FORMAT})"
        )
    problems = [
        f"{name}={report.get(name)!r} is not a number"
        for name in FACTS
        if not isinstance(report.get(name), int) or isinstance(report.get(name), bool)
    ]
    if not _are_samples(report.get("samples")):
        problems.append("its samples have no i and micro_batch")
    if problems:
        raise ValueError(f"replay={path} is damaged: {'; '.join(problems)}")
    return report


def micro_batches(report: Mapping[str, Any]) -> list[list[int]]:
    """The numbers i of the samples of each micro-batch of the rank, in order."""
    found: dict[int, list[int]] = {}
    for sample in report["samples"]:
        found.setdefault(sample["micro_batch"], []).append(sample["i"])
    return [found[number] for number in sorted(found)]


def replay(
    module: TrainedModule, batches: Sequence[Batch], report: Mapping[str, Any], path: Path
) -> dict[str, Any]:
    """Forward and backward once more, without a step; a report of the same format in `path`.

    batches: the micro-batches of the rank. The gradient is that of these samples: where the run had
    other ranks too, theirs is missing in it.
    """
    start = report["samples_seen"] - report["batch_size"]
    module.train()
    module.zero_grad(set_to_none=True)
    sums: dict[str, torch.Tensor] = {"loss": torch.zeros((), device=module.device)}
    for number, batch in enumerate(batches):
        module.samples_seen = start + number * len(batch) * report["world_size"]
        loss = module.training_step(batch, number)
        sums["loss"] += loss.detach()
        (loss / len(batches)).backward()
    parameters = tuple(p for p in module.parameters() if p.grad is not None)
    norms, norm = nonfinite.gradient_norms(parameters)
    step = nonfinite.Step(
        nonfinite.Flag(~torch.isfinite(norm)),
        report["samples_seen"],
        parameters,
        norms,
        norm,
        tuple(module._rows),
        sums,
        len(batches),
    )
    facts = {name: report[name] for name in FACTS if name != "samples_seen"}
    nonfinite.write_report(step, dict(module.named_parameters()), path, **facts)
    return read_report(path)


def differences(report: Mapping[str, Any], again: Mapping[str, Any]) -> list[Difference]:
    """What is not the same, of the step and of each sample; nan is the same as nan."""
    found = [
        Difference(name, None, report.get(name), again.get(name))
        for name in ("loss", "gradient_norm", "weights_not_finite")
        if not _same(report.get(name), again.get(name))
    ]
    ours = {sample["i"]: sample for sample in again["samples"]}
    for sample in report["samples"]:
        other = ours.get(sample["i"], {})
        found += [
            Difference(name, sample["i"], value, other.get(name))
            for name, value in sample.items()
            if not _same(value, other.get(name), exact=name in EXACT)
        ]
    return found


def load_weights(module: TrainedModule, state: Mapping[str, torch.Tensor]) -> None:
    """The weights of a checkpoint. Raises ValueError where the names are not the module's."""
    kept = [n for n in module.state_dict() if n.split(".")[0] in module.kept_parts]
    odd = sorted(set(kept) ^ set(state))
    if odd:
        raise ValueError(f"the checkpoint is of another network: {len(odd)} names, first {odd[:3]}")
    module.load_state_dict(dict(state), strict=False)


def _are_samples(samples: object) -> bool:
    if not isinstance(samples, list) or not samples:
        return False
    return all(
        isinstance(sample, dict)
        and all(isinstance(sample.get(n), int) and sample[n] >= 0 for n in ("i", "micro_batch"))
        for sample in samples
    )


def _same(one: Any, other: Any, *, exact: bool = False) -> bool:
    if exact or isinstance(one, (bool, list)):
        return bool(one == other)
    try:
        a, b = float(one), float(other)
    except (TypeError, ValueError):
        return bool(one == other)
    return math.isclose(a, b, rel_tol=CLOSE, abs_tol=1e-6) or (math.isnan(a) and math.isnan(b))
