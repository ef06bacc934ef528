"""Are unusable samples counted, written down once, and in the end fatal?"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from ldm.data.quarantine import Quarantine, TooManyBadSamplesError
from ldm.types import Skipped

BAD = [Skipped("a.tar", f"k{n}", "the image cannot be decoded: cut off") for n in range(30)]


def test_each_sample_is_listed_once_and_counted_always(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "run" / "quarantine.jsonl"
    quarantine = Quarantine(path)
    with caplog.at_level(logging.WARNING):
        assert quarantine.add(BAD[:2]) == 2
        assert quarantine.add([BAD[1], Skipped("b.tar", "k1", "the caption is empty")]) == 2
    assert quarantine.count == 4
    again = Quarantine(path)  # after a restart
    again.add([BAD[0], BAD[2]])
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [(line["shard"], line["key"]) for line in lines] == [
        ("a.tar", "k0"),
        ("a.tar", "k1"),
        ("b.tar", "k1"),
        ("a.tar", "k2"),
    ]
    assert lines[0]["reason"] == BAD[0].reason
    assert caplog.text.count("a.tar k1") == 1
    assert "b.tar k1: the caption is empty" in caplog.text


def test_what_is_only_listed_does_not_count(tmp_path: Path) -> None:
    path = tmp_path / "quarantine.jsonl"
    quarantine = Quarantine(path, max_ratio=0.0)
    quarantine.list(BAD)
    quarantine.list(BAD)
    assert quarantine.count == 0
    quarantine.check(1)
    assert len(path.read_text().splitlines()) == 30


def test_ranks_that_write_one_file_list_a_sample_once(tmp_path: Path) -> None:
    path = tmp_path / "quarantine.jsonl"
    ranks = [Quarantine(path), Quarantine(path)]  # both begin with an empty file
    for quarantine in ranks:
        quarantine.list(BAD[:3])
        quarantine.add(BAD[2:5])
    keys = [json.loads(line)["key"] for line in path.read_text().splitlines()]
    assert keys == ["k0", "k1", "k2", "k3", "k4"]
    assert [quarantine.count for quarantine in ranks] == [3, 3]


def test_lines_wait_for_room(
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    full_disk: Callable[[int], AbstractContextManager[None]],
) -> None:
    path = tmp_path / "quarantine.jsonl"
    quarantine = Quarantine(path)
    quarantine.add(BAD[:2])
    before = path.read_bytes()
    with full_disk(len(before) + 5):
        assert quarantine.add(BAD[2:4]) == 2
        quarantine.add(BAD[4:5])
        assert path.read_bytes() == before  # not even the 5 bytes that fit
    assert caplog.text.count("kept in memory until there is room") == 1
    quarantine.add([])  # the next batch, with nothing wrong
    assert [json.loads(line)["key"] for line in path.read_text().splitlines()] == [
        f"k{n}" for n in range(5)
    ]
    assert quarantine.count == 5


def test_nothing_bad_writes_nothing(tmp_path: Path) -> None:
    quarantine = Quarantine(tmp_path / "q.jsonl")
    quarantine.add([])
    quarantine.check(0)
    assert not (tmp_path / "q.jsonl").exists()


def test_a_line_cut_by_a_crash_is_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "q.jsonl"
    Quarantine(path).add(BAD[:2])
    path.write_text(path.read_text()[:-20])
    quarantine = Quarantine(path)
    quarantine.add(BAD[:2])
    lines = path.read_text().splitlines()
    assert json.loads(lines[-1])["key"] == "k1"


def test_too_many_stop_the_run_and_say_why() -> None:
    quarantine = Quarantine(max_ratio=0.1)
    quarantine.add(BAD[:20])
    quarantine.check(200)
    with pytest.raises(TooManyBadSamplesError, match=r"20 of 199 .*0\.1: 20 × the image cannot"):
        quarantine.check(199)


def test_a_few_never_stop_a_run() -> None:
    quarantine = Quarantine(max_ratio=0.0)
    quarantine.add(BAD[:16])
    quarantine.check(16)
    quarantine.add(BAD[:1])
    with pytest.raises(TooManyBadSamplesError):
        quarantine.check(10**9)


def test_a_ratio_is_a_ratio() -> None:
    with pytest.raises(ValueError, match="max_bad_ratio"):
        Quarantine(max_ratio=5)
