"""What do the frozen encoders make of the first samples of the run?"""

from __future__ import annotations

from typing import Any

import torch
from PIL import Image
from torch import Tensor

from ldm import rng
from ldm.app.doctor.findings import Chapter
from ldm.data.latents import LEAST_STD, MOST_STD
from ldm.data.reader import Reader
from ldm.images import to_pil
from ldm.page import Facts, Pictures, Plot, Series, SideBySide
from ldm.types import ImageBatch, LatentBatch, Level

LEVELS = 8
POOR_DB = 20.0  # a picture that comes back with less has lost what a caption speaks of
UNUSUAL = 1.5  # of the deviation of the latents from 1, as a factor
SAME = 1e-4  # of two contexts, relative
Batch = ImageBatch | LatentBatch


@torch.no_grad()
def encoders(job: Any, cfg: dict[str, Any], k: int) -> Chapter:
    """VAE, noise and text of the first k samples that will be trained on."""
    chapter = Chapter("Encoders")
    parts = job.encoders.to(device_of(cfg))
    try:
        batch = first_batch(job, cfg, k)
    except (RuntimeError, OSError) as error:
        chapter.error(f"the first samples cannot be read: {error}")
        return chapter
    batch = batch.to(device_of(cfg))
    moments = [_moments(parts, batch, row) for row in range(len(batch))]
    noise = rng.normal(job.module.seed, "vae", batch.index, tuple(_mean(moments[0]).shape[1:]))
    x0 = torch.cat(
        [parts.codec.latents(m, noise[i : i + 1]) for i, m in enumerate(moments)]
    )  # [k,C,h,w]
    if isinstance(batch, ImageBatch):
        _round_trip(chapter, parts.codec, batch, moments)
    _deviation(chapter, x0, parts.codec.scale, not any(True for _ in parts.codec.vae.parameters()))
    if torch.isfinite(x0).all() and not parts.codec.problems():
        _strip(chapter, job, x0[:1], batch)
    _contexts(chapter, parts, batch, cfg)
    if not chapter.findings:
        chapter.ok(f"what they make of the first {len(batch)} samples is as it should be")
    return chapter


def device_of(cfg: dict[str, Any]) -> str:
    """Where to compute here: the GPU unless the run is one of a CPU."""
    wanted = cfg["training"]["trainer"]["accelerator"]
    return "cuda" if torch.cuda.is_available() and wanted != "cpu" else "cpu"


def first_batch(job: Any, cfg: dict[str, Any], k: int) -> Batch:
    """Samples 0 … k-1 of the run, fewer where a batch of one picture size holds fewer."""
    if isinstance(job.data.train, Reader):
        if job.data.train.shapes:
            k = min(k, cfg["training"]["batch_size"])
        return job.data.train.batch(torch.arange(k))
    loader = job.data.train_loader(micro_batch=k, rank=0, world=1, start=0, pin_memory=False)
    return next(iter(loader))


def _moments(parts: Any, batch: Batch, row: int) -> Tensor:
    """[1,2C,h,w]; one picture at a time, as k of them may not fit in memory."""
    if isinstance(batch, LatentBatch):
        return batch.moments[row : row + 1].float()
    return parts.codec.moments(batch.pixels[row : row + 1])


def _mean(moments: Tensor) -> Tensor:
    return moments.chunk(2, dim=1)[0]


def _round_trip(chapter: Chapter, codec: Any, batch: ImageBatch, moments: list[Tensor]) -> None:
    """Decodes the mean of each posterior. PSNR: 10 log10(4 / mse) for pixels in [-1,1]."""
    decoded = torch.cat(
        [codec.decode(codec.latents(m, torch.zeros_like(_mean(m)))) for m in moments]
    )
    if not torch.isfinite(decoded).all():
        chapter.error(
            "the VAE gives pictures that are not finite", "models.vae_dtype=fp32, or another VAE"
        )
        return
    error = (decoded.clamp(-1, 1) - batch.pixels).square().flatten(1).mean(1)
    psnr = (10 * torch.log10(4 / error)).tolist()
    mean, worst = sum(psnr) / len(psnr), min(psnr)
    facts = {"pictures": len(psnr), "PSNR, mean": mean, "PSNR, worst": worst}
    chapter.facts |= facts
    if mean < POOR_DB:
        chapter.warning(
            f"pictures come back from the VAE with {mean:.1f} dB: what it loses no network can "
            "learn",
            "look at the pictures; take another VAE (models/vae, models.vae_weights) or data.size",
        )
    rows = sorted(range(len(psnr)), key=lambda row: psnr[row])
    before, after = to_pil(batch.pixels), to_pil(decoded)
    said = [f"{psnr[i]:.1f} dB\n{batch.keys[i]}: {batch.captions[i]:.80}" for i in range(len(psnr))]
    groups = [("data", before), ("through the VAE", after)]
    chapter.elements += [
        Facts({**facts, "PSNR, mean": f"{mean:.2f} dB", "PSNR, worst": f"{worst:.2f} dB"}),
        SideBySide([(name, [(images[i], said[i]) for i in rows]) for name, images in groups]),
    ]


