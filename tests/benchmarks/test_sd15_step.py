"""Does the benchmark of SD 1.5 run, at small size, and say so where it cannot?"""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

TINY = {"size": "tiny", "px": 64, "batch": 2, "device": "cpu", "threads": 0, "clock": "wall"}


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


def asked(monkeypatch: pytest.MonkeyPatch, name: str, lines: str) -> list[Any]:
    """What a contender answers to these lines, in this process, on the tiny network."""
    import sd15_contender as script

    monkeypatch.setattr(sys, "stdin", io.StringIO(lines))
    contender = next(c for c in script.CONTENDERS if c.name == name)
    case, out = script.Case(**TINY), io.StringIO()
    run = script.run_theirs if contender.theirs else script.run_ours
    with pytest.raises(SystemExit):
        run(case, contender, script.inputs_of(case), out)
    return [json.loads(line) for line in out.getvalue().splitlines()]


def test_without_a_gpu_it_says_so(
    no_gpu: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    from sd15_step import main, tables

    out = tmp_path / "report.json"
    monkeypatch.setattr(sys, "argv", ["sd15_step.py", "--out", str(out)])
    main()
    assert "no GPU: not run" in capsys.readouterr().out
    report = json.loads(out.read_text())
    assert report["rows"] == []
    assert report["not_run"] == "no GPU"
    assert all("not run" in table.markdown() for table in tables(report).values())


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (["--turns", "1"], "2 turns or more"),
        (["--batch", "0"], "1 step and image or more"),
        (["--px", "250"], "multiples of 64"),
        (["--px", "384"], "need --batch"),
        (["--device", "cuda"], "torch sees no GPU"),
        (["--clock", "cpu"], "--device cpu --threads 1"),
    ],
)
def test_bad_arguments(
    no_gpu: None,
    line: list[str],
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    from sd15_step import main

    monkeypatch.setattr(sys, "argv", ["sd15_step.py", *line])
    with pytest.raises(SystemExit):
        main()
    assert said in capsys.readouterr().err


@pytest.mark.reference
def test_both_make_steps_and_begin_with_the_same_prediction(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from sd15_contender import STOCK
    from sd15_step import agree

    lines = "predict\nturn 1\nturn 2\n"
    ours, theirs = (asked(monkeypatch, name, lines) for name in ("ours", STOCK))
    agree({"ours": ours[0], STOCK: theirs[0]})
    assert all(seconds > 0 for answers in (ours, theirs) for seconds in answers[1:])
    assert len(ours) == len(theirs) == 3
    with pytest.raises(SystemExit, match="ours predicts something else"):
        agree({"ours": [2 * value + 1 for value in ours[0]], STOCK: theirs[0]})


@pytest.mark.reference
@pytest.mark.parametrize("whose", ["ours", "diffusers"])
def test_whether_gradients_outlive_their_step(whose: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """memory.py counts them in the next forward where they do."""
    import sd15_contender as script
    from memory import NAMES

    alive: list[bool] = []
    network = script.network

    def watched(size: str, kind: str) -> Any:
        module, call = network(size, kind)

        def look(module: torch.nn.Module, _: Any) -> None:
            alive.append(any(p.grad is not None for p in module.parameters()))

        module.register_forward_pre_hook(look)
        return module, call

    monkeypatch.setattr(script, "network", watched)
    asked(monkeypatch, NAMES[whose], "turn 1\n")
    assert alive == [False, False]


def test_a_turn_is_one_step_and_those_that_are_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Between steps of a second each, by a clock of ours."""
    import sd15_contender as script

    now = [0.0]
    monkeypatch.setitem(script.CLOCKS, "wall", lambda: now[0])
    monkeypatch.setattr(sys, "stdin", io.StringIO("predict\nturn 3\n"))
    out = io.StringIO()
    line = script.Line(script.Case(**TINY), lambda: torch.ones(2), out)
    for seconds in (100.0, 1.0, 1.0, 1.0):  # the first warms up
        line.between()
        now[0] += seconds
    with pytest.raises(SystemExit):  # there is nothing more to read
        line.between()
    assert [json.loads(answer) for answer in out.getvalue().splitlines()] == [[1.0, 1.0], 1.0]


def test_rows_and_tables() -> None:
    from flops import training_flops
    from sd15_contender import STOCK, STOCK_COMPILED, Case
    from sd15_step import asdict, row, tables

    times = {"ours": [0.5] * 4, STOCK: [1.0] * 4, STOCK_COMPILED: [0.75] * 4}
    memory = dict.fromkeys(times, 1234.0)
    peaks = 40.0 * training_flops("tiny", 64), None
    rows = [row(Case(**{**TINY, "batch": 8}), name, times, memory, peaks) for name in times]
    assert [r.stock for r in rows] == [2.0, 1.0, pytest.approx(4 / 3)]
    assert [r.compiled for r in rows] == [1.5, 0.75, 1.0]
    assert rows[0].images_per_s == 16
    assert rows[0].measured_mfu == pytest.approx(0.4)
    left_out = {"64 px: ours, compiled": "ended with 1"}
    made = tables({"rows": [asdict(r) for r in rows], "left_out": left_out})
    assert made["sd15-step"].rows[-1] == ["64 px: ours, compiled: left out", "–", "–", "–"]
    assert made["sd15-step"].rows[0][1:] == ["500.0 (500.0–500.0)", "2.00 (2.00–2.00)", "1.50"]
    assert made["sd15-step-use"].rows[0][1:] == ["16.0", "40.0%", "–", "1,230"]


@pytest.mark.slow
@pytest.mark.reference
def test_the_script_as_it_is_called(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes, turns, peak and memory, on the tiny network."""
    from sd15_step import main, tables

    out = tmp_path / "report.json"
    command = ["sd15_step.py", "--size", "tiny", "--batch", "2", "--device", "cpu", "--quick"]
    monkeypatch.setattr(sys, "argv", [*command, "--out", str(out)])
    main()
    report = json.loads(out.read_text())
    assert [r["contender"] for r in report["rows"]] == ["ours", "diffusers + accelerate"]
    assert all(r["peak_mib"] > 60 and r["measured_mfu"] > 0 for r in report["rows"])
    assert report["left_out"] == {}
    assert set(tables(report)) == {"sd15-step", "sd15-step-use"}
