"""Is the memory of a step derived as a step takes it, and is the page up to date?"""

from __future__ import annotations

import json
from dataclasses import asdict

import pytest

from ldm.models.unet import UNet

pytestmark = pytest.mark.reference


def test_what_is_held_and_updated_in_closed_form() -> None:
    """fp32: weights, two moments and the average; AdamW as it comes makes a copy of a moment."""
    from memory import derived
    from networks import OURS, REFERENCE, shape

    parameters = sum(p.numel() for p in UNet(shape("tiny")).parameters())
    ours, theirs = (derived(64, 1, whose, "tiny") for whose in (OURS, REFERENCE))
    assert ours.held == theirs.held == 16 * parameters
    assert ours.update == 4 * parameters
    assert theirs.update == pytest.approx(8 * parameters, rel=1e-3)
    assert ours.backward >= 4 * parameters  # all gradients, at the end
    assert ours.peak == ours.held + max(ours.forward, ours.backward, ours.update)


def test_the_forward_keeps_what_diffusers_keeps() -> None:
    """The same products and norms: a row more costs the same."""
    from memory import traced
    from networks import OURS, REFERENCE

    grown = [
        traced(64, 2, whose, "tiny")[1].saved - traced(64, 1, whose, "tiny")[1].saved
        for whose in (OURS, REFERENCE)
    ]
    assert grown[0] == pytest.approx(grown[1], rel=0.01)


def test_tables() -> None:
    from memory import Counted, Derived, tables
    from sd15_contender import STOCK

    giga = 2**30
    sizes = {"held": 4 * giga, "forward": giga, "update": giga}
    report = {
        "rows": [
            asdict(Derived(px=256, batch=4, contender="ours", backward=2 * giga, **sizes)),
            asdict(Derived(px=256, batch=4, contender=STOCK, backward=8 * giga, **sizes)),
        ],
        "counted": [
            asdict(Counted(size="tiny", px=64, batch=4, contender="ours", peak_mib=50.0)),
            asdict(Counted(size="tiny", px=64, batch=4, contender=STOCK, peak_mib=100.0)),
        ],
        "flops": [
            {"size": "sd21", "px": 256, "forward": 1e11, "training": 3e11, "by_autograd": 2.9e11}
            | {"published": 0.543e12}
        ],
    }
    made = tables(report)
    assert [row[-2:] for row in made["memory-sd15"].rows] == [["6.00", "0.50"], ["12.00", "1.00"]]
    assert [row[-1] for row in made["memory-cpu"].rows] == ["0.50", "1.00"]
    assert made["memory-flops"].rows[0][1:] == ["0.1000", "0.3000", "0.2900", "0.543"]


@pytest.mark.slow
def test_the_page_is_up_to_date() -> None:
    """After a change of the networks: python benchmarks/run.py memory --write."""
    from memory import derived_rows, flop_rows
    from run import NUMBERS

    report = json.loads((NUMBERS / "memory.json").read_text())
    assert report["flops"] == flop_rows()
    for old, new in zip(report["rows"], derived_rows(), strict=True):
        row = asdict(new)
        assert (old.pop("contender"), row.pop("contender")) == (new.contender,) * 2
        assert old == pytest.approx(row, rel=0.02)
