"""Does the index find exactly the samples that webdataset would read, and their bytes?"""

from __future__ import annotations

import json
import logging
import os
import pickle
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import webdataset as wds

from ldm.data import table as tables
from ldm.data import tarwalk
from ldm.data.cache import ShardCache
from ldm.data.captions import Captions
from ldm.data.filters import parse_filter
from ldm.data.shards import build_index, expand, first_samples, read, split_validation

Write = Callable[..., Path]
LONG = "d" * 90 + "/" + "n" * 90  # needs a ustar prefix, or pax or GNU headers

ODD_KEYS = [
    "plain",
    "./dot/first",
    "a.b/c",
    "../../../etc/escape",
    "/absolute/key",
    "with space/é 猫",
    "back\\slash",
    "quote'\"",
]


def everything(shards: list[str]) -> list[tuple[str, dict[str, bytes]]]:
    index = build_index(shards)
    return [
        (index.key(shard, n), read(index, shard, n))
        for shard, size in enumerate(index.sizes)
        for n in range(size)
    ]


def by_webdataset(shards: list[str]) -> list[tuple[str, dict[str, bytes]]]:
    dataset = wds.DataPipeline(wds.SimpleShardList(shards), wds.tarfile_to_samples())
    return [
        (sample["__key__"], {k: v for k, v in sample.items() if not k.startswith("__")})
        for sample in dataset
    ]


def test_samples_are_those_of_webdataset(three_shards: list[str]) -> None:
    ours = everything(three_shards)
    assert ours == by_webdataset(three_shards)
    assert len(ours) == 37


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
@pytest.mark.parametrize("keys", [ODD_KEYS, [*ODD_KEYS[1:3], LONG, "after"]], ids=["odd", "long"])
def test_keys_and_formats(
    tmp_path: Path, write_tar: Write, png: Callable[..., bytes], form: int, keys: list[str]
) -> None:
    members = [
        (f"{key}.{ext}", data)
        for n, key in enumerate(keys)
        for ext, data in (("PNG", png(n)), ("txt", f"caption {n}".encode()), ("seg.png", b"x"))
    ]
    shard = str(write_tar(tmp_path / "k.tar", members, form=form))
    assert everything([shard]) == by_webdataset([shard])
    assert [key for key, _ in everything([shard])] == keys


def test_written_by_webdataset_itself(tmp_path: Path, png: Callable[..., bytes]) -> None:
    shard = str(tmp_path / "w.tar")
    with wds.TarWriter(shard) as writer:
        for n in range(4):
            writer.write({"__key__": f"k{n}", "png": png(n), "txt": f"caption {n}"})
    assert everything([shard]) == by_webdataset([shard])


def test_nothing_is_ever_extracted(
    tmp_path: Path, write_tar: Write, png: Callable[..., bytes]
) -> None:
    target = tmp_path / "victim"
    name = str(target)
    members = [(f"{name}.png", png()), (f"{name}.txt", b"x"), (f"../{target.name}2.txt", b"x")]
    everything([str(write_tar(tmp_path / "evil" / "e.tar", members))])
    assert not list(tmp_path.glob("victim*"))


def test_what_is_no_sample_is_passed_over(
    tmp_path: Path, write_tar: Write, png: Callable[..., bytes]
) -> None:
    members = [
        ("README", b"no extension"),
        ("dir/.hidden", b"no key"),
        ("__meta__.json", b"webdataset's own"),
        ("a.png", png()),
        ("a.txt", b"one"),
        ("._a.txt", b"a Mac's shadow"),
    ]
    assert [key for key, _ in everything([str(write_tar(tmp_path / "x.tar", members))])] == ["a"]


def test_links_and_folders_are_passed_over(tmp_path: Path, png: Callable[..., bytes]) -> None:
    source = tmp_path / "tree"
    source.mkdir()
    (source / "a.png").write_bytes(png())
    (source / "a.txt").write_text("one")
    (source / "b.png").symlink_to("/etc/passwd")
    with tarfile.open(tmp_path / "l.tar", "w") as archive:
        archive.add(source, "tree")
    found = everything([str(tmp_path / "l.tar")])
    assert [(key, sorted(members)) for key, members in found] == [("tree/a", ["png", "txt"])]


def test_base_256_sizes_are_read() -> None:
    assert tarwalk._number(b"\x80" + (9 << 30).to_bytes(11, "big"), 0) == 9 << 30


# -- the index file -----------------------------------------------------------------------------