def _deviation(chapter: Chapter, x0: Tensor, scale: float, in_pixels: bool) -> None:
    std, mean = torch.std_mean(x0.double())
    by_channel = x0.double().transpose(0, 1).flatten(1).std(dim=1).tolist()
    value = float(std)
    facts = {
        "scale": scale,
        "deviation of the scaled latents": value,
        "their mean": float(mean),
        "deviation by channel": [round(channel, 4) for channel in by_channel],
    }
    chapter.facts |= facts
    chapter.elements.append(Facts(facts))
    if not torch.isfinite(x0).all():
        chapter.error("the latents are not finite", "models.vae_dtype=fp32 or bf16; check the data")
    elif not LEAST_STD <= value <= MOST_STD:
        chapter.error(
            f"the scaled latents have the deviation {value:.3g}; the schedules are made for 1",
            f"scaled twice or not at all? A scale of {scale / value:.4g} would give 1",
        )
    elif in_pixels:
        chapter.ok("the network works on pixels, which are not scaled to the deviation 1")
    elif not 1 / UNUSUAL <= value <= UNUSUAL:
        chapter.warning(
            f"the scaled latents have the deviation {value:.3g}, not about 1",
            f"a scale of {scale / value:.4g} would give 1, as most published VAEs have",
        )


def _strip(chapter: Chapter, job: Any, x0: Tensor, batch: Batch) -> None:
    """One sample at eight levels, each at the deviation 1 so that it can be decoded."""
    objective = job.module.objective
    share = (torch.arange(LEVELS, dtype=torch.float32, device=x0.device) + 0.5) / LEVELS
    share[-1] = 1.0
    levels = objective.schedule.at(objective.schedule.training_time(share))
    eps = rng.normal(job.module.seed, "noise", batch.index[:1], tuple(x0.shape[1:]))
    cells: list[tuple[Image.Image, str]] = []
    for row in range(LEVELS):
        level = Level(levels.t[row], levels.alpha[row], levels.sigma[row]).rows(1)
        total = (level.alpha**2 + level.sigma**2).sqrt()
        x = objective.add_noise(x0, eps, level) / total.view(1, 1, 1, 1)
        picture = to_pil(job.encoders.codec.decode(x))[0]
        cells.append((picture, f"SNR {float(level.snr):.3g}\nt = {float(level.t):.4g}"))
    snr = levels.snr.tolist()
    chapter.facts["strip"] = [
        {"t": t, "snr": s} for t, s in zip(levels.t.tolist(), snr, strict=True)
    ]
    chapter.elements += [
        Pictures(cells, columns=LEVELS),
        Plot(
            title="Signal-to-noise ratio of the schedule",
            x_label="t",
            y_label="SNR",
            series=[Series("SNR", levels.t.tolist(), snr)],
            log_y=True,
        ),
    ]


def _contexts(chapter: Chapter, parts: Any, batch: Batch, cfg: dict[str, Any]) -> None:
    """Whether captions and the null context reach the network as different things."""
    context, null = parts.conditioning(batch).context, parts.null().context
    if context is None or null is None:
        return
    if not (torch.isfinite(context).all() and torch.isfinite(null).all()):
        chapter.error("contexts are not finite", "models.text.dtype=fp32, or another text encoder")
        return
    first = {caption: row for row, caption in reversed(list(enumerate(batch.captions)))}
    rows = context[[row for caption, row in first.items() if caption.strip()]].float()
    norm = float(rows.flatten(1).norm(dim=1).mean()) if len(rows) else 0.0
    apart = _apart(rows[1:], rows[:1]) if len(rows) > 1 else None
    from_null = _apart(rows, null.float()) if len(rows) else None
    facts = {
        "context": list(context.shape[1:]),
        "null context": parts.text.null_kind,
        "captions apart": apart,
        "captions from the null context": from_null,
        "norm of a context": norm,
    }
    chapter.facts |= facts
    chapter.elements.append(Facts(facts))
    if apart is not None and apart < SAME:
        chapter.error(
            "different captions have the same context", "check models.text: weights and tokenizer"
        )
    elif from_null is not None and from_null < SAME:
        chapter.error(
            "captions have the null context", "check models.text, and that captions are read"
        )
    if not cfg["training"]["caption_dropout"] and cfg["sampling"]["guidance"] != 1:
        chapter.warning(
            "training.caption_dropout=0: the network never sees the null context, which guidance "
            f"{cfg['sampling']['guidance']} needs",
            "training.caption_dropout=0.1, or sampling.guidance=1",
        )


def _apart(rows: Tensor, other: Tensor) -> float:
    """The largest relative distance of rows [n,L,D] from other [1,L,D]."""
    difference = (rows - other).flatten(1).norm(dim=1)
    return float((difference / rows.flatten(1).norm(dim=1).clamp(min=1e-12)).max())
