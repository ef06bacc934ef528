"""How is the batch of a report made again from its run folder, and what does it look like?"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch

from ldm.app.doctor.building import FAULTS, for_here
from ldm.app.doctor.encoders import device_of
from ldm.app.doctor.findings import Chapter, Level
from ldm.app.doctor.settings import DoctorSettings
from ldm.app.doctor.stored import stored_config
from ldm.app.job import Job, build_job
from ldm.cli import ConfigError
from ldm.images import to_pil
from ldm.io import checkpoint as files
from ldm.page import Bars, Facts, Pictures, Table, Text
from ldm.parts import build, reason
from ldm.training import replay as again
from ldm.types import ImageBatch, LatentBatch

log = logging.getLogger(__name__)
Config = dict[str, Any]
DTYPES = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}
SHOWN = 64  # pictures and rows on the page
SENTENCES: Mapping[Level, str] = {
    "error": "this is not the batch of the report",
    "warning": "the batch was made again, but not all is as it was",
    "ok": "the batch was made again, and does what the report says",
}


def replay_report(path: Path, given: Config, settings: DoctorSettings) -> int:
    """Makes the batch of a report again and compares. Returns 1 where it is not the same batch."""
    from ldm.app.doctor.examine import conclude

    try:
        report = again.read_report(path)
        run_dir = path.resolve().parent.parent
        cfg = stored_config(run_dir, given)
        start = report["samples_seen"] - report["batch_size"]
        checkpoint = before(run_dir / "checkpoints", start)
        job, batches = _build(cfg, report, checkpoint)
        out = settings.folder(str(run_dir))
        name = f"replay-{path.stem.removeprefix('nonfinite-')}"
        with _precision(cfg):
            result = again.replay(job.module, batches, report, out / f"{name}-report.json")
    except FAULTS as error:
        raise ConfigError(reason(error)) from error
    chapters = [
        _compared(report, result, start, checkpoint),
        _samples(report, result, job, batches),
        _gradients(report, result),
    ]
    title = f"Replay after {report['samples_seen']:,} samples"
    return conclude(chapters, out, name, title=title, sentences=SENTENCES)


def before(folder: Path, samples: int) -> Path | None:
    """The newest valid checkpoint that had seen at most so many samples; None: there is none."""
    found = [path for path in files.list_checkpoints(folder) if files.samples_of(path) <= samples]
    return next((path for path in reversed(found) if files.is_valid(path)), None)


def _build(cfg: Config, report: Config, checkpoint: Path | None) -> tuple[Job, list[Any]]:
    """The parts of the run with the weights of the checkpoint, and the report's micro-batches."""
    numbers = again.micro_batches(report)
    problems = [
        f"{name} is {report[name]} in the report, {now} in config.yaml"
        for name, now in (("seed", cfg["seed"]), ("batch_size", cfg["training"]["batch_size"]))
        if report[name] != now
    ]
    if cfg["data"]["mode"] == "stream":
        problems.append("data.mode=stream has no order, so no batch can be made again")
    if problems:
        raise ValueError("; ".join(problems))
    cfg = for_here(cfg)
    job = build_job(cfg, checkpoint)
    if checkpoint is not None:
        again.load_weights(job.module, files.read(checkpoint)["state_dict"])
    device = device_of(cfg)
    job.module.to(device)
    if job.encoders is not None:
        job.encoders.to(device)
    return job, [job.data.train.batch(torch.tensor(part)).to(device) for part in numbers]


def _compared(report: Config, result: Config, start: int, checkpoint: Path | None) -> Chapter:
    chapter = Chapter("Report and replay")
    found = again.differences(report, result)
    batch = [d for d in found if d.name in (*again.EXACT, "t")]
    latents = [d for d in found if d.name.startswith(("latent_", "context_"))]
    rest = [d for d in found if d not in batch and d not in latents]
    same_weights = checkpoint is not None and files.samples_of(checkpoint) == start
    at = 0 if checkpoint is None else files.samples_of(checkpoint)
    weights = f"of {checkpoint.name}" if checkpoint is not None else "that the run began with"
    if start - at:
        weights += f", {start - at:,} samples before the step"
    if batch:
        chapter.error(
            f"it is not the same batch: {len(batch)} numbers differ, first {_told(batch[0])}",
            "were the shards or config.yaml changed since?",
        )
    else:
        chapter.ok(f"the same {len(report['samples'])} samples, captions and times")
    if latents:
        chapter.warning(
            f"{len(latents)} statistics of the latents differ, first {_told(latents[0])}",
            "another device or dtype of the VAE, or pictures that were changed",
        )
    now_bad = result["loss"] in ("nan", "inf", "-inf") or not _finite(result["gradient_norm"])
    if not now_bad:
        advice = (
            "with the same weights: precision, device or the gradients of other ranks"
            if same_weights
            else "the weights broke between that checkpoint and the step: a smaller "
            "training.save_every would hold the moment"
        )
        chapter.warning("the replayed step is finite", advice)
    elif rest:
        chapter.ok(f"the replayed step is not finite either; {len(rest)} numbers of it differ")
    else:
        chapter.ok("the replayed step is not finite either, in the same numbers")
    facts = {
        "samples seen": report["samples_seen"],
        "rank": f"{report['rank']} of {report['world_size']}",
        "weights": weights,
        "loss": f"{report['loss']}, replayed {result['loss']}",
        "gradient norm": f"{report['gradient_norm']}, replayed {result['gradient_norm']}",
        "weights not finite": f"{len(report.get('weights_not_finite') or [])} tensors, "
        f"here {len(result['weights_not_finite'])}",
    }
    chapter.facts = facts | {"differences": [vars(d) for d in found]}
    rows = [[d.name, d.sample, str(d.reported), str(d.replayed)] for d in found[:SHOWN]]
    chapter.elements = [Facts(facts)]
    if rows:
        chapter.elements.append(Table(["number", "sample", "report", "replay"], rows))
    return chapter


