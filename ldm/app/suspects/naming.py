"""What would a model rather call the pictures whose captions do not fit?

nearest.jsonl: a line a picture, so that none is tried twice.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from ldm.app.suspects.findings import Finding, Findings
from ldm.app.suspects.losses import Meter
from ldm.app.suspects.samples import Samples

NEAREST = "nearest.jsonl"


def name_suspects(
    found: Findings,
    meter: Meter,
    samples: Samples,
    out: Path,
    *,
    tried: int,
    most: int,
    advance: Callable[[], None],
) -> Findings:
    """The same, with the best of `tried` captions for the `most` clearest of the mislabelled."""
    known = _known(out / NEAREST, tried)
    named: dict[int, str] = {}
    for one in found.of("mislabelled")[:most]:
        number = one.sample.number
        if number not in known:
            known[number] = _nearest(one, meter, samples, tried)
            line = {"number": number, "tried": tried, "nearest": known[number]}
            with (out / NEAREST).open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
        named[one.row] = known[number]
        advance()
    every = [replace(one, nearest=named[one.row]) if one.row in named else one for one in found.all]
    return replace(found, all=every)


def _nearest(one: Finding, meter: Meter, samples: Samples, tried: int) -> str:
    """By the mean logarithm of the loss, as everything is judged."""
    captions = samples.others(one.sample.number, one.sample.caption, tried)
    (picture,) = samples.pictures.pictures([one.sample.number])
    if picture is None:  # it was there when it was measured
        return one.nearest
    losses = meter.explain(one.sample.number, picture, [one.sample.caption, *captions]).losses
    return captions[int(losses[2:].log().mean(1).argmin())]


def _known(path: Path, tried: int) -> dict[int, str]:
    """What was found before among as many captions; a line cut short by a crash is passed over."""
    found: dict[int, str] = {}
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else ():
        try:
            said = json.loads(line)
            if said["tried"] == tried:
                found[int(said["number"])] = str(said["nearest"])
        except (ValueError, KeyError, TypeError):
            continue
    return found
