"""Does a disk that takes no checkpoint cost more than that checkpoint?"""

from __future__ import annotations

import errno
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ldm import app
from ldm.io import checkpoint as files
from ldm.training.callbacks.checkpointing import NotSavedError

SAVES = ("training.save_every=8", "resume=auto")


@pytest.fixture
def full_disk(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """full_disk(16, 24): the documents after so many samples do not fit."""
    original = files.write

    def fill(*samples: int) -> None:
        def write(document: dict[str, Any], path: Path) -> None:
            if files.samples_of(path) in samples:
                raise OSError(errno.ENOSPC, "No space left on device", str(path))
            original(document, path)

        monkeypatch.setattr(files, "write", write)

    return fill


def test_a_full_disk_is_said_and_tried_again(
    tiny_cfg: Callable[..., Any],
    tmp_path: Path,
    full_disk: Callable[..., None],
    caplog: pytest.LogCaptureFixture,
) -> None:
    full_disk(16, 24)
    assert app.train(tiny_cfg(tmp_path, *SAVES)) == 0
    assert [files.samples_of(p) for p in files.list_checkpoints(tmp_path / "checkpoints")] == [
        8,
        32,
    ]
    assert "after 16 samples: [Errno 28] No space left on device" in caplog.text
    assert "the newest is" in caplog.text
    assert "(2 failed so far)" in caplog.text


def test_at_the_end_it_is_an_error_and_the_older_one_goes_on(
    tiny_cfg: Callable[..., Any], tmp_path: Path, full_disk: Callable[..., None]
) -> None:
    full_disk(24, 32)
    with pytest.raises(
        NotSavedError, match=r"after 32 samples.*s000000016\.ckpt\. Free some space"
    ):
        app.train(tiny_cfg(tmp_path, *SAVES))
    assert (tmp_path / "checkpoints" / "last.ckpt").resolve().name == "s000000016.ckpt"
    full_disk()
    assert app.train(tiny_cfg(tmp_path, *SAVES)) == 0
    newest = files.latest_valid(tmp_path / "checkpoints")
    assert newest is not None
    assert newest.name == "s000000032.ckpt"


def test_a_link_that_cannot_be_made_is_no_reason_to_stop(
    tiny_cfg: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The document itself is there; resume=auto does not need the link."""
    original = files.point_last

    def point_last(path: Path) -> None:
        if files.samples_of(path) == 16:
            raise OSError(errno.ENOSPC, "No space left on device")
        original(path)

    monkeypatch.setattr(files, "point_last", point_last)
    assert app.train(tiny_cfg(tmp_path, *SAVES)) == 0
    assert (tmp_path / "checkpoints" / "last.ckpt").resolve().name == "s000000032.ckpt"