def _samples(report: Config, result: Config, job: Job, batches: list[Any]) -> Chapter:
    """Pictures, captions and numbers, the samples that are not finite first."""
    chapter = Chapter("Samples")
    order = sorted(result["samples"], key=lambda s: (_finite(s.get("loss", 0)), s["i"]))[:SHOWN]
    pictures = {int(i): p for batch in batches for i, p in _pictures(batch, job)}
    cells = []
    for sample in order:
        lines = [f"{sample['key']}: {sample['caption']}"]
        lines += [f"{k} {sample[k]}" for k in ("t", "loss", "latent_std") if k in sample]
        if sample["i"] in pictures:
            cells.append((pictures[sample["i"]], "\n".join([f"i = {sample['i']}", *lines])))
    names = list(dict.fromkeys(name for sample in order for name in sample))
    rows = [[_number(sample.get(name)) for name in names] for sample in order]
    bad = [s["i"] for s in result["samples"] if not _finite(s.get("loss", 0))]
    chapter.facts = {"not_finite": bad, "samples": result["samples"]}
    named = f", i = {', '.join(map(str, bad[:10]))}" if bad else ""
    text = f"{len(bad)} of {len(result['samples'])} losses are not finite{named}"
    chapter.elements = [Text(text, tone="lead")]
    chapter.elements += [Pictures(cells, columns=4)] if cells else []
    chapter.elements.append(Table(names, rows))
    return chapter


def _gradients(report: Config, result: Config) -> Chapter:
    chapter = Chapter("Gradient by block")
    before_, now = report.get("gradient_norms") or {}, result["gradient_norms"]
    rows = [[block, _number(before_.get(block)), _number(value)] for block, value in now.items()]
    chapter.facts = {"replayed": now, "reported": before_}
    if report["world_size"] > 1:
        chapter.ok(
            f"the report's gradient is of all {report['world_size']} processes, the replay's of "
            f"the samples of process {report['rank']}"
        )
    finite = {block: value for block, value in now.items() if _finite(value)}
    chapter.elements = [Table(["block", "report", "replay"], rows)]
    if finite:
        chapter.elements.append(
            Bars("Gradient norm, replayed", list(finite), list(finite.values()))
        )
    return chapter


def _pictures(batch: ImageBatch | LatentBatch, job: Job) -> Iterator[tuple[int, Any]]:
    """(i, picture): as trained on, or decoded from the latents' means."""
    if isinstance(batch, ImageBatch):
        pixels = batch.pixels
    elif job.encoders is None or job.encoders.codec.problems():
        return
    else:
        mean = batch.moments.float().chunk(2, dim=1)[0]
        with torch.no_grad():
            pixels = job.encoders.codec.decode(mean * job.encoders.codec.scale)
    yield from zip(batch.index.tolist(), to_pil(pixels.nan_to_num()), strict=True)


def _precision(cfg: Config) -> Any:
    """What the Trainer computes in; the scale of a GradScaler is not made again."""
    dtype = DTYPES.get(build(cfg["training"]["trainer"]).precision)
    return nullcontext() if dtype is None else torch.autocast(device_of(cfg), dtype=dtype)


def _told(difference: again.Difference) -> str:
    where = "" if difference.sample is None else f" of sample {difference.sample}"
    return f"{difference.name}{where}: {difference.reported!r}, here {difference.replayed!r}"


def _finite(value: Any) -> bool:
    return str(value) not in ("nan", "inf", "-inf")


def _number(value: Any) -> Any:
    return float(value) if isinstance(value, str) and not _finite(value) else value
