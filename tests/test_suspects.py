"""Does a search for suspects find what was planted, list it, and go on where it ended?"""

from __future__ import annotations

import csv
import io
import json
import shutil
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image

from ldm import app
from ldm.app.suspects import run as runs
from ldm.app.suspects.losses import Meter
from ldm.app.suspects.samples import check_plain
from ldm.cli import ConfigError
from ldm.data.make.sample import LeftOut, Plain, Sample
from ldm.data.make.shapes import ShapesSource
from ldm.data.make.writer import ShardWriter

Config = dict[str, Any]
Search = Callable[..., Path]
COUNT, WRONG, COPIED = 60, (7, 23, 41), (3, 12, 30, 50)
SMALL = ("samples=14", "bins=2", "draws=1", "others=2", "tried=2", "device=cpu", "shown=4")


class Planted:
    """Drawn shapes, some with the caption of another, then copies of some, one of them misnamed."""

    def __init__(self) -> None:
        self.shapes = ShapesSource(count=COUNT)

    def __len__(self) -> int:
        return COUNT + len(COPIED)

    def items(self, start: int = 0) -> Iterator[Sample | LeftOut]:
        drawn = [item for item in self.shapes.items() if isinstance(item, Sample)]
        turned = dict(zip(WRONG, (*WRONG[1:], WRONG[0]), strict=True))
        for number, item in enumerate(drawn):
            caption = drawn[turned.get(number, number)].caption
            yield Sample(f"{number:03d}", item.image, caption)
        for place, number in enumerate(COPIED):
            caption = drawn[number].caption if place else "a large purple moon"
            yield Sample(f"copy-{number:03d}", recoded(drawn[number].image), caption)

    def spec(self) -> dict[str, Plain]:
        return {"source": "planted"}


def recoded(picture: bytes | Image.Image) -> Image.Image:
    """Larger and smaller again, through a JPEG."""
    assert isinstance(picture, Image.Image)
    held = io.BytesIO()
    picture.resize((64, 64), Image.Resampling.BICUBIC).save(held, "JPEG", quality=90)
    return Image.open(held).convert("RGB").resize(picture.size, Image.Resampling.LANCZOS)


def rows_of(out: Path) -> list[dict[str, str]]:
    with (out / "suspects.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def lines_of(path: Path) -> list[Config]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def search(
    composed: Callable[..., Config], finished_run: Path, tmp_path_factory: pytest.TempPathFactory
) -> Search:
    """search("key=value", …, out=…): the folder of a small search in the finished run's shards."""

    def run(*changes: str, out: Path | None = None) -> Path:
        out = out or tmp_path_factory.mktemp("suspects") / "found"
        line = {part.partition("=")[0]: part for part in (*SMALL, *changes)}
        line.setdefault("checkpoint", f"checkpoint={finished_run}")
        cfg = composed(*line.values(), f"out={out}", config="suspects")
        assert app.suspects(cfg) == 0
        return out

    return run


@pytest.fixture(scope="module")
def found(search: Search) -> Path:
    """A finished search; only to be read."""
    return search()


# -- what it finds --------------------------------------------------------------------------------


