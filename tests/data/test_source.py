"""Does a data config become the samples it names?"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

import pytest
import yaml
from hydra.utils import instantiate
from omegaconf import OmegaConf

from ldm.data.buckets import Buckets
from ldm.data.reader import Reader
from ldm.data.settings import DataConfig, TrainSource, ValSource
from ldm.data.source import Data, open_data
from ldm.data.stream import StreamReader
from ldm.data.tags import Tags

Write = Callable[..., Path]
CONF = Path(__file__).parents[2] / "conf" / "data"
FILES = sorted(CONF.glob("*.yaml"))


def config(shards: object, **values: object) -> DataConfig:
    val = values.pop("val", ValSource())
    return DataConfig(train=TrainSource(shards=shards), val=val, size=8, **values)  # type: ignore[arg-type]


def keys(data: Data, batches: int = 3) -> list[str]:
    loader = data.train_loader(micro_batch=8, rank=0, world=1, start=0, pin_memory=False)
    return [key for batch in itertools.islice(loader, batches) for key in batch.keys]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_config_files_say_everything(path: Path) -> None:
    """Every argument is listed, documented, and where it is no choice of the set, the default."""
    node = yaml.safe_load(path.read_text())
    assert node["_target_"] == "ldm.data.settings.DataConfig"
    assert set(node) - {"_target_"} == {field.name for field in fields(DataConfig)}
    parts = {"train": TrainSource, "val": ValSource, "buckets": Buckets, "tags": Tags}
    if path.stem == "mixture":
        assert node["train"] == "???"  # a list, which only the user can give
        del parts["train"]
    for part, cls in parts.items():
        assert set(node[part]) - {"_target_"} == {field.name for field in fields(cls)}
        assert node[part]["_target_"] == f"{cls.__module__}.{cls.__qualname__}"
    for part, cls in (("buckets", Buckets), ("tags", Tags)):
        assert cls(**{k: v for k, v in node[part].items() if k != "_target_"}) == cls()
    chosen = {*parts, "train", "size", "num_workers", "_target_"}
    plain = DataConfig(train=TrainSource(shards="x"))
    for name in set(node) - chosen:
        assert node[name] == getattr(plain, name), name
    lines = [line for line in path.read_text().splitlines()[1:] if "_target_" not in line]
    lines = [line for line in lines if line.rstrip(":") not in parts]
    assert all(re.search(r"  # \[[^\]]+\] \w+", line) for line in lines)


def test_a_config_file_opens(three_shards: list[str]) -> None:
    node = OmegaConf.load(CONF / "webdataset.yaml")
    node.train.shards = three_shards
    node.size, node.num_workers = 8, 0
    node.filter = {"number": "<10"}
    data = open_data(instantiate(node), seed=0)
    assert isinstance(data.train, Reader)
    assert (data.train_size, data.val_size, data.size) == (26, 1, 8)
    assert len(keys(data)) == 24
    spec = data.spec()
    assert (spec["train"], spec["group"], spec["lanes"]) == (three_shards, 3, 1)


def test_without_validation_shards_the_end_is_kept_out(three_shards: list[str]) -> None:
    data = open_data(config(three_shards, num_workers=0), seed=0)
    assert (data.train_size, data.val_size) == (36, 1)
    assert "c018" not in keys(data, 9)
    (batch,) = data.val_loader(batch_size=4, limit=512, rank=0, world=1)
    assert batch.keys == ("c018",)


def test_validation_shards_of_their_own(three_shards: list[str]) -> None:
    val, rule = ValSource(shards=three_shards[1]), {"number": ">=2"}
    data = open_data(config(three_shards[::2], val=val, filter=rule, num_workers=0), seed=0)
    assert (data.train_size, data.val_size) == (26, 5)  # two of each shard left out
    assert {key[0] for key in keys(data)} == {"a", "c"}


def test_overfitting_sees_the_first_samples_only(three_shards: list[str]) -> None:
    data = open_data(config(three_shards, overfit_samples=4, num_workers=0), seed=0)
    assert data.train_size == 4
    assert sorted(set(keys(data))) == ["a000", "a001", "a002", "a003"]


def test_a_seed_is_an_order(three_shards: list[str]) -> None:
    runs = [
        keys(open_data(config(three_shards, num_workers=0), seed=seed)) for seed in (0, 0, 2**32)
    ]
    assert runs[0] == runs[1] != runs[2]


def test_remote_shards_are_read_in_groups_of_half_the_cache(
    tmp_path: Path, three_shards: list[str]
) -> None:
    pipes = [f"pipe:cat {shard}" for shard in three_shards]
    mean = sum(Path(shard).stat().st_size for shard in three_shards) / 3
    common = {"cache_dir": str(tmp_path / "cache"), "num_workers": 0}
    data = open_data(config(pipes, cache_gb=4.1 * mean / 1e9, **common), seed=0)
    assert (data.spec()["group"], data.spec()["lanes"]) == (2, 64)
    assert len(set(keys(data, 4))) == 32
    data = open_data(config(pipes, cache_gb=4.1 * mean / 1e9, group=1, lanes=8, **common), seed=0)
    assert (data.spec()["group"], data.spec()["lanes"]) == (1, 8)
    with pytest.raises(ValueError, match=r"cache_gb=.* does not hold two shards"):
        open_data(config(pipes, cache_gb=mean / 1e9, **common), seed=0)


def test_stream_mode(three_shards: list[str]) -> None:
    pipes = [f"pipe:cat {shard}" for shard in three_shards[:2]]
    val = ValSource(shards=three_shards[2])
    data = open_data(
        config(pipes, mode="stream", val=val, epoch_samples=100, num_workers=0), seed=0
    )
    assert isinstance(data.train, StreamReader)
    assert (data.train_size, data.val_size) == (100, 19)
    assert {key[0] for key in keys(data, 10)} == {"a", "b"}
    assert data.spec()["mode"] == "stream"


def test_captions_from_a_field(tmp_path: Path, write_shard: Write) -> None:
    shard = write_shard(
        tmp_path / "a.tar", 4, extra=lambda n: {"json": b'{"long": ["one", "two"]}', "txt": b""}
    )
    data = open_data(config(str(shard), caption_key="long", num_workers=0), seed=0)
    loader = data.train_loader(micro_batch=8, rank=0, world=1, start=0, pin_memory=False)
    assert set(next(iter(loader)).captions) == {"one", "two"}


def test_all_problems_of_a_config_are_said_at_once() -> None:
    with pytest.raises(ValueError, match=r"data\.mode") as caught:
        config(
            "x",
            mode="random",
            crop="middle",
            start_method="thread",
            lanes=0,
            prefetch=0,
            max_bad_ratio=2.0,
        )
    text = str(caught.value)
    for part in (
        "ordered, stream",
        "center, random",
        "fork, spawn, forkserver",
        "data.lanes=0",
        "data.prefetch=0",
        "max_bad_ratio=2.0",
    ):
        assert part in text


def test_stream_mode_needs_validation_shards() -> None:
    with pytest.raises(ValueError, match=r"give data\.val\.shards"):
        config("pipe:x", mode="stream")


def test_caption_tools_reach_training_and_spare_validation(
    tmp_path: Path, write_shard: Write
) -> None:
    shard = write_shard(
        tmp_path / "a.tar", 8, extra=lambda n: {"txt": b"x, y, z", "alt.txt": b"x, w"}
    )
    node = {
        "caption_key": [".txt", ".alt.txt"],
        "tags": Tags(shuffle=True, dropout=0.3, keep_first=1),
        "templates": ["a {}", "the {}"],
    }
    data = open_data(config(str(shard), num_workers=0, **node), seed=0)
    loader = data.train_loader(micro_batch=100, rank=0, world=1, start=0, pin_memory=False)
    seen = set(next(iter(loader)).captions)
    assert {"a x, y, z", "the x, z, y", "the x", "a x, w"} <= seen
    assert all(re.fullmatch(r"(a|the) x(, [yzw])*", text) for text in seen)
    (batch,) = data.val_loader(batch_size=4, limit=0, rank=0, world=1)
    assert batch.captions[0] in ("a x, y, z", "a x, w")


def test_all_caption_problems_are_said_at_once() -> None:
    with pytest.raises(ValueError, match=r"data\.tags\.dropout") as caught:
        config("x", tags=Tags(dropout=2.0, keep_first=-1), templates=["a"], caption_key=["", "b"])
    for part in ("keep_first=-1", "data.templates has 'a'", "data.caption_key=['', 'b']"):
        assert part in str(caught.value)
