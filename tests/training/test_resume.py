"""Is an interrupted and resumed run the uninterrupted one, bit for bit?"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from ldm import app
from ldm.app import fit
from ldm.io import checkpoint as files
from ldm.training.base import TrainedModule
from ldm.training.callbacks.checkpointing import RunCheckpoint

Document = dict[str, Any]
# everything that draws: augmentation, dropout layers, dropped captions, times, noise on the input
EVERYTHING = (
    "diffusion/times=stratified",
    "diffusion.offset_noise=0.1",
    "diffusion.input_perturbation=0.1",
    "data.crop=random",
    "data.flip=0.5",
    "data.max_zoom=1.3",
    "models.unet.dropout=0.1",
    "training.caption_dropout=0.5",
    "training.optim.shape=cosine",
    "training.optim.warmup=16",
    "training.max_samples=40",
    "training.save_every=16",
)
EXACT = (
    "state_dict",
    "ema",
    "optimizer_states",
    "lr_schedulers",
    "samples_seen",
    "global_step",
    "batch_size",
)


@contextmanager
def watched(
    monkeypatch: pytest.MonkeyPatch, at: int = -1, do: Callable[[], None] = lambda: None
) -> Iterator[list[tuple[str, ...]]]:
    """Notes the keys of every micro-batch; calls `do` before micro-batch number `at`."""
    seen: list[tuple[str, ...]] = []
    step = TrainedModule.training_step

    def training_step(self: TrainedModule, batch: Any, batch_idx: int) -> Any:
        if len(seen) == at:
            do()
        seen.append(batch.keys)
        return step(self, batch, batch_idx)

    with monkeypatch.context() as patch:
        patch.setattr(TrainedModule, "training_step", training_step)
        yield seen


class PowerCutError(Exception):
    pass


def power_cut() -> None:
    raise PowerCutError


@pytest.fixture(scope="module")
def straight(
    tmp_path_factory: pytest.TempPathFactory, tiny_cfg: Callable[..., Document]
) -> Callable[[int], tuple[Path, list[tuple[str, ...]]]]:
    """straight(accumulation): the uninterrupted run, and the keys of its micro-batches."""
    runs: dict[int, tuple[Path, list[tuple[str, ...]]]] = {}

    def run(accumulate: int) -> tuple[Path, list[tuple[str, ...]]]:
        if accumulate not in runs:
            run_dir = tmp_path_factory.mktemp("straight") / str(accumulate)
            # samples and validation in between must not be seen by the training
            changes = (f"training.micro_batch={8 // accumulate}", "training.sample_every=16")
            with pytest.MonkeyPatch.context() as patch, watched(patch) as seen:
                cfg = tiny_cfg(run_dir, *EVERYTHING, *changes, "training.val_every=24")
                assert app.train(cfg) == 0
            runs[accumulate] = (run_dir, seen)
        return runs[accumulate]

    return run


def assert_exact(one: Document, other: Document, differences: Callable[..., list[str]]) -> None:
    assert one.keys() == other.keys()
    for key in EXACT:
        assert differences(one[key], other[key]) == [], key


@pytest.mark.parametrize(("accumulate", "workers"), [(1, (0, 1)), (2, (1, 0))])
def test_interrupted_and_resumed_is_uninterrupted(
    tiny_cfg: Callable[..., Document],
    straight: Callable[[int], tuple[Path, list[tuple[str, ...]]]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    document: Callable[[Path], Document],
    metrics: Callable[[Path], list[dict[str, float]]],
    differences: Callable[..., list[str]],
    accumulate: int,
    workers: tuple[int, int],
) -> None:
    """Cut off in the fourth step, after the checkpoint of the second; with accumulation 2 in the
    middle of the step. The second half has another number of workers."""
    changes = [*EVERYTHING, f"training.micro_batch={8 // accumulate}"]
    first, second = (
        tiny_cfg(tmp_path, *changes, "resume=auto", f"data.num_workers={n}") for n in workers
    )
    cut_at = 3 * accumulate + accumulate - 1
    with watched(monkeypatch, cut_at, power_cut) as before, pytest.raises(PowerCutError):
        app.train(first)
    assert [p.name for p in files.list_checkpoints(tmp_path / "checkpoints")] == ["s000000016.ckpt"]
    assert [row["samples_seen"] for row in metrics(tmp_path)] == [8, 16, 24]  # 24 is lost work
    with watched(monkeypatch) as after:
        assert app.train(second) == 0

    run_dir, keys = straight(accumulate)
    assert len(keys) == 5 * accumulate
    assert before == keys[:cut_at]
    assert after == keys[2 * accumulate :]
    assert_exact(document(tmp_path), document(run_dir), differences)
    curves = [
        [
            (row["samples_seen"], row["train/loss"], row["lr"], row["grad_norm"])
            for row in metrics(folder)
            if "train/loss" in row
        ]
        for folder in (tmp_path, run_dir)
    ]
    assert [row[0] for row in curves[0]] == [8, 16, 24, 32, 40]  # every row once, none lost
    assert curves[0] == curves[1]


def test_accumulation_does_not_change_the_samples(
    straight: Callable[[int], tuple[Path, list[tuple[str, ...]]]],
) -> None:
    """The sequence of global batches is the same; a micro-batch is a part of one."""
    whole, parts = straight(1)[1], straight(2)[1]
    assert [a + b for a, b in zip(parts[::2], parts[1::2], strict=True)] == whole


def test_a_resumed_run_may_accumulate_otherwise(
    tiny_cfg: Callable[..., Document],
    straight: Callable[[int], tuple[Path, list[tuple[str, ...]]]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    document: Callable[[Path], Document],
) -> None:
    """Other hardware, same run: steps, samples and rate go on; weights up to summation order."""
    changes = [*EVERYTHING, "models.unet.dropout=0.0", "resume=auto"]
    changes.remove("models.unet.dropout=0.1")  # its masks are drawn per micro-batch
    with watched(monkeypatch, 3, power_cut), pytest.raises(PowerCutError):
        app.train(tiny_cfg(tmp_path, *changes))
    with watched(monkeypatch) as after:
        assert app.train(tiny_cfg(tmp_path, *changes, "training.micro_batch=2")) == 0
    keys = straight(1)[1][2:]
    assert [sum(after[k : k + 4], ()) for k in range(0, len(after), 4)] == keys
    elastic = document(tmp_path)
    assert (elastic["samples_seen"], elastic["global_step"]) == (40, 5)
    assert elastic["ema"]["steps"] == 5
    assert elastic["lr_schedulers"][0]["last_epoch"] == 5


def test_the_shorter_run_is_the_beginning_of_the_longer(
    tiny_run: Callable[..., Path],
    straight: Callable[[int], tuple[Path, list[tuple[str, ...]]]],
    tmp_path: Path,
    differences: Callable[..., list[str]],
) -> None:
    """No state but `samples_seen` decides what comes next: a run cut short by its length, with a
    rate that does not depend on the horizon."""
    constant = ("training.optim.shape=constant", "training.optim.warmup=0")
    changes = [c for c in EVERYTHING if "optim" not in c and "max_samples" not in c]
    for name, lengths in (("a", (16, 32)), ("b", (32,))):
        for length in lengths:
            tiny_run(
                tmp_path / name,
                *changes,
                *constant,
                f"training.max_samples={length}",
                "resume=auto",
            )
    newest = [files.latest_valid(tmp_path / name / "checkpoints") for name in "ab"]
    documents = [files.read(path) for path in newest if path]
    assert_exact(documents[0], documents[1], differences)


# -- signals --------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_saves_at_the_step_boundary_and_asks_to_be_started_again(
    tiny_cfg: Callable[..., Document],
    straight: Callable[[int], tuple[Path, list[tuple[str, ...]]]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    document: Callable[[Path], Document],
    differences: Callable[..., list[str]],
    number: signal.Signals,
) -> None:
    """It arrives in the middle of an accumulation, which is finished first."""
    changes = [*EVERYTHING, "training.micro_batch=4", "resume=auto"]
    handler = signal.getsignal(number)
    with watched(monkeypatch, 4, lambda: os.kill(os.getpid(), number)) as seen:
        assert app.train(tiny_cfg(tmp_path, *changes)) == fit.REQUEUE == 75
    assert len(seen) == 6
    assert document(tmp_path)["samples_seen"] == 24
    assert signal.getsignal(number) == handler  # the caller's handlers are back
    assert app.train(tiny_cfg(tmp_path, *changes)) == 0
    assert_exact(document(tmp_path), document(straight(2)[0]), differences)


@pytest.mark.slow
def test_sigterm_ends_the_process_with_code_75_and_it_goes_on(
    tmp_path: Path,
    tiny_line: Callable[..., list[str]],
    tiny_cfg: Callable[..., Document],
    document: Callable[[Path], Document],
) -> None:
    script = Path(__file__).parents[2] / "scripts" / "train.py"
    changes = (f"run_dir={tmp_path}", "resume=auto", "training.max_samples=1e6")
    process = subprocess.Popen([sys.executable, str(script), *tiny_line(*changes)])
    try:
        deadline = time.monotonic() + 300
        while not (tmp_path / "checkpoints" / "s000000016.ckpt").exists():
            assert time.monotonic() < deadline
            assert process.poll() is None
            time.sleep(0.2)
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=120) == 75
    finally:
        process.kill()
    seen = document(tmp_path)["samples_seen"]
    assert seen % 8 == 0
    cfg = tiny_cfg(tmp_path, "resume=auto", f"training.max_samples={seen + 8}")
    assert app.train(cfg) == 0
    assert document(tmp_path)["samples_seen"] == seen + 8


# -- when is saved ---------------------------------------------------------------------------------


def test_nothing_is_saved_in_the_middle_of_an_accumulation(
    tiny_run: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also not by the first micro-batch after a resume, where Lightning's own callback does."""
    saved: list[tuple[int, bool, int]] = []
    save = RunCheckpoint.save

    def watched_save(self: RunCheckpoint, trainer: Any, module: TrainedModule) -> None:
        half = trainer.fit_loop._should_accumulate()
        saved.append((module.samples_seen, half, trainer.global_step))
        save(self, trainer, module)

    monkeypatch.setattr(RunCheckpoint, "save", watched_save)
    changes = ("training.micro_batch=2", "training.save_every=8", "resume=auto")
    tiny_run(tmp_path, *changes, "training.max_samples=16")
    tiny_run(tmp_path, *changes, "training.max_samples=32")
    assert saved == [(n, False, n // 8) for n in (8, 16, 24, 32)]


def test_intervals_are_samples_and_the_end_is_always_saved(
    tiny_run: Callable[..., Path], tmp_path: Path, document: Callable[[Path], Document]
) -> None:
    """20 is crossed by the step to 24; 36 is reached by the step to 40."""
    tiny_run(
        tmp_path,
        "training.max_samples=36",
        "training.save_every=20",
        "training.keep_checkpoints=9",
    )
    folder = tmp_path / "checkpoints"
    assert [files.samples_of(p) for p in files.list_checkpoints(folder)] == [24, 40]
    assert os.readlink(folder / "last.ckpt") == "s000000040.ckpt"


def test_without_an_interval_only_the_end_is_saved_and_k_are_kept(
    tiny_run: Callable[..., Path], tmp_path: Path
) -> None:
    tiny_run(tmp_path / "a", "training.save_every=null")
    tiny_run(tmp_path / "b", "training.save_every=8", "training.keep_checkpoints=3")
    names = [
        [files.samples_of(p) for p in files.list_checkpoints(tmp_path / run / "checkpoints")]
        for run in "ab"
    ]
    assert names == [[32], [16, 24, 32]]


# -- what is resumed -------------------------------------------------------------------------------


def test_auto_goes_back_over_a_damaged_file_and_replaces_it(
    tiny_cfg: Callable[..., Document],
    run_copy: Path,
    finished_run: Path,
    document: Callable[[Path], Document],
    differences: Callable[..., list[str]],
    caplog: pytest.LogCaptureFixture,
) -> None:
    newest = run_copy / "checkpoints" / "s000000032.ckpt"
    data = bytearray(newest.read_bytes())
    data[len(data) // 2] ^= 1
    newest.write_bytes(data)
    assert app.train(tiny_cfg(run_copy, "resume=auto")) == 0
    assert "s000000032.ckpt is damaged" in caplog.text
    assert files.is_valid(newest)
    assert newest.with_name("s000000032.ckpt.damaged").read_bytes() == data
    assert_exact(document(run_copy), document(finished_run), differences)


def test_going_on_from_an_older_checkpoint_keeps_what_it_writes(
    tiny_cfg: Callable[..., Document], run_copy: Path
) -> None:
    """Two newer ones are there already; rotation must not take the one just written."""
    folder = run_copy / "checkpoints"
    cfg = tiny_cfg(run_copy, f"resume={folder / 's000000016.ckpt'}", "training.save_every=8")
    cfg["training"]["keep_checkpoints"] = 1
    assert app.train(cfg) == 0
    assert files.latest_valid(folder) == folder / "s000000032.ckpt"
    assert (folder / "last.ckpt").resolve().name == "s000000032.ckpt"


def test_a_finished_run_ends_at_once(
    tiny_cfg: Callable[..., Document],
    finished_run: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO")
    before = {p: p.stat().st_mtime_ns for p in finished_run.rglob("*") if p.is_file()}
    monkeypatch.setattr(fit, "_fit", lambda *_: pytest.fail("a finished run trained on"))
    assert app.train(tiny_cfg(finished_run, "resume=auto")) == 0
    assert "is finished: 32 samples seen" in caplog.text
    assert {p: p.stat().st_mtime_ns for p in finished_run.rglob("*") if p.is_file()} == before


def test_a_finished_run_that_was_killed_too_early_is_tidied(
    tiny_cfg: Callable[..., Document], run_copy: Path
) -> None:
    """After its last checkpoint, before last.ckpt was swapped to it."""
    folder = run_copy / "checkpoints"
    files.point_last(folder / "s000000016.ckpt")
    (folder / ".tmp-last").symlink_to("s000000032.ckpt")
    assert app.train(tiny_cfg(run_copy, "resume=auto")) == 0
    assert os.readlink(folder / "last.ckpt") == "s000000032.ckpt"
    assert not list(folder.glob(".tmp-*"))
    assert not (run_copy / "run.lock").exists()


# -- what a checkpoint holds -----------------------------------------------------------------------


def test_a_checkpoint_holds_what_is_trained_and_nothing_frozen(
    finished_run: Path, document: Callable[[Path], Document]
) -> None:
    newest = document(finished_run)
    assert all(name.startswith("unet.") for name in newest["state_dict"])
    assert newest["ema"]["shadows"].keys() == newest["state_dict"].keys()
    assert all(v.dtype.is_floating_point for v in newest["ema"]["shadows"].values())
    path = finished_run / "checkpoints" / "s000000032.ckpt"
    weights = sum(v.numel() for v in newest["state_dict"].values())
    assert path.stat().st_size < 4 * 4 * weights * 1.1  # weights, two moments, EMA; no VAE, no CLIP
    assert not re.search(rb"post_quant_conv|token_embedding", path.read_bytes())


def test_a_foreign_object_stops_the_save_and_not_the_resume(
    tiny_cfg: Callable[..., Document], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Found when it is written, with its place; the run folder holds nothing half-written."""
    original = TrainedModule.on_save_checkpoint

    def with_a_path(self: TrainedModule, checkpoint: Document) -> None:
        original(self, checkpoint)
        checkpoint["mine"] = {"where": [Path("x")]}

    monkeypatch.setattr(TrainedModule, "on_save_checkpoint", with_a_path)
    with pytest.raises(TypeError, match=r"checkpoint\['mine'\]\['where'\]\[0\] is a pathlib"):
        app.train(tiny_cfg(tmp_path))
    assert list((tmp_path / "checkpoints").iterdir()) == []


def test_leftovers_of_a_killed_run_are_removed(
    tiny_cfg: Callable[..., Document], run_copy: Path
) -> None:
    (run_copy / "checkpoints" / ".tmp-s000000040.ckpt").write_bytes(b"half")
    assert app.train(tiny_cfg(run_copy, "resume=auto", "training.max_samples=40")) == 0
    assert not list((run_copy / "checkpoints").glob(".tmp*"))