@pytest.mark.slow
def test_wrong_captions_and_copies_are_found(search: Search, tmp_path: Path) -> None:
    """The packaged model among 64 pictures: wrong captions come first, copies are all found."""
    ShardWriter(out=tmp_path / "shards", progress=False).write(Planted())
    out = search(
        "checkpoint=tiny",
        f"data.shards={tmp_path / 'shards'}",
        "samples=null",
        "tried=30",
        out=tmp_path / "o",
    )
    rows = rows_of(out)
    assert len(rows) == COUNT + len(COPIED)
    planted = {f"{number:03d}" for number in WRONG} | {f"copy-{COPIED[0]:03d}"}
    first = [row["key"] for row in rows[: 2 * len(planted)]]
    among = sum(any(key.endswith(name) for key in first) for name in planted)
    assert among >= 0.8 * len(planted)
    true = {
        f"-{number:03d}": set(item.caption.split())
        for number, item in enumerate(ShapesSource(count=COUNT).items())
        if isinstance(item, Sample) and number in WRONG
    }
    for row in rows:
        if row["key"][-4:] in true and "copy" not in row["key"]:
            # "a", and the right colour, shape or size
            assert len(true[row["key"][-4:]] & set(row["nearest_caption"].split())) >= 2
    groups = {row["key"].partition("-")[2]: row["copy_of"] or row["key"] for row in rows}
    for number in COPIED:
        assert groups[f"{number:03d}"] == groups[f"copy-{number:03d}"]
    excluded = {line["key"]: line["reason"] for line in lines_of(out / "exclude.jsonl")}
    (misnamed,) = (why for key, why in excluded.items() if key.endswith(f"copy-{COPIED[0]:03d}"))
    assert "mislabelled" in misnamed
    assert "with another caption" in misnamed
    assert len(excluded) < len(rows) / 3


# -- what it writes -------------------------------------------------------------------------------


def test_the_files_say_what_they_promise(found: Path, train_shards: Path) -> None:
    rows = rows_of(found)
    assert len(rows) == 14
    assert [float(row["fit_z"]) for row in rows] == sorted(float(row["fit_z"]) for row in rows)
    shards = {str(path) for path in train_shards.glob("*.tar")}
    assert {row["shard"] for row in rows} <= shards
    assert {row["share"] for row in rows} <= {"0.3333", "0.6667", "1.0"}
    for line in lines_of(found / "suspects.jsonl"):
        assert line["kinds"]
        assert {name: len(curve) for name, curve in line["loss_by_bin"].items()} == {
            "own": 2,
            "none": 2,
            "others": 2,
        }
    page = (found / "suspects.html").read_text(encoding="utf-8")
    for title in ("Summary", "Captions that do not fit", "Copies", "Hard", "Too easy"):
        assert title in page
    assert "http://" not in page.replace("http://www.w3.org", "")


# -- again ----------------------------------------------------------------------------------------


