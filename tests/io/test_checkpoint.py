"""Can a checkpoint be lost, overwritten, or damaged without being noticed?"""

from __future__ import annotations

import os
from collections import Counter, OrderedDict, defaultdict, deque
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ldm.io import checkpoint as files

GOOD: dict[str, Any] = {
    "state_dict": OrderedDict(weight=torch.arange(6.0).reshape(2, 3)),
    "parameter": torch.nn.Parameter(torch.ones(2)),
    "loops": {"done": 3, "ratio": 0.5, "name": "é", "none": None, "flags": [True, (1, 2)]},
    "dtype": torch.float32,
    "device": torch.device("cpu"),
    "size": torch.Size([1, 2]),
    "large": 1 << 80,
    "bytes": b"\x00",
    "set": {1, 2},
}


@dataclass
class Point:
    x: int = 0


BAD = [
    Path("x"),
    np.float64(1.0),
    np.zeros(2),
    defaultdict(int),
    deque([1]),
    frozenset([1]),
    slice(1),
    Point(),
    partial(print),
    Counter(a=1),
    range(3),
]


def test_what_is_written_is_read_with_weights_only(tmp_path: Path) -> None:
    path = tmp_path / "checkpoints" / "s000000064.ckpt"
    files.write(GOOD, path)
    for got in (files.read(path), torch.load(path, weights_only=True)):
        assert got.keys() == GOOD.keys()
        assert torch.equal(got["state_dict"]["weight"], GOOD["state_dict"]["weight"])
        assert {k: got[k] for k in ("loops", "large", "set", "dtype")} == {
            k: GOOD[k] for k in ("loops", "large", "set", "dtype")
        }
    assert files.is_valid(path)


@pytest.mark.parametrize("value", BAD, ids=lambda v: type(v).__name__)
def test_what_resume_could_not_read_is_refused_with_its_path(tmp_path: Path, value: object) -> None:
    path = tmp_path / "s000000001.ckpt"
    document = {**GOOD, "callbacks": {"mine": [1, (value,)]}}
    with pytest.raises(TypeError, match=r"checkpoint\['callbacks'\]\['mine'\]\[1\]\[0\]") as error:
        files.write(document, path)
    assert type(value).__qualname__ in str(error.value)
    assert list(tmp_path.iterdir()) == []


def test_a_key_that_resume_could_not_read_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match=r"checkpoint\['x'\]: key .* is a int64"):
        files.write({"x": {np.int64(1): 1}}, tmp_path / "s000000001.ckpt")


def test_the_refused_kinds_are_those_that_weights_only_refuses(tmp_path: Path) -> None:
    """So the list is neither too long nor too short; Counter is allowed by torch, not by us."""
    for number, value in enumerate(v for v in BAD if not isinstance(v, Counter)):
        path = tmp_path / f"{number}.pt"
        torch.save({"x": value}, path)
        with pytest.raises(Exception, match=r"(?i)weights"):
            torch.load(path, weights_only=True)


def test_a_checkpoint_is_never_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "s000000001.ckpt"
    files.write({"a": 1}, path)
    before = path.read_bytes()
    with pytest.raises(FileExistsError, match="never overwritten"):
        files.write({"a": 2}, path)
    assert path.read_bytes() == before


@pytest.mark.parametrize("where", [0.1, 0.5, 0.9])
def test_one_flipped_byte_is_noticed(tmp_path: Path, where: float) -> None:
    path = tmp_path / "s000000001.ckpt"
    files.write({"weights": torch.zeros(1000)}, path)
    data = bytearray(path.read_bytes())
    data[int(where * len(data))] ^= 1
    path.write_bytes(data)
    assert not files.is_valid(path)


def test_a_flipped_byte_loads_without_any_error(tmp_path: Path) -> None:
    """Why there are hashes at all."""
    path = tmp_path / "s000000001.ckpt"
    files.write({"weights": torch.zeros(1000)}, path)
    data = bytearray(path.read_bytes())
    data[data.find(bytes(2000)) + 1000] = 1
    path.write_bytes(data)
    assert files.read(path)["weights"].any()


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", None], ids=["empty", "text", "cut"])
def test_an_unreadable_file_is_an_error_that_names_it(
    tmp_path: Path, content: bytes | None
) -> None:
    path = tmp_path / "s000000001.ckpt"
    files.write({"weights": torch.zeros(1000)}, path)
    path.write_bytes(path.read_bytes()[:1000] if content is None else content)
    assert not files.is_valid(path)
    with pytest.raises(ValueError, match=r"s000000001\.ckpt .*is not a readable checkpoint"):
        files.read(path)


def test_a_missing_or_torn_manifest_makes_a_file_invalid(tmp_path: Path) -> None:
    path = tmp_path / "s000000001.ckpt"
    files.write({"a": 1}, path)
    path.with_suffix(".json").write_text("{")
    assert not files.is_valid(path)
    path.with_suffix(".json").unlink()
    assert not files.is_valid(path)
    assert not files.is_valid(tmp_path / "s000000002.ckpt")


