"""Do all loggers get all numbers and pictures, and does a resumed run go on in them?"""

from __future__ import annotations

import csv
import json
import os
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import wandb
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from wandb.proto import wandb_internal_pb2 as records

from ldm import app
from ldm.training.loggers import LoggerSettings, ResumableCSVLogger, build_loggers

Rows = Callable[..., list[dict[str, float]]]
COLUMNS = {
    "samples_seen",
    "train/loss",
    "val/loss_ema",
    "val/loss_raw",
    "val/loss/t0_ema",
    "val/loss/t9_raw",
    "lr",
    "images_per_s",
    "grad_norm",
    "epoch",
    "skipped",
    "captions_cut",
}


def test_metrics_csv_has_its_columns(finished_run: Path) -> None:
    with (finished_run / "metrics.csv").open(newline="") as file:
        assert set(next(csv.reader(file))) >= COLUMNS


def test_a_resumed_run_keeps_the_rows_up_to_its_checkpoint(tmp_path: Path, metrics: Rows) -> None:
    first = ResumableCSVLogger(tmp_path, resume_from=0)
    for n in (8, 16, 24):
        first.log_metrics({"samples_seen": float(n), "train/loss": 1.0 / n}, step=n)
    second = ResumableCSVLogger(tmp_path, resume_from=16)
    second.log_metrics({"samples_seen": 24.0, "val/loss_raw": 0.5}, step=24)  # a new column
    rows = metrics(tmp_path)
    assert [row["samples_seen"] for row in rows] == [8, 16, 24]
    assert [row.get("train/loss") for row in rows] == [1 / 8, 1 / 16, None]
    assert rows[2]["val/loss_raw"] == 0.5


def test_a_run_that_starts_anew_drops_the_rows_of_a_lost_one(tmp_path: Path, metrics: Rows) -> None:
    """resume=auto without any checkpoint yet."""
    ResumableCSVLogger(tmp_path, resume_from=0).log_metrics({"samples_seen": 8.0}, step=8)
    ResumableCSVLogger(tmp_path, resume_from=0).log_metrics({"samples_seen": 4.0}, step=4)
    assert [row["samples_seen"] for row in metrics(tmp_path)] == [4]


def test_every_row_is_on_disk_at_once(tmp_path: Path, metrics: Rows) -> None:
    """A killed run keeps its curve."""
    logger = ResumableCSVLogger(tmp_path, resume_from=0)
    logger.log_metrics({"samples_seen": 8.0}, step=8)
    assert len(metrics(tmp_path)) == 1


def test_csv_alone_is_the_default(tmp_path: Path) -> None:
    made = build_loggers(LoggerSettings(), tmp_path, name="n", run_id="i", resume_from=0)
    assert [type(logger) for logger in made] == [ResumableCSVLogger]


def test_settings_say_what_is_wrong() -> None:
    (problem,) = LoggerSettings(wandb_mode="off").problems()
    assert "wandb_mode='off'; allowed: auto, online, offline" in problem
    assert LoggerSettings().problems() == []


# -- one run and its continuation, with all loggers ---------------------------------------------


