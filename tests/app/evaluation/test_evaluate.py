"""Does an evaluation leave what it promises, the same however it is run, and go on with its own?"""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from ldm import app, pipeline
from ldm.app.evaluation import drawing
from ldm.cli import ConfigError

Config = dict[str, Any]
Evaluated = Callable[..., Config]


@pytest.fixture(scope="module")
def both(
    evaluated: Evaluated, finished_run: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Config]:
    """The finished run beside an earlier checkpoint of it."""
    out = tmp_path_factory.mktemp("evaluations") / "both"
    early = finished_run / "checkpoints" / "s000000016.ckpt"
    return out, evaluated(out, f"compare={early}")


def test_the_document_keeps_to_the_contract(both: tuple[Path, Config], finished_run: Path) -> None:
    out, said = both
    assert said["format"] == "ldm-evaluation/1"
    assert said["protocol"]["samples"] == 6
    assert said["protocol"]["references"] == 11
    late, early = said["entries"]
    assert (late["samples_seen"], early["samples_seen"]) == (32, 16)
    assert (late["sampler"], late["steps"], late["weights"]) == ("ddim", 2, "ema")
    assert late["id"] != early["id"]
    for entry in (late, early):
        names = {"kid", "precision", "density", "cmmd", "clip_score", "judge", "loss", "seconds"}
        assert names <= set(entry["metrics"])
        for measured in entry["metrics"].values():
            assert measured["better"] in ("lower", "higher")
            assert measured["samples"] >= 2
        score = entry["metrics"]["clip_score"]
        assert score["low"] <= score["value"] <= score["high"]
        assert (out / entry["strips"][0]).is_file()
        lines = (out / entry["pictures"] / "records.jsonl").read_text().splitlines()
        records = [json.loads(line) for line in lines]
        assert [record["seed"] for record in records] == list(range(1000, 1006))
        assert {"shape", "colour", "right"} <= set(records[0]["judge"])
        mean = sum(record["clip_score"] for record in records) / 6
        assert mean == pytest.approx(score["value"], abs=1e-9)
        with Image.open(out / entry["pictures"] / records[0]["file"]) as picture:
            assert picture.size == (32, 32)
    assert set(said["loss_by_time"]["entries"]) == {late["id"], early["id"]}
    assert len(said["loss_by_time"]["edges"]) == 11
    assert [note for note in said["notes"] if note.startswith("left out: fd needs 129")]
    copied = out / said["training"][late["id"]]
    assert copied.read_bytes() == (finished_run / "metrics.csv").read_bytes()


