"""Do shards hold exactly what the sources give, also after an interruption?"""

from __future__ import annotations

import io
import json
import logging
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import webdataset
from PIL import Image

from ldm.data import shapes
from ldm.data.make.encode import Encoding, UnusablePicture
from ldm.data.make.folder import FolderSource
from ldm.data.make.icons import IconSource, plain_code, svg_of
from ldm.data.make.sample import LeftOut, Sample, Source
from ldm.data.make.shapes import ShapesSource
from ldm.data.make.table import TableSource
from ldm.data.make.writer import ShardWriter

CAPTIONS = [
    'a "quoted" cat, it\'s on a mat',
    "naïve 猫 🙂 — 50 % off",
    "(blue:1.2) a=b {x}",
    "two\nlines\tand a tab",
    "back\\slash",
    "  Upper Case and spaces at both ends ",
]


def png(colour: Any = "red", size: tuple[int, int] = (40, 30), mode: str = "RGB") -> bytes:
    buffer = io.BytesIO()
    Image.new(mode, size, colour).save(buffer, "PNG")
    return buffer.getvalue()


def jpeg(size: tuple[int, int] = (40, 30), orientation: int = 1) -> bytes:
    picture = Image.new("RGB", size, "blue")
    picture.putpixel((0, 0), (255, 255, 255))
    exif = Image.Exif()
    exif[0x0112] = orientation
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", exif=exif)
    return buffer.getvalue()


def written(source: Source, out: Path, **options: Any) -> list[dict[str, Any]]:
    ShardWriter(out=out, progress=False, **options).write(source)
    return list(read(out))


def read(out: Path) -> Iterator[dict[str, Any]]:
    """By webdataset itself."""
    for shard in sorted(out.glob("*.tar")):
        for sample in webdataset.WebDataset(str(shard), shardshuffle=False):
            found = {k: v for k, v in sample.items() if not k.startswith("__") or k == "__key__"}
            yield {**found, "txt": sample["txt"].decode(), "json": json.loads(sample["json"])}


def contents(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in out.iterdir()}


# -- shapes ---------------------------------------------------------------------------------------


def test_shapes_come_back_from_the_shards_pixel_by_pixel(tmp_path):
    samples = written(ShapesSource(count=100, seed=3, start=50), tmp_path, samples_per_shard=40)
    scenes = shapes.scenes(shapes.EASY, seed=3, index=range(50, 150))
    pixels = shapes.render(scenes, side_px=32)
    assert len(samples) == 100
    for sample, scene, picture in zip(samples, scenes, pixels, strict=True):
        np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(sample["png"]))), picture)
        meta = sample["json"]
        assert sample["txt"] == meta["caption"] == f"a {scene.size} {scene.colour} {scene.shape}"
        assert (meta["shape"], meta["colour"], meta["size"], meta["license"]) == (
            scene.shape,
            scene.colour,
            scene.size,
            "CC0-1.0",
        )
        assert (meta["width"], meta["height"]) == (32, 32)
    assert len({sample["__key__"] for sample in samples}) == 100
    index = json.loads((tmp_path / "index.json").read_text())
    assert [shard["samples"] for shard in index["shards"]] == [40, 40, 20]
    assert (index["complete"], index["samples"], index["cursor"]) == (True, 100, 100)
    for shard in index["shards"]:
        assert (tmp_path / shard["name"]).stat().st_size == shard["bytes"]


def test_the_same_seed_gives_the_same_bytes_and_another_seed_does_not(tmp_path):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        written(ShapesSource(count=60, seed=seed), tmp_path / name, samples_per_shard=25)
    a, b, c = (contents(tmp_path / name) for name in "abc")
    assert a == b
    assert a.keys() == c.keys()
    assert all(a[name] != c[name] for name in a)


def test_headers_name_no_user_and_no_time(tmp_path):
    written(ShapesSource(count=2), tmp_path)
    with tarfile.open(tmp_path / "shard-00000.tar") as archive:
        for member in archive:
            assert (member.mtime, member.uid, member.gid, member.uname) == (0, 0, 0, "")


