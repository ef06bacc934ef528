"""Do the logged numbers say what happened, and does a run that has gone wrong stop?"""

from __future__ import annotations

import json
import re
import tarfile
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from ldm import app
from ldm.data.quarantine import TooManyBadSamplesError
from ldm.io import checkpoint as files
from ldm.training.base import TrainedModule
from ldm.training.callbacks.sampling import SampleGrid
from ldm.training.module import DiffusionModule
from ldm.types import Skipped

Rows = Callable[..., list[dict[str, float]]]


def test_the_loss_is_the_mean_of_the_micro_batches_since_the_last_row(
    tiny_run: Callable[..., Path], tmp_path: Path, metrics: Rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    losses: list[float] = []
    original = TrainedModule.training_step

    def watched(self: TrainedModule, batch: Any, batch_idx: int) -> Any:
        loss = original(self, batch, batch_idx)
        losses.append(loss.item())
        return loss

    monkeypatch.setattr(TrainedModule, "training_step", watched)
    rows = metrics(
        tiny_run(
            tmp_path, "training.micro_batch=4", "training.log_every=16", "training.max_samples=40"
        )
    )
    assert [row["samples_seen"] for row in rows] == [16, 32, 40]  # and the last step
    expected = [losses[0:4], losses[4:8], losses[8:10]]
    assert [row["train/loss"] for row in rows] == [
        pytest.approx(sum(part) / len(part), rel=1e-6) for part in expected
    ]
    assert [row["epoch"] for row in rows] == [pytest.approx(n / 96) for n in (16, 32, 40)]
    assert all(row["images_per_s"] > 0 and row["grad_norm"] > 0 for row in rows)
    assert all(row["captions_cut"] == row["skipped"] == 0 for row in rows)


def test_time_spent_on_pictures_and_checkpoints_is_not_training_time(
    tiny_run: Callable[..., Path], tmp_path: Path, metrics: Rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a clock by which a step takes 2 s, a grid 1000 s and a checkpoint 500 s."""
    now = [0.0]
    clock = SimpleNamespace(perf_counter=lambda: now[0])
    monkeypatch.setattr("ldm.training.base.time", clock)
    monkeypatch.setattr("ldm.training.callbacks.metrics.time", clock)

    def taking(seconds: float, original: Callable[..., Any] = lambda *_: None) -> Any:
        def run(*arguments: Any) -> Any:
            now[0] += seconds
            return original(*arguments)

        return run

    step = taking(2.0, TrainedModule.training_step)
    monkeypatch.setattr(TrainedModule, "training_step", lambda *a: step(*a))
    monkeypatch.setattr(SampleGrid, "run", taking(1000.0))
    monkeypatch.setattr(files, "write", taking(500.0, files.write))
    changes = ("training.sample_every=8", "training.save_every=8", "training.log_every=16")
    rows = metrics(tiny_run(tmp_path, *changes))
    assert [row["images_per_s"] for row in rows] == [4.0, 4.0]


@pytest.fixture
def broken_shards(train_shards: Path, tmp_path: Path) -> tuple[Path, list[str]]:
    """The training shards with three pictures that cannot be decoded, and their keys."""
    folder, broken = tmp_path / "broken", []
    folder.mkdir()
    for number, source in enumerate(sorted(train_shards.glob("*.tar"))):
        with tarfile.open(source) as old, tarfile.open(folder / source.name, "w") as new:
            for place, member in enumerate(old.getmembers()):
                data = old.extractfile(member).read()  # type: ignore[union-attr]
                if member.name.endswith(".png") and place < 9 and number == 0:
                    data = b"\x89PNG broken"
                    member.size = len(data)
                    broken.append(member.name.removesuffix(".png"))
                new.addfile(member, BytesIO(data))
    return folder, broken


def test_undecodable_pictures_are_skipped_counted_and_listed(
    tiny_run: Callable[..., Path],
    tmp_path: Path,
    metrics: Rows,
    broken_shards: tuple[Path, list[str]],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Each once, with shard and key; one epoch meets all three, every place is filled."""
    folder, broken = broken_shards
    assert len(broken) == 3
    run_dir = tiny_run(
        tmp_path / "run",
        f"data.train.shards={folder}",
        "training.max_samples=96",
        "training.save_every=null",
        "training.log_every=48",
    )
    listed = [json.loads(line) for line in (run_dir / "quarantine.jsonl").read_text().splitlines()]
    assert sorted(entry["key"] for entry in listed) == sorted(broken)
    assert all(entry["shard"].endswith("00000.tar") and entry["reason"] for entry in listed)
    assert metrics(run_dir)[-1]["skipped"] >= 3
    for key in broken:
        assert len(re.findall(rf"sample left out.*{key}", caplog.text)) == 1


def test_too_many_of_them_stop_the_run(
    tiny_cfg: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """data.max_bad_ratio; the first few never do."""
    original = DiffusionModule.training_step

    def bad(self: TrainedModule, batch: Any, batch_idx: int) -> Any:
        skipped = tuple(Skipped("x.tar", f"{batch_idx}-{k}", "broken") for k in range(8))
        object.__setattr__(batch, "skipped", skipped)
        return original(self, batch, batch_idx)

    monkeypatch.setattr(TrainedModule, "training_step", bad)
    with pytest.raises(TooManyBadSamplesError, match=r"max_bad_ratio=0\.01"):
        app.train(tiny_cfg(tmp_path / "a"))
    assert app.train(tiny_cfg(tmp_path / "b", "data.max_bad_ratio=1.0")) == 0


def test_a_loss_that_is_not_finite_stops_the_run_and_is_not_saved(
    tiny_cfg: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = DiffusionModule.batch_loss

    def diverging(self: DiffusionModule, batch: Any, number: int) -> dict[str, torch.Tensor]:
        loss = original(self, batch, number)["loss"]
        return {"loss": loss * float("nan") if number == 1 else loss}

    monkeypatch.setattr(DiffusionModule, "batch_loss", diverging)
    with pytest.raises(
        RuntimeError, match=r"the loss is nan after 16 samples.*training\.optim\.lr"
    ):
        app.train(tiny_cfg(tmp_path))
    assert not list((tmp_path / "checkpoints").glob("*.ckpt"))  # 16 would have been saved


def test_without_a_terminal_progress_is_a_line(
    tiny_run: Callable[..., Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    tiny_run(tmp_path)
    assert re.search(r"of 32 samples \(\d+ %\) · loss \d.* images/s · \d+ s left", caplog.text)


def test_on_a_terminal_progress_is_a_bar(
    tiny_run: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    tiny_run(tmp_path)
    shown = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", capsys.readouterr().err)
    assert "32/32" in shown
    assert re.search(r"loss \d\.\d+ · \d+ images/s", shown)
