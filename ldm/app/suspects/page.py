"""How do suspects become a page that one can look through?"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from ldm.app.suspects.findings import Finding, Findings
from ldm.page import Facts, Page, Pictures, Plot, Series, SideBySide, Table, Text

COLUMNS = 5
CURVES = 4  # samples whose losses are drawn
GROUP = 4  # copies of one picture that are shown
SECTIONS = {
    "mislabelled": (
        "Captions that do not fit",
        "Beside no caption and beside captions of other samples, the own caption explains these "
        "pictures less well than it does elsewhere in the set. z: deviations from the set's "
        "middle; rather: the best of the captions of others that the picture was tried with.",
    ),
    "hard": (
        "Hard",
        "The highest losses where the caption fits: unusual, damaged or crowded pictures.",
    ),
    "easy": (
        "Too easy",
        "Losses far below those of the pictures most like them: seen too often, "
        "learnt by heart, or plainer than they look.",
    ),
}
Draw = Callable[[Sequence[int]], list[Image.Image | None]]


def write_page(
    path: Path,
    found: Findings,
    draw: Draw,
    *,
    title: str,
    facts: Mapping[str, Any],
    shown: int,
    footer: str,
) -> None:
    """draw: the pictures of these numbers; shown: samples of each kind."""
    page = Page(title=title, footer=footer)
    counts = {kind: len(found.of(kind)) for kind in ("mislabelled", "copy", "hard", "easy")}
    page.section("Summary", [*_summary(found, counts), _leaving_out()])
    _mislabelled(page, found, draw, shown)
    _copies(page, found, draw, shown)
    for kind in ("hard", "easy"):
        name, meaning = SECTIONS[kind]
        listed = found.of(kind)[:shown]
        page.section(name, [Text(meaning), *_gallery(listed, draw)])
    if found.table.unusable:
        rows = [[bad.shard, bad.key, bad.unusable] for bad in found.table.unusable[:100]]
        page.section("Unusable", [Table(["shard", "key", "why"], rows)])
    page.section("How it was measured", [Facts(facts)])
    page.write(path)


def _summary(found: Findings, counts: Mapping[str, int]) -> list[Any]:
    total = len(found.all)
    differ = sum(one.captions_differ for one in found.of("copy"))
    text = (
        f"Of {total:,} samples {counts['mislabelled']:,} have a caption that does not fit, "
        f"{counts['copy']:,} are copies of another ({differ:,} with another caption), "
        f"{counts['hard']:,} are hard and {counts['easy']:,} too easy."
    )
    losses = found.table.losses
    middles = {
        "own caption": losses.own,
        "no caption": losses.none,
        "other captions": losses.others.mean(1),
    }
    xs = _places(found)
    series = [
        Series(name, xs, found.by_bin(part.median(dim=0).values).tolist())
        for name, part in middles.items()
    ]
    plot = Plot(
        "The middle sample", "share of the time range (1: noise alone)", "loss", series, log_y=True
    )
    return [Text(text, tone="lead"), plot]


def _leaving_out() -> Text:
    return Text(
        "Nothing was changed. `exclude.jsonl` lists captions that do not fit and copies, a line a "
        "sample (`shard`, `key`, `reason`): look at them, delete the lines of those that are "
        "right, then write shards without the others (docs/suspects.md)."
    )


def _mislabelled(page: Page, found: Findings, draw: Draw, shown: int) -> None:
    name, meaning = SECTIONS["mislabelled"]
    listed = found.of("mislabelled")[:shown]
    elements: list[Any] = [Text(meaning), *_gallery(listed, draw)]
    elements += [_curve(found, one) for one in listed[:CURVES]]
    if listed:
        columns = ["key", "caption", "rather", "z", "gain", "advantage", "share"]
        rows = [
            [
                *(one.sample.key, one.sample.caption, one.nearest),
                *(round(v, 3) for v in (one.fit_z, one.gain, one.advantage, one.share)),
            ]
            for one in listed
        ]
        elements.append(Table(columns, rows))
    page.section(name, elements)


def _copies(page: Page, found: Findings, draw: Draw, shown: int) -> None:
    """Groups with different captions first: one of these captions is wrong."""
    samples = found.table.samples
    order = sorted(
        range(len(found.copies)),
        key=lambda n: (not found.all[found.copies[n].rows[0]].captions_differ, n),
    )
    elements: list[Any] = [
        Text(
            "Pictures whose latents and looks are nearly the same. Groups whose captions differ "
            "come first: of captions that say different things at most one is right."
        )
    ]
    for number in order[:shown]:
        group = found.copies[number]
        rows = group.rows[:GROUP]
        pictures = draw([samples[row].number for row in rows])
        cells = [
            (f"{place + 1} of {len(group.rows)}", [(picture, _said(found.all[row]))])
            for place, (row, picture) in enumerate(zip(rows, pictures, strict=True))
            if picture is not None
        ]
        if cells:
            elements.append(SideBySide(cells))
    if not found.copies:
        elements.append(Text("None was found.", tone="good"))
    page.section("Copies", elements)


def _gallery(listed: Sequence[Finding], draw: Draw) -> list[Any]:
    if not listed:
        return [Text("None was found.", tone="good")]
    pictures = draw([one.sample.number for one in listed])
    cells = [
        (picture, _said(one))
        for one, picture in zip(listed, pictures, strict=True)
        if picture is not None
    ]
    return [Pictures(cells, columns=COLUMNS)]


def _said(one: Finding) -> str:
    caption = " ".join(one.sample.caption.split()) or "(no caption)"
    numbers = f"z: fit {one.fit_z:.1f}, hard {one.hard_z:.1f}".replace("-", "−")
    rather = [f"rather: {one.nearest}"] if "mislabelled" in one.kinds else []
    return "\n".join([caption, *rather, numbers, one.sample.key])


def _curve(found: Findings, one: Finding) -> Plot:
    losses = found.table.losses
    best = int(losses.others[one.row].log().mean(1).argmin())
    parts = {
        "own caption": losses.own[one.row],
        "no caption": losses.none[one.row],
        "best of the others": losses.others[one.row, best],
    }
    xs = _places(found)
    series = [Series(name, xs, found.by_bin(part).tolist()) for name, part in parts.items()]
    return Plot(one.sample.caption[:60], "share of the time range", "loss", series, log_y=True)


def _places(found: Findings) -> list[float]:
    return [(number + 0.5) / found.bins for number in range(found.bins)]