def test_the_hard_shapes_say_their_background(tmp_path):
    (sample,) = written(ShapesSource(hard=True, count=1, held_out=["red star"]), tmp_path)
    assert sample["txt"].endswith(f"on a {sample['json']['ground']} background")
    assert Image.open(io.BytesIO(sample["png"])).size == (64, 64)


# -- writer ---------------------------------------------------------------------------------------


class Interrupted(Exception):
    pass


class Stops:
    """A source that fails at one item the first time."""

    def __init__(self, source: Source, at: int) -> None:
        self.source, self.at = source, at

    def __len__(self) -> int:
        return len(self.source)

    def spec(self) -> Any:
        return self.source.spec()

    def items(self, start: int = 0) -> Iterator[Sample | LeftOut]:
        for number, item in enumerate(self.source.items(start), start):
            if number == self.at:
                raise Interrupted
            yield item


class Mixed:
    """Every third item cannot be used."""

    def __len__(self) -> int:
        return 31

    def spec(self) -> Any:
        return {"source": "mixed"}

    def items(self, start: int = 0) -> Iterator[Sample | LeftOut]:
        for i in range(start, 31):
            broken = i % 3 == 2
            yield LeftOut(f"item {i}", "no caption") if broken else Sample(f"x{i}", png(), f"c{i}")


@pytest.mark.parametrize("at", [0, 3, 10, 11, 29])
@pytest.mark.parametrize("source", [ShapesSource(count=30), Mixed()], ids=["shapes", "mixed"])
def test_interrupted_and_resumed_is_the_same_as_uninterrupted(tmp_path, source, at):
    writer = {"samples_per_shard": 4, "progress": False}
    with pytest.raises(Interrupted):
        ShardWriter(out=tmp_path / "a", **writer).write(Stops(source, at))
    assert not [name for name in contents(tmp_path / "a") if name.endswith(".tmp")]
    ShardWriter(out=tmp_path / "a", **writer).write(source)
    ShardWriter(out=tmp_path / "b", **writer).write(source)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


def test_a_kill_between_a_shard_and_the_index_does_no_harm(tmp_path):
    """What is on disk then: a shard and left-out lines the index knows nothing of, a .tmp file."""
    writer = {"samples_per_shard": 4, "progress": False}
    with pytest.raises(Interrupted):
        ShardWriter(out=tmp_path / "a", **writer).write(Stops(Mixed(), 20))
    (tmp_path / "a" / "shard-00003.tar").write_bytes(b"unknown to the index")
    (tmp_path / "a" / "shard-00004.tar.tmp").write_bytes(b"half")
    with (tmp_path / "a" / "left_out.jsonl").open("a") as file:
        file.write('{"name": "item 20", "reason": "no caption"}\n')
    ShardWriter(out=tmp_path / "a", **writer).write(Mixed())
    ShardWriter(out=tmp_path / "b", **writer).write(Mixed())
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