def test_the_index_is_kept_beside_the_shard(
    three_shards: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    build_index(three_shards)
    assert all(Path(f"{shard}.index").is_file() for shard in three_shards)

    def refuse(path: Path) -> None:
        raise AssertionError(f"{path} is walked again")

    monkeypatch.setattr(tarwalk, "walk", refuse)
    assert len(build_index(three_shards)) == 37


def test_index_goes_to_the_cache_folder_when_the_shards_cannot_be_written(
    three_shards: list[str], cache_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Path(three_shards[0]).parent
    save = tables.save

    def read_only(table: tables.Table, path: Path) -> None:  # chmod does not stop root
        if path.parent == folder:
            raise PermissionError(path)
        save(table, path)

    monkeypatch.setattr(tables, "save", read_only)
    assert len(build_index(three_shards)) == 37
    assert not list(folder.glob("*.index"))
    assert len(list((cache_home / "ldm" / "index").glob("*.index"))) == 3
    monkeypatch.setattr(tarwalk, "walk", lambda path: 1 / 0)
    assert len(build_index(three_shards)) == 37


def test_a_changed_shard_is_indexed_again(tmp_path: Path, write_shard: Write) -> None:
    shard = write_shard(tmp_path / "a.tar", 3)
    before = build_index([str(shard)])
    read(before, 0, 0)
    write_shard(shard, 5, prefix="new")
    after = build_index([str(shard)])
    assert (len(before), len(after)) == (3, 5)
    assert read(after, 0, 4)["txt"] == b"caption new4"


def test_a_shard_that_changes_under_a_run_is_an_error(tmp_path: Path, write_shard: Write) -> None:
    shard = write_shard(tmp_path / "a.tar", 3)
    index = build_index([str(shard)])
    write_shard(shard, 5, prefix="new")
    with pytest.raises(OSError, match="changed after it was indexed"):
        read(index, 0, 0)


@pytest.mark.parametrize("damage", ["empty", "text", "cut", "outside", "flip"])
def test_a_damaged_index_is_made_again(three_shards: list[str], damage: str) -> None:
    build_index(three_shards)
    path = Path(f"{three_shards[0]}.index")
    data = path.read_bytes()
    if damage == "outside":
        table = tables.load(path, None)
        moved = np.array(table.offset) + 10**9
        tables.save(replace(table, offset=moved), path)
    else:
        path.write_bytes(
            {
                "empty": b"",
                "text": b"not an index",
                "cut": data[: len(data) // 2],
                "flip": data[:-30] + bytes(30),
            }[damage]
        )
    assert everything(three_shards) == by_webdataset(three_shards)


def test_the_index_pickles_small(three_shards: list[str]) -> None:
    index = build_index(three_shards)
    data = pickle.dumps(index)
    assert len(data) < 4000
    assert read(pickle.loads(data), 2, 18) == read(index, 2, 18)


# -- what cannot be used ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("drop", "said"),
    [
        ("txt", r"none of its 3 samples has a caption \(\.txt\); they have \.json, \.png"),
        ("png", r"none of its 3 samples has a picture \(\.jpg or .*\); they have \.json, \.txt"),
    ],
)
def test_a_shard_without_captions_or_pictures_is_an_error(
    tmp_path: Path, write_shard: Write, drop: str, said: str
) -> None:
    shard = write_shard(tmp_path / "a.tar", 3, extra=lambda n: {drop: b""})
    with pytest.raises(ValueError, match=said) as caught:
        build_index([str(shard)])
    assert str(shard) in str(caught.value)


def test_samples_without_a_caption_are_left_out_and_named(
    tmp_path: Path, write_shard: Write, caplog: pytest.LogCaptureFixture
) -> None:
    shard = write_shard(tmp_path / "a.tar", 6, extra=lambda n: {"txt": b""} if n in (2, 5) else {})
    with caplog.at_level(logging.WARNING):
        index = build_index([str(shard)])
    assert [index.key(0, n) for n in range(len(index))] == ["s000", "s001", "s003", "s004"]
    assert [(bad.key, bad.reason) for bad in index.dropped] == [
        ("s002", "no caption (.txt)"),
        ("s005", "no caption (.txt)"),
    ]
    assert "2 of 6 samples have no caption, first s002" in caplog.text
    assert len(build_index([str(shard)], captions=Captions(optional=True))) == 6


def test_captions_from_json(tmp_path: Path, write_shard: Write) -> None:
    def extra(n: int) -> dict[str, bytes]:
        return {"txt": b"", "json": json.dumps({"text": f"t{n}"}).encode()}

    shard = write_shard(tmp_path / "a.tar", 3, extra=extra)
    assert len(build_index([str(shard)], captions=Captions(key="text"))) == 3
    with pytest.raises(ValueError, match=r"no field 'caption'; it has text.*caption_key") as caught:
        build_index([str(shard)], captions=Captions(key="caption"))
    assert str(shard) in str(caught.value)


@pytest.mark.parametrize("cut", [5000, 5120, 5200, 6500])  # padding, boundary, header, data
def test_a_shard_that_is_cut_off_gives_what_is_whole(
    tmp_path: Path, write_shard: Write, caplog: pytest.LogCaptureFixture, cut: int
) -> None:
    shard = write_shard(tmp_path / "a.tar", 6)
    os.truncate(shard, cut)
    with caplog.at_level(logging.WARNING):
        index = build_index([str(shard)])
    assert 0 < len(index) < 6
    said = ("cut off", "ends inside a header")
    assert any(words in caplog.text for words in said)
    assert any(words in index.dropped[0].reason for words in said)
    for n in range(len(index)):
        assert len(read(index, 0, n)) >= 2


@pytest.mark.parametrize("data", [b"", b"hello" * 1000, b"\x1f\x8b" + b"z" * 2000])
def test_what_is_no_tar_is_an_error_that_names_it(tmp_path: Path, data: bytes) -> None:
    shard = tmp_path / "bad.tar"
    shard.write_bytes(data)
    with pytest.raises(ValueError, match="holds no samples") as caught:
        build_index([str(shard)])
    assert str(shard) in str(caught.value)


# -- filters and splits -------------------------------------------------------------------------


def test_filters_act_when_the_index_is_read(
    three_shards: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    rules = parse_filter({"number": ">=5, <9", "size": ">=12"})
    with caplog.at_level(logging.INFO):
        index = build_index(three_shards, rules=rules)
    kept = [
        json.loads(read(index, s, n)["json"])["number"]
        for s in range(3)
        for n in range(index.sizes[s])
    ]
    assert kept == [5, 6, 7, 8, 5, 6, 5, 6, 7, 8]
    assert "filter number >=5, <9: 10 kept, 27 dropped, 0 without it" in caplog.text
    assert "filter size >=12: 37 kept, 0 dropped, 0 without it" in caplog.text


def test_other_fields_are_added_to_an_index_that_exists(
    three_shards: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    build_index(three_shards, rules=parse_filter({"number": "<3"}))
    monkeypatch.setattr(tarwalk, "walk", lambda path: 1 / 0)  # the places are known already
    index = build_index(three_shards, rules=parse_filter({"width": "==12", "number": "<2"}))
    assert len(index) == 6


def test_a_filter_on_a_field_that_does_not_exist_is_an_error(three_shards: list[str]) -> None:
    with pytest.raises(ValueError, match=r"numbr: no sample has this.*height, number, width"):
        build_index(three_shards, rules=parse_filter({"numbr": 1}))


def test_filters_that_leave_nothing_are_an_error(three_shards: list[str]) -> None:
    with pytest.raises(ValueError, match=r"leave no sample: .*37 dropped"):
        build_index(three_shards, rules=parse_filter({"number": ">100"}))


@pytest.mark.parametrize("rules", [{}, {"number": ">=1"}])
def test_validation_split_takes_the_end_once(
    three_shards: list[str], rules: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    index = build_index(three_shards, rules=parse_filter(rules))

    def keys(part: object) -> list[str]:
        return [part.key(s, n) for s, size in enumerate(part.sizes) for n in range(size)]  # type: ignore[attr-defined]

    train, val = split_validation(index)
    assert len(val) == 1  # 1 % of 37, at least one
    assert keys(train) + keys(val) == keys(index)
    assert read(val, 2, 0)["txt"] == b"caption c18"


def test_validation_split_may_cross_shards(tmp_path: Path, write_shard: Write) -> None:
    paths = [str(write_shard(tmp_path / f"{p}.tar", 110, prefix=p)) for p in "ab"]
    last = str(write_shard(tmp_path / "c.tar", 1, prefix="c"))
    index = build_index([*paths, last])
    train, val = split_validation(index)
    assert (train.sizes, val.sizes) == ((110, 109, 0), (0, 1, 1))
    assert (val.key(1, 0), val.key(2, 0)) == ("b109", "c000")
    assert train.key(1, 108) == "b108"


def test_first_samples(three_shards: list[str]) -> None:
    index = first_samples(build_index(three_shards), 13)
    assert index.sizes == (11, 2, 0)
    assert first_samples(index, 1000).sizes == (11, 2, 0)


@pytest.mark.real_data
def test_real_shards() -> None:
    folder = Path(os.environ["LDM_REAL_DATA"]) / "emoji64"
    shards = expand(str(folder))
    index = build_index(shards, cache=ShardCache(folder=Path(os.environ["XDG_CACHE_HOME"])))
    assert index.sizes == (1000,) * 6 + (204,)
    assert read(index, 0, 0)["txt"].decode().endswith("style")


def test_as_many_tables_stay_in_memory_as_fit(
    three_shards: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    index = build_index(three_shards)
    sizes = [tables.load(path, None).nbytes for path in index.tables]
    loads: list[Path] = []

    def counted(path: Path, stamp: tables.Stamp | None) -> tables.Table:
        loads.append(path)
        return load(path, stamp)

    load = tables.load
    monkeypatch.setattr(tables, "load", counted)
    held = tables._Loaded(sizes[1] + sizes[2])
    for shard in (0, 1, 2, 2, 1, 0, 0):
        table = held(index.tables[shard], index.stamps[shard])
        assert len(table) == index.sizes[shard]
    assert loads == [index.tables[shard] for shard in (0, 1, 2, 0)]
    none = tables._Loaded(0)  # the one that is asked for is always there
    assert none(index.tables[0], index.stamps[0]) is none(index.tables[0], index.stamps[0])
