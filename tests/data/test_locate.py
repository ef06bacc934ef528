"""Does every way to name shards find them, and does a wrong one say what is near?"""

from __future__ import annotations

from pathlib import Path

import pytest

from ldm.data.locate import expand


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for n in range(3):
        (tmp_path / f"x-{n:03d}.tar").touch()
    (tmp_path / "notes.txt").touch()
    return tmp_path


def test_all_ways_to_name_local_shards(folder: Path) -> None:
    names = [str(folder / f"x-{n:03d}.tar") for n in range(3)]
    assert expand(str(folder)) == names
    assert expand(folder) == names
    assert expand(f"{folder}/") == names
    assert expand(f"file://{folder}") == names
    assert expand(f"{folder}/*.tar") == names
    assert expand(f"{folder}/x-00[01].tar") == names[:2]
    assert expand(f"{folder}/x-{{000..002}}.tar") == names
    assert expand(f"{folder}/x-{{000,002}}.tar") == [names[0], names[2]]
    assert expand([names[2], f"{folder}/x-{{000..001}}.tar"]) == [names[2], *names[:2]]
    assert expand(f"{names[0]}::{names[1]}") == names[:2]
    assert expand(names[1]) == [names[1]]


def test_urls_and_commands_are_expanded_but_not_looked_for() -> None:
    assert expand("https://host/a b/{00..01}.tar?key=1") == [
        "https://host/a b/00.tar?key=1",
        "https://host/a b/01.tar?key=1",
    ]
    assert expand("s3://bucket/{a,b}.tar") == ["s3://bucket/a.tar", "s3://bucket/b.tar"]
    assert expand("pipe:curl -s http://host/{0..1}.tar") == [
        "pipe:curl -s http://host/0.tar",
        "pipe:curl -s http://host/1.tar",
    ]


@pytest.mark.parametrize("name", ["a{0..1}b", "lr=0.1,x", "it's [1]", "é * 猫", "a?b"])
def test_odd_names_that_exist_are_taken_verbatim(tmp_path: Path, name: str) -> None:
    odd = tmp_path / name
    odd.mkdir()
    (odd / "s.tar").touch()
    assert expand(str(odd)) == [str(odd / "s.tar")]
    assert expand(str(odd / "s.tar")) == [str(odd / "s.tar")]


def test_home_is_expanded(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(folder))
    assert len(expand("~")) == 3
    assert expand("~/x-{000..000}.tar") == [str(folder / "x-000.tar")]


def test_missing_shards_are_one_error_that_names_what_is_near(folder: Path) -> None:
    with pytest.raises(FileNotFoundError) as caught:
        expand([f"{folder}/x-{{000..009}}.tar", f"{folder}/y-*.tar"])
    text = str(caught.value)
    assert "8 of 11 shards were not found" in text
    assert "x-003.tar" in text
    assert "has 3 *.tar: x-00" in text
    assert "make_shards.py" in text


@pytest.mark.parametrize(
    ("inside", "said"),
    [("", "holds 1 .txt and no *.tar"), ("sub/z.tar", "but {}/sub has")],
)
def test_a_folder_without_shards_says_what_it_holds(tmp_path: Path, inside: str, said: str) -> None:
    (tmp_path / "readme.txt").touch()
    if inside:
        (tmp_path / inside).parent.mkdir()
        (tmp_path / inside).touch()
    with pytest.raises(FileNotFoundError, match=r"\*\.tar") as caught:
        expand(str(tmp_path))
    assert said.format(tmp_path) in str(caught.value)


def test_a_missing_folder_names_its_neighbours(tmp_path: Path) -> None:
    (tmp_path / "emoji64").mkdir()
    with pytest.raises(FileNotFoundError, match="emoji64/"):
        expand(str(tmp_path / "emoji" / "*.tar"))


@pytest.mark.parametrize("spec", [[], "", "  ", [""]])
def test_nothing_named_is_an_error(spec: object) -> None:
    with pytest.raises(ValueError, match="names no shards"):
        expand(spec)  # type: ignore[arg-type]


def test_a_shard_named_twice_is_an_error(folder: Path) -> None:
    with pytest.raises(ValueError, match=r"x-001\.tar twice"):
        expand([str(folder), str(folder / "x-001.tar")])


@pytest.mark.parametrize("spec", ["x-{0..", "a/${NOT_SET_ANYWHERE}/b.tar"])
def test_broken_patterns_are_said_to_be_broken(spec: str) -> None:
    with pytest.raises((ValueError, FileNotFoundError)) as caught:
        expand(spec)
    assert spec in str(caught.value)