def test_what_is_left_out_is_counted_and_listed(tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        samples = written(Mixed(), tmp_path)
    assert len(samples) == 21
    listed = [json.loads(line) for line in (tmp_path / "left_out.jsonl").read_text().splitlines()]
    assert listed == [{"name": f"item {i}", "reason": "no caption"} for i in range(2, 31, 3)]
    assert json.loads((tmp_path / "index.json").read_text())["left_out"] == 10
    assert "left out 10 items" in caplog.text


def test_a_finished_folder_is_left_alone(tmp_path):
    written(ShapesSource(count=5), tmp_path)
    times = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    written(ShapesSource(count=5), tmp_path)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == times


def test_other_shards_are_not_replaced_unless_asked(tmp_path):
    written(ShapesSource(count=9), tmp_path, samples_per_shard=3)
    before = contents(tmp_path)
    with pytest.raises(FileExistsError, match=r"count: 9 there, 4 asked for.*overwrite=true"):
        written(ShapesSource(count=4), tmp_path, samples_per_shard=3)
    assert contents(tmp_path) == before
    (tmp_path / "notes.md").write_text("mine")
    samples = written(ShapesSource(count=4), tmp_path, samples_per_shard=3, overwrite=True)
    assert len(samples) == 4
    assert sorted(contents(tmp_path)) == [
        "index.json",
        "notes.md",
        "shard-00000.tar",
        "shard-00001.tar",
    ]


@pytest.mark.parametrize("name", ["photo.jpg", "shard-00000.tar", "other.tar"])
def test_a_folder_with_other_files_is_refused(tmp_path, name):
    (tmp_path / name).write_bytes(b"precious")
    with pytest.raises(FileExistsError, match="not empty"):
        written(ShapesSource(count=4), tmp_path)
    assert contents(tmp_path) == {name: b"precious"}


def test_a_shard_that_is_gone_is_noticed(tmp_path):
    written(ShapesSource(count=9), tmp_path, samples_per_shard=3)
    (tmp_path / "shard-00001.tar").unlink()
    with pytest.raises(FileNotFoundError, match=r"shard-00001\.tar"):
        written(ShapesSource(count=9), tmp_path, samples_per_shard=3)


def test_shards_stay_below_the_size_limit(tmp_path):
    written(ShapesSource(count=60), tmp_path, shard_mb=0.05)
    sizes = [path.stat().st_size for path in sorted(tmp_path.glob("*.tar"))]
    assert len(sizes) > 3
    assert max(sizes) <= 50_000 + 10_240  # tar rounds up to whole records
    assert len(list(read(tmp_path))) == 60


def test_nothing_usable_is_an_error(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.png").write_bytes(b"no picture")
    with pytest.raises(ValueError, match="nothing to write"):
        written(FolderSource(root=tmp_path / "in", default_caption=""), tmp_path / "out")


def test_every_wrong_option_of_the_writer_is_named():
    with pytest.raises(ValueError, match=r"prefix='a/b'.*samples_per_shard=0.*shard_mb=0"):
        ShardWriter(out="x", prefix="a/b", samples_per_shard=0, shard_mb=0)


# -- encoding -------------------------------------------------------------------------------------


def test_keep_stores_the_bytes_as_they_are():
    for extension, data in (("png", png()), ("jpg", jpeg())):
        assert Encoding()(data) == (extension, data, (40, 30))


def test_formats_that_training_does_not_read_become_png():
    buffer = io.BytesIO()
    Image.new("RGB", (5, 4), (10, 20, 30)).save(buffer, "BMP")
    extension, data, size = Encoding()(buffer.getvalue())
    assert (extension, size) == ("png", (5, 4))
    assert Image.open(io.BytesIO(data)).getpixel((4, 3)) == (10, 20, 30)


def test_pictures_of_phones_stay_jpeg():
    first, second = (Image.new("RGB", (40, 30), colour) for colour in ("red", "blue"))
    buffer = io.BytesIO()
    first.save(buffer, "MPO", save_all=True, append_images=[second])
    assert Encoding()(buffer.getvalue()) == ("jpg", buffer.getvalue(), (40, 30))


@pytest.mark.parametrize(
    ("format", "extension"), [("png", "png"), ("jpeg", "jpg"), ("webp", "webp")]
)
def test_every_format_can_be_asked_for(format, extension):
    drawn = Image.new("RGBA", (40, 30), (0, 0, 255, 0))
    got, data, size = Encoding(format=format)(drawn)
    picture = Image.open(io.BytesIO(data))
    assert (got, size, picture.mode) == (extension, (40, 30), "RGB")
    assert min(picture.getpixel((20, 15))) >= 254  # transparent: white


def test_the_longer_side_is_limited_and_the_aspect_ratio_kept():
    extension, data, size = Encoding(max_side_px=20)(jpeg((40, 30)))
    assert (extension, size) == ("jpg", (20, 15))
    assert Image.open(io.BytesIO(data)).size == (20, 15)
    small = png(size=(20, 10))
    assert Encoding(max_side_px=20)(small)[1] == small


def test_sizes_are_those_of_the_upright_picture():
    turned = jpeg((40, 30), orientation=6)
    assert Encoding()(turned) == ("jpg", turned, (30, 40))
    _, data, size = Encoding(format="png")(turned)
    assert size == (30, 40)
    upright = Image.open(io.BytesIO(data))
    assert upright.size == (30, 40)
    assert min(upright.getpixel((29, 0))) > min(upright.getpixel((0, 0)))  # top left went right


def test_broken_and_small_pictures_are_unusable():
    noisy = io.BytesIO()
    Image.effect_noise((64, 64), 90).save(noisy, "PNG")
    with pytest.raises(UnusablePicture, match="cannot be read"):
        Encoding()(noisy.getvalue()[:1500])
    with pytest.raises(UnusablePicture, match="40x30 px"):
        Encoding(min_side_px=31)(png())


def test_every_wrong_option_of_the_encoding_is_named():
    with pytest.raises(ValueError, match=r"format='gif'.*quality=0.*max_side_px=0"):
        Encoding(format="gif", quality=0, max_side_px=0)


# -- folder ---------------------------------------------------------------------------------------


def test_captions_of_a_folder_arrive_verbatim(tmp_path):
    root = tmp_path / "in"
    for number, caption in enumerate(CAPTIONS):
        folder = root / f"sub {number}" / "ünïcode"
        folder.mkdir(parents=True)
        (folder / "a.b.png").write_bytes(png())
        (folder / "a.b.txt").write_bytes(caption.encode() + b"\n")
    before = {path: path.read_bytes() for path in root.rglob("*.*")}
    samples = written(FolderSource(root=root), tmp_path / "out")
    assert sorted(sample["txt"] for sample in samples) == sorted(CAPTIONS)
    assert sorted(sample["json"]["caption"] for sample in samples) == sorted(CAPTIONS)
    assert all(sample["png"] == png() for sample in samples)
    assert {s["json"]["source"] for s in samples} == {
        f"sub {i}/ünïcode/a.b.png" for i in range(len(CAPTIONS))
    }
    assert {path: path.read_bytes() for path in root.rglob("*.*")} == before


def test_captions_come_from_txt_then_json_and_the_rest_of_the_json_is_kept(tmp_path):
    (tmp_path / "in").mkdir()
    for name in ("both", "json", "none", "wrong"):
        (tmp_path / "in" / f"{name}.JPG").write_bytes(jpeg())
    (tmp_path / "in" / "both.txt").write_text("from txt")
    for name, record in (
        ("both", {"caption": "from json", "rating": 3}),
        ("json", {"caption": "from json", "license": "MIT", "score": float("nan")}),
        ("wrong", {"text": "other key"}),
    ):
        (tmp_path / "in" / f"{name}.json").write_text(json.dumps(record))
    source = FolderSource(root=tmp_path / "in", license="CC0-1.0", shuffle=False)
    both, from_json = written(source, tmp_path / "out")
    assert (both["txt"], both["json"]["rating"], both["json"]["license"]) == (
        "from txt",
        3,
        "CC0-1.0",
    )
    assert (from_json["txt"], from_json["json"]["license"]) == ("from json", "MIT")
    listed = (tmp_path / "out" / "left_out.jsonl").read_text().splitlines()
    assert [json.loads(line)["name"] for line in listed] == ["none.JPG", "wrong.JPG"]
    everything = FolderSource(root=tmp_path / "in", default_caption="")
    assert len(written(everything, tmp_path / "all")) == 4


def test_unreadable_pictures_and_captions_are_left_out_and_listed(tmp_path):
    (tmp_path / "in").mkdir()
    for name, data in (("ok", png()), ("cut", png()[:40]), ("latin", png()), ("zero", b"")):
        (tmp_path / "in" / f"{name}.png").write_bytes(data)
        (tmp_path / "in" / f"{name}.txt").write_bytes(b"caf\xe9" if name == "latin" else b"text")
    samples = written(FolderSource(root=tmp_path / "in"), tmp_path / "out")
    assert [sample["txt"] for sample in samples] == ["text"]
    lines = (tmp_path / "out" / "left_out.jsonl").read_text().splitlines()
    reasons = {r["name"]: r["reason"] for r in map(json.loads, lines)}
    assert reasons.keys() == {"cut.png", "latin.png", "zero.png"}
    assert "not UTF-8" in reasons["latin.png"]


def test_a_mapping_gives_captions_and_cannot_leave_the_folder(tmp_path):
    (tmp_path / "secret.png").write_bytes(png("green"))
    root = tmp_path / "in"
    (root / "cats").mkdir(parents=True)
    (root / "cats" / "tom.png").write_bytes(png())
    (root / "link.png").symlink_to(tmp_path / "secret.png")
    names = ["cats/tom.png", "../secret.png", str(tmp_path / "secret.png"), "link.png", "gone.png"]
    lines = [
        json.dumps({"file_name": n, "text": CAPTIONS[0], "split": "x"}, ensure_ascii=False)
        for n in names
    ]
    mapping = tmp_path / "metadata.jsonl"
    mapping.write_text("\n".join(lines) + "\n")
    source = FolderSource(root=root, mapping=mapping, caption_key="text")
    (sample,) = written(source, tmp_path / "out")
    assert (sample["txt"], sample["json"]["split"]) == (CAPTIONS[0], "x")
    left_out = (tmp_path / "out" / "left_out.jsonl").read_text()
    assert left_out.count("leads out of") == 3
    assert left_out.count("is not a file") == 1


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("{", "line 2 is not JSON"),
        ('{"file_name": "b.png"}', "line 2 needs the texts"),
        ('{"file_name": "./a.png", "caption": "twice"}', "a second time"),
    ],
)
def test_a_wrong_line_of_a_mapping_is_named(tmp_path, line, problem):
    (tmp_path / "m.jsonl").write_text('{"file_name": "a.png", "caption": "x"}\n' + line)
    with pytest.raises(ValueError, match=problem):
        FolderSource(root=tmp_path, mapping=tmp_path / "m.jsonl")