@pytest.fixture(scope="module")
def logged(
    tiny_cfg: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Path]:
    """(run folder, home folder): 16 samples, then 16 more, in an empty home."""
    root = tmp_path_factory.mktemp("logged")
    home, cwd, run_dir = root / "home", root / "cwd", root / "run"
    home.mkdir()
    cwd.mkdir()
    changes = (
        "training.logger.tensorboard=true",
        "training.logger.wandb=true",
        "training.logger.wandb_project=tests",
        "training.val_every=16",
        "training.sample_every=16",
        "sampling.steps=1",
        "training.callbacks.samples.prompts=[a red circle,a blue star]",
        "name=it's a name",
        "resume=auto",
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(cwd)
        patch.setenv("HOME", str(home))
        patch.setenv("WANDB_SILENT", "true")
        patch.delenv("WANDB_API_KEY", raising=False)
        for name in list(os.environ):
            if name.startswith("XDG_") or (name.startswith("WANDB_") and name.endswith("_DIR")):
                patch.delenv(name)
        for length in (16, 32):
            cfg = tiny_cfg(run_dir, *changes, f"training.max_samples={length}")
            assert app.train(cfg) == 0
            assert wandb.run is None  # ended: a sweep's next job would go on in it
        wandb.teardown()
    return run_dir, root


def test_nothing_is_written_outside_the_run_folder(logged: tuple[Path, Path]) -> None:
    run_dir, root = logged
    outside = [p for p in root.rglob("*") if p.is_file() and not p.is_relative_to(run_dir)]
    assert outside == []


def test_tensorboard_gets_the_numbers_the_pictures_and_the_plan(
    logged: tuple[Path, Path], metrics: Rows
) -> None:
    run_dir, _ = logged
    events = EventAccumulator(str(run_dir), size_guidance={"images": 0})
    events.Reload()
    rows = metrics(run_dir)
    for name in ("train/loss", "lr", "val/loss_ema", "images_per_s"):
        points = [(e.step, pytest.approx(e.value, rel=1e-6)) for e in events.Scalars(name)]
        assert points == [(int(row["samples_seen"]), row[name]) for row in rows if name in row]
    images = events.Tags()["images"]
    assert images
    assert all(tag.startswith("samples/ema") for tag in images)
    assert {e.step for tag in images for e in events.Images(tag)} == {16, 32}
    texts = events.Tags()["tensors"]
    plan = b"".join(
        events.Tensors(next(t for t in texts if t.startswith("plan")))[0].tensor_proto.string_val
    )
    assert b"16 samples = 2 steps" in plan
    captions = next(t for t in texts if "captions" in t)
    assert b"a red circle" in events.Tensors(captions)[0].tensor_proto.string_val[0]


def offline_records(data: bytes) -> Iterator[records.Record]:
    """The records of a .wandb file: a LevelDB log of protocol buffers.

    Blocks of 32 KiB hold chunks of crc (4), length (2), kind (1: whole, 2: first, 3: middle,
    4: last) and data; no chunk begins in the last 6 bytes of a block.
    """
    block, header = 32 * 1024, 7
    assert data[:4] == b":W&B"
    place, whole = 7, b""
    while place + header <= len(data):
        if block - place % block < header:
            place += block - place % block
            continue
        length, kind = struct.unpack_from("<HB", data, place + 4)
        part = data[place + header : place + header + length]
        place += header + length
        whole = part if kind in (1, 2) else whole + part
        if kind in (1, 4):
            yield records.Record.FromString(whole)


def offline_runs(run_dir: Path) -> list[list[records.Record]]:
    """The records of each offline run of wandb, oldest first."""
    found = sorted(run_dir.glob("wandb/offline-run-*/*.wandb"))
    return [list(offline_records(path.read_bytes())) for path in found]


def test_wandb_gets_the_numbers_the_pictures_and_the_plan_and_goes_on(
    logged: tuple[Path, Path], metrics: Rows
) -> None:
    """Offline without a key. The two files hold one run: the same id, the second half's rows."""
    run_dir, _ = logged
    runs = offline_runs(run_dir)
    assert len(runs) == 2
    card = json.loads((run_dir / "card.json").read_text())
    started = [next(r.run for r in rows if r.WhichOneof("record_type") == "run") for rows in runs]
    assert {run.run_id for run in started} == {card["run_id"]}
    assert {run.project for run in started} == {"tests"}
    assert {run.display_name for run in started} == {"it's a name"}
    history: list[dict[str, Any]] = []
    config: dict[str, Any] = {}
    for rows in runs:
        for record in rows:
            kind = record.WhichOneof("record_type")
            if kind == "history":
                items = record.history.item
                history.append(
                    {i.key or "/".join(i.nested_key): json.loads(i.value_json) for i in items}
                )
            for update in [record.config] if kind == "config" else []:
                config |= {i.key: json.loads(i.value_json) for i in update.update}
    for name in ("train/loss", "val/loss_raw"):
        logged_rows = [(row["samples_seen"], row[name]) for row in history if name in row]
        expected = [(row["samples_seen"], row[name]) for row in metrics(run_dir) if name in row]
        assert logged_rows == [(n, pytest.approx(value)) for n, value in expected]
    pictures = [row for row in history if any(key.startswith("samples/ema") for key in row)]
    assert len(pictures) == 2
    assert len(list(run_dir.glob("wandb/offline-run-*/files/media/images/**/*.png"))) == 4
    assert config["seed"] == 0
    assert config["training"]["optim"]["lr"] == 0.002
    assert "32 samples = 4 steps" in config["plan"]


def test_wandb_mode_is_obeyed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """auto: online with a key, offline without; nothing is started until something is logged."""
    for mode, key, offline in (
        ("offline", "k" * 40, True),
        ("online", None, False),
        ("auto", None, True),
        ("auto", "k" * 40, False),
    ):
        monkeypatch.setattr("wandb.login", lambda key=key, **_: bool(key))
        settings = LoggerSettings(wandb=True, wandb_mode=mode, wandb_project="p")
        logger = build_loggers(settings, tmp_path, name="n", run_id="i", resume_from=0)[1]
        assert logger._offline is offline
        assert logger._wandb_init["mode"] == ("offline" if offline else "online")
        assert logger._wandb_init["resume"] == (None if offline else "allow")
        assert (logger._wandb_init["project"], logger._wandb_init["id"]) == ("p", "i")