def test_a_file_that_could_not_be_written_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = tmp_path / "s000000001.ckpt"
    files.write({"a": 1}, old)
    before = sorted(p.name for p in tmp_path.iterdir())

    def full(document: object, file: Any) -> None:
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OSError, match="No space"):
        files.write({"a": 2}, tmp_path / "s000000002.ckpt")
    assert sorted(p.name for p in tmp_path.iterdir()) == before
    assert files.latest_valid(tmp_path) == old


def test_the_manifest_is_in_place_before_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A kill between the two renames must not leave a checkpoint that nothing vouches for."""
    order: list[str] = []
    replace = os.replace

    def watched(source: Path, target: Path) -> None:
        order.append(target.name)
        replace(source, target)

    monkeypatch.setattr(os, "replace", watched)
    files.write({"a": 1}, tmp_path / "s000000001.ckpt")
    assert order == ["s000000001.json", "s000000001.ckpt"]


def test_leftovers_of_a_killed_writer_are_removed(tmp_path: Path) -> None:
    files.write({"a": 1}, tmp_path / "s000000001.ckpt")
    (tmp_path / ".tmp-s000000002.ckpt").write_bytes(b"half")
    files.clean_stale(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["s000000001.ckpt", "s000000001.json"]


def saved(folder: Path, *samples: int) -> list[Path]:
    paths = [files.checkpoint_path(folder, n) for n in samples]
    for path in paths:
        files.write({"samples": files.samples_of(path)}, path)
    return paths


def test_latest_valid_walks_back_over_damage(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    old, middle, new = saved(tmp_path, 5, 900, 1000)
    assert files.latest_valid(tmp_path) == new
    new.write_bytes(new.read_bytes()[:-1])
    assert files.latest_valid(tmp_path) == middle
    assert new.name in caplog.text
    middle.with_suffix(".json").unlink()
    assert files.latest_valid(tmp_path) == old
    old.unlink()
    assert files.latest_valid(tmp_path) is None
    assert files.latest_valid(tmp_path / "nowhere") is None


def test_checkpoints_are_ordered_by_samples_not_by_name(tmp_path: Path) -> None:
    paths = saved(tmp_path, 10**10, 999_999_999, 7)
    (tmp_path / "sabc.ckpt").touch()
    assert files.list_checkpoints(tmp_path) == paths[::-1]


def test_rotation_keeps_the_newest(tmp_path: Path) -> None:
    a, b, c, d = saved(tmp_path, 1, 2, 3, 4)
    assert files.rotate(tmp_path, 2, protect=frozenset([a.name])) == [b]
    assert files.list_checkpoints(tmp_path) == [a, c, d]
    assert sorted(tmp_path.glob("*.json")) == [p.with_suffix(".json") for p in (a, c, d)]
    assert files.rotate(tmp_path, 10) == []


def test_last_is_a_relative_link_to_the_newest(tmp_path: Path) -> None:
    folder = tmp_path / "one"
    old, new = saved(folder, 1, 2)
    files.point_last(old)
    files.point_last(new)
    folder.rename(tmp_path / "moved")
    link = tmp_path / "moved" / "last.ckpt"
    assert files.read(link) == {"samples": 2}
    assert os.readlink(link) == new.name
    assert not list((tmp_path / "moved").glob(".tmp*"))


def test_a_name_says_the_samples() -> None:
    assert files.samples_of(files.checkpoint_path(Path("x"), 12_800)) == 12_800
    assert files.checkpoint_path(Path("x"), 12_800).name == "s000012800.ckpt"
    with pytest.raises(ValueError, match=r"last\.ckpt is not named like s000012800\.ckpt"):
        files.samples_of(Path("last.ckpt"))


def test_equal_weights_have_one_name_and_others_another() -> None:
    tensors = {"a": torch.tensor([1.0, 2.0]), "b": torch.ones(2, 2)}
    name = files.tensors_hash(tensors)
    assert files.tensors_hash(dict(reversed(tensors.items()))) == name
    assert files.tensors_hash({k: v.half() for k, v in tensors.items()}) == name
    assert (
        files.tensors_hash(
            {k: v.t() for k, v in tensors.items() if v.ndim > 1} | {"a": tensors["a"]}
        )
        == name
    )
    others = [
        {**tensors, "a": torch.tensor([1.0, 2.0000002])},
        {"a2": tensors["a"], "b": tensors["b"]},
        {**tensors, "b": torch.ones(4)},
        {"a": tensors["a"]},
    ]
    assert name not in {files.tensors_hash(other) for other in others}


def test_a_card_says_its_format(tmp_path: Path) -> None:
    path = tmp_path / "card.json"
    files.write_text(path, '{"format": "ldm-card/1", "task": "vae"}')
    assert files.read_card(path)["task"] == "vae"
    for text, came in (('{"format": "ldm-card/9"}', "ldm-card/9"), ("[1]", "list"), ("{", "Expec")):
        files.write_text(path, text)
        with pytest.raises(ValueError, match=came):
            files.read_card(path)