def test_the_order_of_a_folder_is_shuffled_by_the_seed(tmp_path):
    for number in range(30):
        (tmp_path / f"{number:02d}.png").write_bytes(png())
    orders = [FolderSource(root=tmp_path, seed=seed).names for seed in (0, 0, 1)]
    assert orders[0] == orders[1] != orders[2]
    assert sorted(orders[0]) == FolderSource(root=tmp_path, shuffle=False).names


def test_a_changed_folder_is_not_resumed(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.png").write_bytes(png())
    written(FolderSource(root=tmp_path / "in", default_caption=""), tmp_path / "out")
    (tmp_path / "in" / "b.png").write_bytes(png())
    with pytest.raises(FileExistsError, match="names:"):
        written(FolderSource(root=tmp_path / "in", default_caption=""), tmp_path / "out")


def test_keys_of_strange_names_are_safe_and_read_back(tmp_path):
    (tmp_path / "in").mkdir()
    for name in ("a.b.c.png", "-rf.png", "x" * 200 + ".png", "猫.png", "a b\n.png"):
        (tmp_path / "in" / name).write_bytes(png())
    samples = written(FolderSource(root=tmp_path / "in", default_caption="c"), tmp_path / "out")
    assert len(samples) == 5
    assert len({sample["__key__"] for sample in samples}) == 5
    for sample in samples:
        assert sample["__key__"].replace("-", "").replace("_", "").isalnum()
        assert set(sample) == {"__key__", "png", "txt", "json"}


# -- table ----------------------------------------------------------------------------------------


def test_a_csv_gives_captions_verbatim_and_its_other_columns(tmp_path):
    import csv

    (tmp_path / "a.png").write_bytes(png())
    with (tmp_path / "t.csv").open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(["caption", "image", "score"])
        rows.writerows([[caption, "a.png", 0.5] for caption in [*CAPTIONS, "007", "NULL"]])
    samples = written(TableSource(table=tmp_path / "t.csv"), tmp_path / "out")
    assert [sample["txt"] for sample in samples] == [*CAPTIONS, "007", "NULL"]
    assert {sample["json"]["score"] for sample in samples} == {0.5}


def test_a_csv_of_numbers_has_texts_as_captions(tmp_path):
    (tmp_path / "1.0").write_bytes(png())
    (tmp_path / "t.csv").write_text("image,caption\n1.0,007\n1.0,1e3\n")
    items = list(TableSource(table=tmp_path / "t.csv").items())
    assert [item.caption for item in items] == ["007", "1e3"]


def test_a_csv_may_have_line_breaks_wherever_its_blocks_of_a_megabyte_end(tmp_path):
    (tmp_path / "a.png").write_bytes(png())
    caption = "line\n" * 200
    (tmp_path / "t.csv").write_text("image,caption\n" + f'a.png,"{caption}"\n' * 2500)
    source = TableSource(table=tmp_path / "t.csv")
    assert len(source) == 2500
    assert [item.caption for item in source.items(2490)] == [caption] * 10


def test_paths_of_a_table_cannot_leave_the_folder(tmp_path):
    (tmp_path / "secret.png").write_bytes(png())
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.png").write_bytes(png())
    (tmp_path / "in" / "link.png").symlink_to(tmp_path / "secret.png")
    rows = ["a.png", "../secret.png", str(tmp_path / "secret.png"), "link.png", "http://x/a.png"]
    (tmp_path / "in" / "t.tsv").write_text("\n".join(f"{r}\tc" for r in ["image", *rows]))
    text = (tmp_path / "in" / "t.tsv").read_text().replace("image\tc\n", "image\tcaption\n")
    (tmp_path / "in" / "t.tsv").write_text(text)
    samples = written(TableSource(table=tmp_path / "in" / "t.tsv"), tmp_path / "out")
    assert [sample["json"]["source"] for sample in samples] == ["a.png"]
    left_out = (tmp_path / "out" / "left_out.jsonl").read_text()
    assert left_out.count("leads out of") == 3
    assert left_out.count("is a URL") == 1


def test_parquet_with_pictures_inside_and_a_start_in_the_middle(tmp_path):
    import pyarrow as pa
    from pyarrow import parquet

    rows = [{"bytes": png((i % 256, 0, 0)), "path": f"p{i}.png"} for i in range(600)]
    columns = {"image": rows, "text": [f"c{i}" for i in range(600)], "n": list(range(600))}
    parquet.write_table(pa.table(columns), tmp_path / "t.parquet", row_group_size=100)
    source = TableSource(table=tmp_path / "t.parquet", caption_column="text", license="MIT")
    for start in (0, 255, 256, 599, 600):
        items = list(source.items(start))
        assert [item.caption for item in items] == [f"c{i}" for i in range(start, 600)]
        assert all(item.image == rows[item.meta["n"]]["bytes"] for item in items)
    assert next(iter(source.items())).meta == {"n": 0, "source": "p0.png", "license": "MIT"}


def test_missing_columns_are_named_with_those_there(tmp_path):
    (tmp_path / "t.csv").write_text("file,text\na.png,c\n")
    with pytest.raises(ValueError, match=r"'image' and 'caption'.*it has file, text"):
        TableSource(table=tmp_path / "t.csv")
    (tmp_path / "t.xls").touch()
    with pytest.raises(ValueError, match=r"ends in '\.xls'"):
        TableSource(table=tmp_path / "t.xls")


# -- icons ----------------------------------------------------------------------------------------

CIRCLE = '<circle cx="4" cy="8" r="3" fill="#f00"/>'


@pytest.fixture
def packages(tmp_path: Path) -> Path:
    """Two small sets and the names, in the layout of the npm packages."""
    emoji = [
        {"hexcode": "1F600", "label": "Man’s Face", "tags": ["grin’s"], "group": 0},
        {
            "hexcode": "2764-FE0F",
            "label": "red heart",
            "group": 8,
            "skins": [{"hexcode": "2764-1F3FB", "label": "red heart: light"}],
        },
        {"hexcode": "1F3FB", "label": "light skin tone", "group": 2},
        {"hexcode": "1F601", "label": "flipped", "group": 0},
        {"hexcode": "1F602", "label": "hidden", "group": 0},
    ]
    (tmp_path / "data.json").write_text(json.dumps(emoji))
    for prefix, license in (("noto", "Apache-2.0"), ("fluent-emoji-flat", "MIT")):
        folder = tmp_path / prefix
        folder.mkdir()
        icons = {
            "prefix": prefix,
            "width": 16,
            "height": 16,
            "icons": {
                "face": {"body": CIRCLE},
                "heart": {"body": CIRCLE, "width": 32},
                "light": {"body": CIRCLE},
                "brand": {"body": CIRCLE},
                "gone": {"body": CIRCLE, "hidden": True},
            },
            "aliases": {"flip": {"parent": "face", "hFlip": True}},
        }
        chars = {
            "1f600": "face",
            "2764": "heart",
            "2764-1f3fb": "light",
            "1f3fb": "light",
            "e000": "brand",
            "1f601": "flip",
            "1f602": "gone",
        }
        (folder / "icons.json").write_text(json.dumps(icons))
        (folder / "chars.json").write_text(json.dumps(chars))
        (folder / "info.json").write_text(json.dumps({"license": {"spdx": license}}))
    return tmp_path


def icon_source(packages: Path, **options: Any) -> IconSource:
    sets = [str(packages / "noto"), str(packages / "fluent-emoji-flat")]
    return IconSource(sets=sets, emojibase=packages / "data.json", side_px=16, **options)


def test_icons_get_cldr_names_and_the_others_are_left_out(packages, tmp_path):
    samples = written(icon_source(packages), tmp_path / "out")
    assert sorted(sample["txt"] for sample in samples) == [
        "flipped, fluent style",
        "flipped, noto style",
        "man's face, fluent style",
        "man's face, noto style",
        "red heart, fluent style",
        "red heart, noto style",
    ]
    for sample in samples:
        meta = sample["json"]
        assert meta["license"] == {"noto": "Apache-2.0", "fluent": "MIT"}[meta["style"]]
    face = next(s["json"] for s in samples if s["txt"] == "man's face, noto style")
    assert (face["tags"], face["group"], face["hexcode"]) == (["grin's"], "smileys", "1F600")


def test_icons_are_drawn_on_white_and_aliases_are_flipped(packages, tmp_path):
    samples = {s["txt"]: s for s in written(icon_source(packages, lowercase=False), tmp_path / "o")}
    pictures = {
        name: np.asarray(Image.open(io.BytesIO(samples[f"{name}, noto style"]["png"])))
        for name in ("Man's Face", "flipped", "red heart")
    }
    face, flipped, heart = pictures.values()
    assert face.shape == (16, 16, 3)
    assert tuple(face[0, 0]) == (255, 255, 255)
    assert tuple(face[8, 4]) == (255, 0, 0)
    off = np.abs(flipped.astype(int) - face[:, ::-1].astype(int))
    assert off.max() <= 32  # edges are sampled in steps of 1/16
    assert off.mean() < 1
    # 32 x 16 on a square canvas: half as large, in the middle of the height
    assert tuple(heart[8, 2]) == (255, 0, 0)
    assert (heart[:6] == 255).all()


def test_train_and_val_icons_share_no_name_and_miss_none(packages):
    parts = [icon_source(packages, part=p, val_fraction=0.5, seed=1) for p in ("train", "val")]
    train, val = ({icon.name.label for icon in part.icons} for part in parts)
    assert train
    assert val
    assert not train & val
    assert train | val == {icon.name.label for icon in icon_source(packages).icons}


def test_a_chain_of_aliases_adds_its_turns():
    icons = {
        "icons": {"a": {"body": CIRCLE, "rotate": 1}},
        "aliases": {"b": {"parent": "a", "rotate": 2}, "c": {"parent": "b", "vFlip": True}},
    }
    svg = svg_of(icons, "c")
    assert svg is not None
    assert "rotate(270)" in svg
    assert "scale(1 -1)" in svg
    assert svg_of(icons, "d") is None


def test_variation_selectors_do_not_matter():
    assert plain_code("1f636-200d-1f32b-fe0f") == plain_code("1F636-200D-1F32B")


def test_wrong_options_of_icons_are_all_named(packages):
    with pytest.raises(ValueError, match=r"data\.sets.*data\.emojibase.*part='test'"):
        IconSource(sets=None, emojibase=None, part="test")
    with pytest.raises(ValueError, match=r"\{labl\}"):
        icon_source(packages, caption="{labl}")
