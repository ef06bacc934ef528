"""From where does a run go on, and what stops it before the first step?"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ldm.io import checkpoint as files
from ldm.training.run_folder import (
    Start,
    find_start,
    is_main_process,
    run_id,
    write_folder,
)


def used_folder(folder: Path, *samples: int) -> Path:
    files.write_text(folder / "card.json", "{}")
    for n in samples:
        files.write({"samples": n}, files.checkpoint_path(folder / "checkpoints", n))
    return folder


def test_a_new_folder_starts(tmp_path: Path) -> None:
    (tmp_path / "made by hydra").mkdir()
    for folder in (tmp_path / "none", tmp_path / "made by hydra"):
        assert find_start(folder, None, None) == Start(None, 0)
        assert find_start(folder, "auto", None) == Start(None, 0)


def test_a_folder_in_use_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"holds a run already; resume=auto .* another run_dir"):
        find_start(used_folder(tmp_path), None, None)


@pytest.mark.parametrize("rank", ["LOCAL_RANK", "RANK"])
def test_the_other_processes_do_not_trip_over_the_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rank: str
) -> None:
    """By the time they look, it has written the card of this very run."""
    monkeypatch.setenv(rank, "1")
    assert find_start(used_folder(tmp_path), None, None) == Start(None, 0)


def test_auto_takes_the_newest_valid_checkpoint(tmp_path: Path) -> None:
    folder = used_folder(tmp_path, 64, 128)
    newest = folder / "checkpoints" / "s000000128.ckpt"
    assert find_start(folder, "auto", None) == Start(newest, 128)
    newest.write_bytes(b"")
    assert find_start(folder, "auto", None) == Start(newest.with_name("s000000064.ckpt"), 64)


def test_auto_says_when_there_is_none_yet(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    assert find_start(used_folder(tmp_path), "auto", None) == Start(None, 0)
    assert "no valid checkpoint" in caplog.text


def test_a_named_checkpoint_is_taken(tmp_path: Path) -> None:
    folder = used_folder(tmp_path, 64, 128) / "checkpoints"
    first, second = files.list_checkpoints(folder)
    files.point_last(second)
    assert find_start(tmp_path, str(first), None) == Start(first, 64)
    assert find_start(tmp_path, str(folder / "last.ckpt"), None) == Start(second, 128)


def test_a_named_checkpoint_that_is_unusable_is_an_error(tmp_path: Path) -> None:
    folder = used_folder(tmp_path, 64) / "checkpoints"
    (path,) = files.list_checkpoints(folder)
    with pytest.raises(ValueError, match=r"nowhere\.ckpt does not exist; give auto or a \.ckpt"):
        find_start(tmp_path, str(folder / "nowhere.ckpt"), None)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ValueError, match="it is damaged"):
        find_start(tmp_path, str(path), None)


def test_resume_and_init_from_contradict_each_other(tmp_path: Path) -> None:
    """But for resume=auto: the same command line starts a run and goes on with it."""
    folder = used_folder(tmp_path, 64) / "checkpoints"
    (path,) = files.list_checkpoints(folder)
    with pytest.raises(ValueError, match=r"init_from=tiny contradict each other.*give one of them"):
        find_start(tmp_path, str(path), "tiny")
    assert find_start(tmp_path / "new", "auto", "tiny") == Start(None, 0)


@pytest.mark.parametrize(
    ("environment", "main"),
    [
        ({}, True),
        ({"LOCAL_RANK": "0"}, True),
        ({"LOCAL_RANK": "1"}, False),
        ({"LOCAL_RANK": "0", "NODE_RANK": "1"}, False),
        ({"RANK": "0", "LOCAL_RANK": "0"}, True),
        ({"RANK": "8", "LOCAL_RANK": "0"}, False),  # torchrun, second machine
        ({"SLURM_PROCID": "3"}, False),
        ({"SLURM_PROCID": "0", "LOCAL_RANK": "1"}, False),
    ],
)
def test_one_process_writes(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], main: bool
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert is_main_process() is main


def test_the_folder_says_what_the_run_is(tmp_path: Path) -> None:
    write_folder(tmp_path, {"name": "é"}, "seed: 0\n", "the plan")
    assert json.loads((tmp_path / "card.json").read_text()) == {"name": "é"}
    assert (tmp_path / "config.yaml").read_text() == "seed: 0\n"
    assert (tmp_path / "plan.txt").read_text() == "the plan\n"


def test_a_run_keeps_its_id(finished_run: Path) -> None:
    newest = files.latest_valid(finished_run / "checkpoints")
    card = json.loads((finished_run / "card.json").read_text())
    assert run_id("whatever", newest) == card["run_id"]
    first, second = run_id("a b/c", None), run_id("a b/c", None)
    assert first != second
    assert first.startswith("a-b-c-")
