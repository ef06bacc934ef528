"""Is everything that cannot be evaluated one clear error before anything is drawn?"""

from __future__ import annotations

import io
import json
import shutil
import tarfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from ldm import app
from ldm.app.evaluation import drawing
from ldm.cli import ConfigError

Config = dict[str, Any]
Refused = Callable[..., str]


@pytest.fixture
def refused(
    composed: Callable[..., Config],
    small_line: Callable[..., list[str]],
    tmp_path: Path,
) -> Refused:
    """refused("key=value", …): the text of the one error; nothing was drawn."""

    def run(*changes: str) -> str:
        line = small_line(*changes, f"out={tmp_path / 'out'}")
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(drawing, "_draw_batch", lambda *_: pytest.fail("something was drawn"))
            with pytest.raises(ConfigError) as caught:
                app.evaluate(composed(*line, config="evaluate"))
        return str(caught.value)

    return run


def write_shard(path: Path, samples: Mapping[str, Mapping[str, bytes]]) -> Path:
    """A shard of members by key and extension."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for key, members in samples.items():
            for ext, data in members.items():
                info = tarfile.TarInfo(f"{key}.{ext}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    return path


def png(colour: str) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (40, 32), colour).save(buffer, format="PNG")
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        (["checkpont=x"], ["checkpont is unknown", "did you mean 'checkpoint'"]),
        (["evaluation.sample=3"], ["evaluation.sample is unknown", "did you mean 'samples'"]),
        (["data.caption=x"], ["data.caption is unknown", "caption_key"]),
        (["samples=x"], ["samples='x' is a str; allowed: int | null"]),
        (["samples=1"], ["samples=1; give 2 or more"]),
        (["steps=0"], ["steps=0; give 1 or more"]),
        (["steps=[4,4]"], ["steps=[4, 4]; give one or more, each once"]),
        (["guidance=[]"], ["guidance=[]; give one or more"]),
        (["sampler=[ddim,dddim]"], ["'dddim' is unknown", "ddim"]),
        (["weights=[ema,best]"], ["weights='best'; allowed: ema, raw"]),
        (["checkpoints=some"], ["checkpoints='some'; allowed: newest, all"]),
        (["logger=csv"], ["logger='csv'; allowed: null, tensorboard, wandb"]),
        (["metrics=[fidd]"], ["'fidd' is unknown (did you mean 'fid'?)", "kid"]),
        (["metrics=[]"], ["metrics=[] measures nothing"]),
        (["metrics=[fid]"], ["Inception features", "extractor=inception", "fd"]),
        (["pareto=[cmmd]"], ["give two different metrics"]),
        (["pareto=[cmmd,secnds]"], ["'secnds' is unknown (did you mean 'seconds'?)"]),
        (["evaluation.loss_times=2"], ["loss_times=2; give 10 or more"]),
        (["checkpoint=/nowhere/run"], ["/nowhere/run does not exist", "a run folder"]),
        (["checkpoint=tiny", "compare=[tiny]"], ["name tiny more than once"]),
        (["data.shards=/nowhere/x.tar"], ["/nowhere/x.tar", "give data=", "data=shapes"]),
        (["metrics=[fd]"], ["fd needs 129 pictures or more", "6 pictures are drawn", "11 ref"]),
        (["metrics=[density]", "samples=5"], ["density needs 6", "samples=6 or more"]),
        (["extractor=/nowhere/clip"], ["'/nowhere/clip'", "config.json, model.safetensors"]),
        (["metrics=[fid]", "extractor=inception"], ["needs the extra fid", "pip install"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) and "=" in value[0] else "",
)
def test_bad_values(refused: Refused, changes: list[str], parts: list[str]) -> None:
    text = refused(*changes)
    assert [part for part in parts if part not in text] == []


def test_models_of_other_sizes_are_not_compared(
    refused: Refused, run_copy: Path, finished_run: Path
) -> None:
    from ldm.io import checkpoint as files

    newest = files.latest_valid(run_copy / "checkpoints")
    assert newest is not None
    document = files.read(newest)
    document["card"]["sampling"]["size"] = [64, 64]
    path = files.checkpoint_path(run_copy / "checkpoints", 40)
    files.write(document, path)
    text = refused(f"checkpoint={finished_run}", f"compare={path}")
    for part in ("different sizes", f"{finished_run} 32 px", f"{path} 64 px", "size=N"):
        assert part in text


def test_captions_that_are_missing_say_how_to_name_them(refused: Refused, tmp_path: Path) -> None:
    samples = {f"{k:03d}": {"png": png("red"), "json": b'{"title": "a"}'} for k in range(4)}
    shard = write_shard(tmp_path / "data" / "x.tar", samples)
    assert "caption" in refused(f"data.shards={shard}")
    assert "data.caption_key" in refused(f"data.shards={shard}", "data.caption_key=text")


def test_latents_are_no_pictures(refused: Refused, run_copy: Path) -> None:
    config = run_copy / "config.yaml"
    config.write_text(config.read_text().replace("format: images", "format: latents"))
    assert "cached latents" in refused(f"checkpoint={run_copy}")


def test_a_run_whose_shards_have_gone_says_what_to_give(refused: Refused, run_copy: Path) -> None:
    config = run_copy / "config.yaml"
    lines = config.read_text().splitlines()
    changed = ["    shards: /gone" if line.startswith("    shards:") else line for line in lines]
    config.write_text("\n".join(changed))
    text = refused(f"checkpoint={run_copy}")
    assert "/gone" in text
    assert "give data=" in text


def test_unreadable_pictures_and_captions_are_counted(
    evaluated: Callable[..., Config], tmp_path: Path
) -> None:
    samples = {
        f"{k:03d}": {"png": png("red" if k % 2 else "blue"), "txt": b"a small red circle"}
        for k in range(12)
    }
    samples["002"]["png"] = b"\x89PNG no"
    samples["003"]["txt"] = b"  "
    del samples["005"]["txt"]
    shard = write_shard(tmp_path / "data" / "x.tar", samples)
    said = evaluated(tmp_path / "out", f"data.shards={shard}", "samples=11")
    assert said["counts"] == {
        "samples left out of the data's index": 1,
        "captions that cannot be used": 1,
        "reference pictures that cannot be read": 2,  # a sample without caption is none
    }
    assert said["protocol"]["references"] == 9
    assert said["entries"][0]["metrics"]["clip_score"]["samples"] == 11


def test_a_reference_of_other_things_is_refused(
    evaluated: Callable[..., Config], refused: Refused, tmp_path: Path
) -> None:
    line = ("metrics=[cmmd]", f"cache_dir={tmp_path / 'cache'}", "samples=2")
    evaluated(tmp_path / "first", *line)
    (kept,) = (tmp_path / "cache" / "reference").glob("*.npz")
    evaluated(tmp_path / "second", *line, "evaluation.references=7")
    (other,) = {*(tmp_path / "cache" / "reference").glob("*.npz")} - {kept}
    shutil.copyfile(other, kept)
    assert "is of other things: count 7 and 11" in refused(*line)
    kept.write_bytes(b"damaged")
    assert "delete it" in refused(*line)


def test_a_foreign_protocol_file_is_refused(refused: Refused, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "protocol.json").write_text(json.dumps([1]))
    assert "is no protocol" in refused()
    (tmp_path / "out" / "protocol.json").write_text("{")
    assert "cannot be read" in refused()
