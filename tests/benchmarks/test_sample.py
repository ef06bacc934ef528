"""Does benchmarks/sample.py compare the same sampling, and put the right ratios on the page?"""

from __future__ import annotations

from dataclasses import asdict

import pytest
import torch

KEYS = [("ours", "fp32"), ("diffusers", "fp32"), ("ours", "bf16"), ("diffusers", "bf16")]


def a_case(**changes: object) -> object:
    from sample import Case

    fields: dict[str, object] = {"size": "tiny", "batch": 1, "device": "cpu", "steps": 10}
    fields |= {"guidance": 7.5, "tokens": 5, "clock": "wall"}
    return Case(**{**fields, **changes})


def test_ratios_are_paired_round_by_round() -> None:
    from sample import row

    seconds = [[1.0, 2.0, 4.0], [2.0, 4.0, 8.0], [0.5, 1.0, 2.0], [1.5, 3.0, 6.0]]
    times = dict(zip(KEYS, seconds, strict=True))
    same_and_stock = {key: (row(a_case(), key, times)) for key in KEYS}
    found = {key: (r.same, r.stock) for key, r in same_and_stock.items()}
    assert found == dict(zip(KEYS, [(2, 2), (1, 1), (3, 4), (1, 4 / 3)], strict=True))
    assert same_and_stock[KEYS[0]].same_quartiles == (2, 2)


def test_the_page_has_ours_alone() -> None:
    from sample import row, tables

    times = {key: [0.001, 0.002, 0.003] for key in KEYS}
    report = {"rows": [asdict(row(a_case(), key, times)) for key in KEYS]}
    lines = tables(report)["sample"].markdown().splitlines()[2:]
    assert [line.split(" | ")[:3] for line in lines] == [
        ["| tiny", "1", "fp32"],
        ["| tiny", "1", "bf16"],
    ]
    assert lines[0].endswith("| 2 (1–3) | 1.00 (1.00–1.00) | 1.00 (1.00–1.00) | 3 |")


def test_another_answer_ends_the_comparison() -> None:
    from sample import agree

    answers = {key: torch.ones(1, 4, 2, 2) for key in KEYS}
    agree(answers)
    agree({**answers, KEYS[2]: answers[KEYS[2]] + 0.05})
    with pytest.raises(SystemExit, match="ours in fp32 samples something else"):
        agree({**answers, KEYS[0]: answers[KEYS[0]] + 0.05})
    with pytest.raises(SystemExit, match="ours in bf16"):
        agree({**answers, KEYS[2]: answers[KEYS[2]] * float("nan")})


@pytest.mark.reference
def test_ours_samples_what_diffusers_samples() -> None:
    from sample import Sampling, agree

    samplings = (("ours", "fp32"), ("ours, unprepared", "fp32"), ("diffusers", "fp32"))
    answers = {key: Sampling(a_case(), *key).draw() for key in samplings}
    agree(answers)
    prepared, plain = answers["ours", "fp32"], answers["ours, unprepared", "fp32"]
    assert not torch.equal(prepared, plain)  # both are what they say