def test_the_table_has_a_row_for_every_entry_and_metric(both: tuple[Path, Config]) -> None:
    out, said = both
    with (out / "metrics.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == sum(len(entry["metrics"]) for entry in said["entries"])
    first = said["entries"][0]
    (row,) = [r for r in rows if (r["id"], r["metric"]) == (first["id"], "cmmd")]
    assert float(row["value"]) == first["metrics"]["cmmd"]["value"]


def test_pairs_say_which_is_better(both: tuple[Path, Config]) -> None:
    """Of the same images and noises, so that the difference is that of the means."""
    _, said = both
    late, early = said["entries"]
    (loss,) = [row for row in said["paired"] if row["quantity"] == "loss"]
    assert (loss["a"], loss["b"]) == (late["id"], early["id"])
    difference = early["metrics"]["loss"]["value"] - late["metrics"]["loss"]["value"]
    assert loss["difference"] == pytest.approx(difference, rel=1e-9)
    assert loss["low"] <= loss["difference"] <= loss["high"]
    assert {row["quantity"] for row in said["paired"]} >= {"loss", "judge", "clip_score"}
    assert sum(row["quantity"].startswith("loss, t ") for row in said["paired"]) == 10


def test_finished_pictures_are_not_drawn_again_and_damaged_ones_are(
    both: tuple[Path, Config],
    evaluated: Evaluated,
    finished_run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    source, said = both
    out = Path(shutil.copytree(source, tmp_path / "out"))
    first = said["entries"][0]
    folder = out / first["pictures"]
    before = {path.name: path.read_bytes() for path in folder.glob("*.png")}
    (folder / "000001.png").unlink()
    whole = before["000004.png"]
    (folder / "000004.png").write_bytes(whole[: len(whole) - 40])
    drawn: list[int] = []
    original = drawing._draw_batch

    def noting(pipe: Any, wanted: Any, recipes: Any, part: list[int]) -> None:
        drawn.extend(part)
        original(pipe, wanted, recipes, part)

    monkeypatch.setattr(drawing, "_draw_batch", noting)
    again = evaluated(out)
    assert drawn == [1, 4]
    assert again["counts"]["damaged pictures drawn again"] == 1
    for name in before:
        with Image.open(folder / name) as new, Image.open(source / first["pictures"] / name) as old:
            assert new.tobytes() == old.tobytes()
    for name in ("cmmd", "kid", "clip_score", "loss"):
        assert again["entries"][0]["metrics"][name] == first["metrics"][name]


def test_a_folder_of_another_protocol_is_refused_unless_told(
    both: tuple[Path, Config], evaluated: Evaluated, tmp_path: Path
) -> None:
    out = Path(shutil.copytree(both[0], tmp_path / "out"))
    with pytest.raises(ConfigError) as caught:
        evaluated(out, "samples=4", "first_seed=7")
    for part in ("another protocol", "samples 6, now 4", "first_seed 1000, now 7", "overwrite"):
        assert part in str(caught.value)
    assert len(evaluated(out, "samples=4", "overwrite=true")["entries"]) == 1


def test_a_sweep_is_a_grid_with_its_front(evaluated: Evaluated, tmp_path: Path) -> None:
    line = ("guidance=[1,4]", "sampler=[ddim,euler]", "weights=[raw,ema]", "metrics=[cmmd]")
    said = evaluated(tmp_path / "out", *line, "samples=4", "strips=0")
    assert len(said["entries"]) == len({entry["id"] for entry in said["entries"]}) == 8
    assert said["sweep"]["axes"]["guidance"] == [1.0, 4.0]
    assert said["sweep"]["axes"]["weights"] == ["raw", "ema"]
    assert said["sweep"]["metrics"] == ["cmmd", "seconds"]
    points = {
        entry["id"]: (entry["metrics"]["cmmd"]["value"], entry["metrics"]["seconds"]["value"])
        for entry in said["entries"]
    }
    best = min(points, key=lambda key: points[key])
    assert said["sweep"]["pareto"][0] == best
    assert "loss" not in said["entries"][0]["metrics"]
    assert said["loss_by_time"]["entries"] == {}


def test_all_checkpoints_of_a_run_are_a_curve(evaluated: Evaluated, tmp_path: Path) -> None:
    said = evaluated(tmp_path / "out", "checkpoints=all", "metrics=[clip_score]", "samples=2")
    assert [entry["samples_seen"] for entry in said["entries"]] == [16, 32]
    assert len(said["training"]) == 1
    assert said["sweep"] is None


def test_the_loggers_get_the_same_numbers(evaluated: Evaluated, tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    line = ("checkpoints=all", "metrics=[clip_score]", "samples=2", "logger=tensorboard")
    said = evaluated(tmp_path / "out", *line)
    (events,) = (tmp_path / "out" / "logs").glob("events.*")
    read = EventAccumulator(str(events)).Reload().Scalars("eval/clip_score")
    expected = [entry["metrics"]["clip_score"]["value"] for entry in said["entries"]]
    assert [(point.step, point.value) for point in read] == [
        (step, pytest.approx(value, rel=1e-6))
        for step, value in zip((16, 32), expected, strict=True)
    ]


def test_the_picture_is_the_one_that_sample_draws(
    both: tuple[Path, Config], finished_run: Path
) -> None:
    out, said = both
    record = json.loads(
        (out / said["entries"][0]["pictures"] / "records.jsonl").read_text().splitlines()[2]
    )
    pipe = pipeline.load(finished_run, device="cpu")
    (drawn,) = pipe.txt2img([record["caption"]], [record["seed"]], batch_size=4)
    with Image.open(out / said["entries"][0]["pictures"] / record["file"]) as kept:
        assert kept.tobytes() == drawn.tobytes()


def test_the_report_is_written(
    both: tuple[Path, Config],
    composed: Callable[..., Config],
    small_line: Callable[..., list[str]],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Through the real page, and the console says where it is."""
    out = Path(shutil.copytree(both[0], tmp_path / "out"))
    line = small_line("metrics=[clip_score,judge]", f"out={out}")
    assert app.evaluate(composed(*line, config="evaluate")) == 0
    assert "<html" in (out / "index.html").read_text(encoding="utf-8")
    printed = capsys.readouterr().out
    for part in ("judged by program", "true renders", "clip_score (↑)", f"report: {out}"):
        assert part in printed


@pytest.mark.slow
def test_two_processes_are_one(
    evaluated: Evaluated,
    small_line: Callable[..., list[str]],
    script: Callable[..., Any],
    val_shards: Path,
    tmp_path: Path,
) -> None:
    """The same pictures, to the bit, and the same numbers; data= is free text."""
    one = evaluated(tmp_path / "one", f"data.shards={val_shards}")
    line = small_line(f"data={val_shards}", f"out={tmp_path / 'two'}", "devices=2")
    done = script("evaluate", *line, OMP_NUM_THREADS="1", cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    two = json.loads((tmp_path / "two" / "metrics.json").read_text())
    assert two["made"]["processes"] == 2
    assert two["protocol"] == one["protocol"]
    (first,), (second,) = one["entries"], two["entries"]
    for index in range(6):
        name = f"{first['pictures']}/{index:06d}.png"
        with Image.open(tmp_path / "one" / name) as a, Image.open(tmp_path / "two" / name) as b:
            assert a.tobytes() == b.tobytes()
    for name in set(first["metrics"]) - {"seconds"}:
        assert second["metrics"][name] == first["metrics"][name]
    assert two["loss_by_time"] == one["loss_by_time"]
