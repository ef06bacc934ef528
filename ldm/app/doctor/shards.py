"""What do the shards hold, and what will training make of it?"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import Progress

from ldm.app.doctor.captions import Words, add_captions, number_range
from ldm.app.doctor.findings import Chapter
from ldm.app.doctor.settings import DoctorSettings
from ldm.data.buckets import nearest_bucket
from ldm.data.scan import Copies, Place, Scan, ShardFacts, scan
from ldm.data.settings import DataConfig
from ldm.page import Bars, Facts, Table

FREE = 16  # as many bad samples never stop a run (data.quarantine)
MANY_UPSCALED = 0.1  # of the pictures
SHOWN = 100  # rows of a table of the page
GROUPS = 12  # groups of copies on the page; doctor.json has more


def shards(
    name: str, listed: Sequence[str], config: DataConfig, settings: DoctorSettings, text: Words
) -> Chapter:
    """The chapter about some shards; text: the encoder whose tokens captions are counted in."""
    chapter = Chapter(name)
    full = settings.scan == "full"
    threads = len(os.sched_getaffinity(0))
    with Progress(console=Console(stderr=True), disable=not full) as bar:
        task = bar.add_task(f"scanning {name.lower()}", total=None)

        def advance(done: int, total: int) -> None:
            bar.update(task, completed=done, total=total)

        found = scan(listed, config, full=full, threads=threads, advance=advance)
    _samples(chapter, found, config)
    add_captions(chapter, found.captions, text)
    _sizes(chapter, found, config)
    _latents(chapter, found, config)
    return chapter


def overlap(train: Sequence[str], val: Sequence[str], chapter: Chapter) -> None:
    """Shards that are trained and validated on."""
    both = sorted(set(train) & set(val))
    if both:
        chapter.warning(
            f"{len(both)} shards are trained and validated on, {both[0]} for one",
            "the validation loss will look better than it is; give data.val.shards others",
        )


def _samples(chapter: Chapter, found: Scan, config: DataConfig) -> None:
    for shard in found.shards:
        if shard.fatal:
            chapter.error(f"{shard.shard}: {shard.problem}", "repair it or leave it out")
        elif shard.problem:
            chapter.warning(f"{shard.shard}: {shard.problem}", "what comes before it is used")
    bad, total = sum(found.reasons.values()), sum(shard.samples for shard in found.shards)
    allowed = max(FREE, config.max_bad_ratio * total)
    if bad:
        most = ", ".join(f"{count} × {why}" for why, count in found.reasons.most_common(3))
        told = f"{bad} of {total} samples cannot be used ({most})"
        if bad > allowed:
            chapter.error(told, f"above data.max_bad_ratio={config.max_bad_ratio}; repair them")
        else:
            chapter.warning(told, "others take their places; see the list")
    if found.same_bytes.samples:
        chapter.warning(
            f"{found.same_bytes.samples} pictures are byte for byte another one",
            "they are seen more often than the others; remove the copies if that is not meant",
        )
    if found.alike.samples:
        chapter.ok(f"{found.alike.samples} pictures look like another one; some are listed")
    if found.usable and chapter.level == "ok":
        chapter.ok(f"{found.usable:,} samples in {len(found.shards)} shards can be used")
    indexed = sum(shard.indexed for shard in found.shards)
    size = sum(shard.bytes for shard in found.shards)
    facts = {
        "shards": len(found.shards),
        "bytes": size,
        "samples": total,
        "usable": found.usable,
        "left out by filters": sum(shard.filtered for shard in found.shards),
        "unusable": bad,
        "shards that had an index": indexed,
        "keys in more than one place": found.same_key.samples,
        "copies of a picture": found.same_bytes.samples if found.full else "not read",
        "pictures that look like another": found.alike.samples if found.full else "not read",
        "read": "every member" if found.full else "headers only (doctor.scan=full reads all)",
    }
    chapter.facts |= facts | {
        "reasons": dict(found.reasons),
        "filters": list(found.filters),
        "bad": [{"shard": b.shard, "key": b.key, "reason": b.reason} for b in found.bad],
        "per_shard": [_row(shard) for shard in found.shards],
        "copied": _places(found.same_bytes),
        "alike": _places(found.alike),
        "same_key": _places(found.same_key),
    }
    rows = [list(_row(shard).values()) for shard in found.shards[:SHOWN]]
    only = f"The first {SHOWN} shards" if len(found.shards) > SHOWN else None
    chapter.elements.append(Facts({**facts, "bytes": f"{size / 1e6:,.1f} MB"}))
    chapter.elements.append(Table(list(_row(ShardFacts(shard=""))), rows, caption=only))
    if found.bad:
        listed = [[b.shard, b.key, b.reason] for b in found.bad[:SHOWN]]
        chapter.elements.append(Table(["shard", "key", "why it cannot be used"], listed))
    for copies, title in ((found.same_bytes, "same bytes"), (found.alike, "look alike")):
        if copies.groups:
            rows = [[_first(group), len(group), _others(group)] for group in copies.groups[:GROUPS]]
            chapter.elements.append(Table([title, "samples", "others"], rows))


def _sizes(chapter: Chapter, found: Scan, config: DataConfig) -> None:
    known = found.sizes[np.isfinite(found.sizes[:, 0])]
    if config.format != "images" or not len(known):
        return
    shapes = config.buckets.sizes(config.size) if config.buckets.used else []
    shapes = shapes or [(config.size, config.size)]
    wanted = np.array(shapes, dtype=np.float64)[nearest_bucket(known, shapes)]  # [n,2] (h, w)
    scale = (wanted[:, ::-1] / known).max(axis=1)
    upscaled = float((scale > 1).mean())
    short = known.min(axis=1)
    facts = {
        "pictures upscaled": f"{upscaled:.1%} at {config.size} px",
        "shorter side, median": f"{np.median(short):.0f} px",
        "smallest": _size_text(known[short.argmin()]),
        "largest": _size_text(known[known.prod(axis=1).argmax()]),
    }
    chapter.facts |= facts | {"share_upscaled": upscaled}
    if upscaled > MANY_UPSCALED:
        chapter.warning(
            f"{upscaled:.0%} of the pictures are smaller than the {config.size} px trained on",
            f'filter={{size: ">={config.size}"}} leaves them out, or lower data.size',
        )
    edges = np.unique(np.geomspace(max(short.min(), 1), short.max() + 1, 13).round())
    if len(edges) < 2:
        edges = np.array([edges[0], edges[0] + 1])
    counts = np.histogram(short, bins=edges)[0]
    labels = [number_range(round(low), round(high) - 1) for low, high in pairwise(edges)]
    chapter.elements += [Facts(facts), Bars("Shorter side in px", labels, counts.tolist())]
    chapter.facts["size_histogram"] = dict(zip(labels, counts.tolist(), strict=True))


def _latents(chapter: Chapter, found: Scan, config: DataConfig) -> None:
    if config.format != "latents" or not found.layouts:
        return
    layouts: Counter[str] = Counter()
    for (kind, shape, context), count in found.layouts.items():
        layouts[f"{kind} {list(shape)}" + (f", context {list(context)}" if context else "")] += (
            count
        )
    if len(layouts) > 1 and not config.buckets.used:
        chapter.error(
            f"the latents have {len(layouts)} layouts: {dict(layouts)}",
            "use those of one, or data.buckets for several sizes",
        )
    std = [round(value, 4) for value in found.channel_std]
    chapter.facts |= {"layouts": dict(layouts), "channel_std": std}
    chapter.elements.append(Facts({"layouts": dict(layouts), "deviation by channel": std}))


def _row(shard: ShardFacts) -> Mapping[str, Any]:
    return {
        "shard": shard.shard,
        "samples": shard.samples,
        "usable": shard.usable,
        "filtered": shard.filtered,
        "MB": round(shard.bytes / 1e6, 1),
        "index": "there" if shard.indexed else "made now",
        "problem": shard.problem,
    }


def _first(group: Sequence[Place]) -> str:
    shard, key = group[0]
    return f"{shard.rpartition('/')[2]} {key}"


def _others(group: Sequence[Place]) -> str:
    shown = ", ".join(_first([place]) for place in group[1:4])
    return f"{shown}, …" if len(group) > 4 else shown


def _places(copies: Copies) -> list[list[list[str]]]:
    return [[list(place) for place in group] for group in copies.groups]


def _size_text(size: NDArray[np.float64]) -> str:
    return f"{size[0]:.0f} × {size[1]:.0f} px"
