"""What does a run do when the kernel takes no more bytes of a checkpoint?"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from ldm.io import checkpoint as files

CHANGES = ("training.save_every=8", "training.keep_checkpoints=9", "resume=auto")


def samples_of(run_dir: Path) -> list[int]:
    return [files.samples_of(path) for path in files.list_checkpoints(run_dir / "checkpoints")]


def test_it_goes_on_and_tries_again(
    forked: Any, tiny_cfg: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    """A real limit of the kernel, met inside torch.save, whose own error would not say it."""
    assert forked(tiny_cfg(tmp_path, *CHANGES), kind="full_disk", samples=[16, 24]) == 0
    assert samples_of(tmp_path) == [8, 32]
    assert all(files.is_valid(p) for p in files.list_checkpoints(tmp_path / "checkpoints"))
    assert not list((tmp_path / "checkpoints").glob(".tmp-*"))
    text = forked.log.read_text()
    assert "no checkpoint could be written after 16 samples: [Errno 27] File too large" in text
    assert "Trying again at the next interval (2 failed so far)" in text


def test_at_its_end_it_is_an_error_and_the_older_one_goes_on(
    forked: Any,
    tiny_cfg: Callable[..., dict[str, Any]],
    tmp_path: Path,
    document: Callable[[Path], dict[str, Any]],
    differences: Callable[..., list[str]],
) -> None:
    cfg = tiny_cfg(tmp_path / "a", *CHANGES)
    assert forked(cfg, kind="full_disk", samples=[24, 32]) == 1
    assert "NotSavedError: no checkpoint could be written after 32" in forked.log.read_text()
    assert samples_of(tmp_path / "a") == [8, 16]
    assert forked(cfg) == forked(tiny_cfg(tmp_path / "b", *CHANGES)) == 0
    one, other = document(tmp_path / "a"), document(tmp_path / "b")
    assert differences(one["state_dict"], other["state_dict"]) == []


def test_two_ranks_do_so_too(broken_run: Callable[..., Any], tmp_path: Path) -> None:
    """Only the first rank writes; the second must not wait for it for ever."""
    two = ("training.trainer.devices=2", f"run_dir={tmp_path / 'run'}")
    ended = broken_run(*CHANGES, *two, kind="full_disk", samples=[16, 32])
    assert ended.returncode != 0
    assert "no checkpoint could be written after 16 samples" in ended.stderr
    assert "NotSavedError: no checkpoint could be written after 32" in ended.stderr
    assert samples_of(tmp_path / "run") == [8, 24]