def test_it_goes_on_where_it_ended(
    search: Search, found: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ended after five samples and in the middle of a line: measured once, the same numbers."""
    out = Path(shutil.copytree(found, tmp_path / "cut"))
    whole = (found / "samples-0.jsonl").read_bytes().splitlines(keepends=True)
    (out / "samples-0.jsonl").write_bytes(b"".join(whole[:5]) + whole[5][:40])
    measured: list[int] = []
    explain = Meter.explain

    def counted(self: Meter, number: int, picture: Image.Image, captions: list[str]) -> Any:
        measured.append(number)
        return explain(self, number, picture, captions)

    monkeypatch.setattr(Meter, "explain", counted)
    search(out=out)
    assert len(measured) == 14 - 5
    for name in ("suspects.csv", "suspects.jsonl", "exclude.jsonl"):
        assert (out / name).read_bytes() == (found / name).read_bytes()
    for _ in range(2):  # judging anew measures only what is named, and that once
        search("z=0.5", out=out)
        assert len(measured) == 14 - 5 + 4
    assert len(lines_of(out / "suspects.jsonl")) > len(lines_of(found / "suspects.jsonl"))


def test_another_protocol_in_the_same_folder_is_an_error(search: Search, found: Path) -> None:
    with pytest.raises(ConfigError, match="another protocol") as raised:
        search("bins=3", "others=1", "samples=13", "weights=raw", out=found)
    for part in ("bins 2, now 3", "others 2, now 1", "samples 14, now 13", "now 'raw'"):
        assert part in str(raised.value)


def test_it_does_not_depend_on_how_rows_are_batched(search: Search, found: Path) -> None:
    batched = rows_of(search("batch_size=3"))
    for one, other in zip(rows_of(found), batched, strict=True):
        assert one["key"] == other["key"]
        assert float(one["fit"]) == pytest.approx(float(other["fit"]), abs=2e-4)


@pytest.mark.slow
def test_two_processes_find_the_same(
    script: Callable[..., Any], found: Path, finished_run: Path, tmp_path: Path
) -> None:
    done = script(
        "suspects",
        *(f"checkpoint={finished_run}", *SMALL, f"out={tmp_path / 'two'}", "devices=2"),
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "two" / "samples-1.jsonl").is_file()
    for one, other in zip(rows_of(found), rows_of(tmp_path / "two"), strict=True):
        assert one["key"] == other["key"]
        assert float(one["fit"]) == pytest.approx(float(other["fit"]), abs=2e-4)


# -- bad input ------------------------------------------------------------------------------------


def test_all_that_is_wrong_comes_at_once(composed: Callable[..., Config]) -> None:
    cfg = composed("bins=0", "z=0", "weights=both", "near=-1", config="suspects")
    with pytest.raises(ConfigError) as raised:
        app.suspects(cfg)
    for part in ("bins=0", "z=0", "weights='both'", "near=-1"):
        assert part in str(raised.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("binss=3", "did you mean 'bins'"),
        ("data.train.shards=x", "data.train is unknown; known here: caption_key, shards"),
        ("samples=many", "samples='many'"),
    ],
)
def test_unknown_keys_and_types(composed: Callable[..., Config], change: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        app.suspects(composed(change, config="suspects"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("checkpoint=tiny", "12 of 12 shards were not found"),
        ("data.shards=/nowhere", "1 of 1 shards were not found"),
        ("samples=4", "4 pictures are too few"),
        ("others=90", "different captions"),
    ],
)
def test_what_cannot_be_searched_says_what_to_give(
    search: Search, change: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # where the packaged model's shards are not
    with pytest.raises(ConfigError, match=message):
        search(change)


def test_a_run_folder_does_not_make_us_run_programs() -> None:
    """The card's shards may come from anywhere."""
    for shard in ("pipe:touch x", "gs://bucket/a.tar", "http://x/a.tar::pipe:y"):
        with pytest.raises(ValueError, match="which a program reads"):
            check_plain([shard], "run")
    check_plain(["/data/a.tar", "https://x/a.tar"], "run")


def test_corrupt_pictures_are_counted_and_shards_stay_as_they_are(
    search: Search, train_shards: Path, tmp_path: Path
) -> None:
    source = sorted(train_shards.glob("*.tar"))[0]
    (tmp_path / "data").mkdir()
    left = 2
    with tarfile.open(source) as old, tarfile.open(tmp_path / "data" / "a.tar", "w") as new:
        for info in old.getmembers()[:42]:  # 14 samples
            data = old.extractfile(info)
            assert data is not None
            if info.name.endswith(".png") and left:
                info.size, left = 40, left - 1
            new.addfile(info, data)
    before = (tmp_path / "data" / "a.tar").read_bytes()
    out = search(f"data.shards={tmp_path / 'data'}", "samples=null", "bins=1", "others=1")
    assert (tmp_path / "data" / "a.tar").read_bytes() == before
    lines = lines_of(out / "samples-0.jsonl")
    assert [line["unusable"] for line in lines if line["unusable"]] == [
        "the picture cannot be read"
    ] * 2
    assert len(rows_of(out)) == len(lines) - 2
    assert "Unusable" in (out / runs.PAGE).read_text(encoding="utf-8")


def test_the_run_says_how_its_captions_are_read(
    search: Search, run_copy: Path, train_shards: Path
) -> None:
    """A filter of config.yaml holds here, too; nothing else of it is used."""
    path = run_copy / "config.yaml"
    config = yaml.safe_load(path.read_text(encoding="utf-8"))
    config["data"]["filter"] = {"shape": "circle"}
    config["data"]["_target_"] = "os.system"
    path.write_text(yaml.safe_dump(config), encoding="utf-8")
    out = search(f"checkpoint={run_copy}", "samples=null", "bins=1", "others=1")
    assert {row["caption"].split()[-1] for row in rows_of(out)} == {"circle"}
