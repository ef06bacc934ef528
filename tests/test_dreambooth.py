"""Do class pictures keep what a model knew: drawn once, mixed in exactly, weighted as they say?"""

from __future__ import annotations

import io
import json
import shutil
import tarfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import ldm
from ldm import app
from ldm.app import prior
from ldm.app.prior import draw_class_pictures, open_training_data, read_prompts
from ldm.cli import ConfigError
from ldm.data.interleave import Interleaved, Turns
from ldm.data.make.sample import Sample
from ldm.data.make.writer import ShardWriter
from ldm.data.order import Order
from ldm.io import checkpoint as files
from ldm.training.prior import PriorLoss, PriorSettings

PROMPTS = ["a small red circle", "a large blue star", "a small green heart"]
PRIOR = (
    f"training.prior.prompts={json.dumps(PROMPTS)}",
    "training.prior.count=20",
    "training.prior.steps=2",
)
KINDS = {
    "unet": (),
    "unet and text": ("training.train=[unet,text]",),
    "lora": ("adapters=lora", "adapters.rank=2"),
}
EXACT = ("state_dict", "ema", "optimizer_states", "samples_seen")


@pytest.fixture(scope="module")
def pictures(
    tmp_path_factory: pytest.TempPathFactory, finished_run: Path, tiny_cfg: Callable[..., Any]
) -> Path:
    """20 class pictures that `finished_run` drew. Only to be read."""
    folder = tmp_path_factory.mktemp("class") / "pictures"
    line = (f"init_from={finished_run}", *PRIOR, f"training.prior.folder={folder}")
    draw_class_pictures(tiny_cfg(folder.parent / "run", *line))
    return folder


@pytest.fixture
def cfg_of(finished_run: Path, tiny_cfg: Callable[..., Any]) -> Callable[..., Any]:
    """cfg_of(run_dir, "key=value", …): a DreamBooth run on the finished run."""

    def make(run_dir: Path, *changes: str) -> Any:
        lines = (f"init_from={finished_run}", *PRIOR, *changes)
        last = {line.partition("=")[0]: line for line in lines}
        return tiny_cfg(run_dir, *last.values())

    return make


def members(folder: Path) -> dict[str, bytes]:
    found = {}
    for path in sorted(folder.glob("*.tar")):
        with tarfile.open(path) as tar:
            for member in tar:
                file = tar.extractfile(member)
                assert file is not None
                found[member.name] = file.read()
    return found


def own_shards(folder: Path, pixels: list[Image.Image | bytes]) -> Path:
    class Given:
        def __len__(self) -> int:
            return len(pixels)

        def items(self, start: int = 0) -> Any:
            for number, picture in enumerate(pixels[start:], start):
                yield Sample(f"own-{number}", picture, "a thing")

        def spec(self) -> dict[str, Any]:
            return {"source": "own"}

    ShardWriter(out=folder, progress=False).write(Given())
    return folder


# -- the pictures ---------------------------------------------------------------------------------


def test_class_pictures_are_those_of_the_pipeline(pictures: Path, finished_run: Path) -> None:
    index = json.loads((pictures / "index.json").read_text())
    assert (index["complete"], index["samples"]) == (True, 20)
    found = members(pictures)
    captions = [data.decode() for name, data in found.items() if name.endswith(".txt")]
    assert captions == [PROMPTS[i % 3] for i in range(20)]
    seeds = [ldm.rng.fold(0, "prior", i) for i in range(20)]
    drawn = ldm.load(finished_run).txt2img(captions, seeds=seeds, steps=2, size=(32, 32))
    kept = [Image.open(io.BytesIO(d)) for name, d in found.items() if name.endswith(".png")]
    for ours, theirs in zip(kept, drawn, strict=True):
        assert np.abs(np.asarray(ours).astype(int) - np.asarray(theirs).astype(int)).max() <= 1


def test_drawing_goes_on_after_the_last_finished_shard(
    pictures: Path,
    cfg_of: Callable[..., Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = tmp_path / "pictures"
    cfg = cfg_of(tmp_path / "run", f"training.prior.folder={folder}")
    load, asked = prior._pipeline, []

    class Failing:
        def __init__(self, left: int) -> None:
            self.pipe, self.left = load(cfg), left

        def txt2img(self, prompts: list[str], **options: Any) -> Any:
            if not self.left:
                raise MemoryError("no more")
            self.left -= 1
            asked.append(len(prompts))
            return self.pipe.txt2img(prompts, **options)

    monkeypatch.setattr(prior, "_pipeline", lambda _: Failing(1))
    with pytest.raises(MemoryError):
        draw_class_pictures(cfg)
    monkeypatch.setattr(prior, "_pipeline", lambda _: Failing(2))
    draw_class_pictures(cfg)
    assert asked == [16, 12]  # of the 16 that were done, the first shard of 8 was finished
    assert members(folder).keys() == members(pictures).keys()
    monkeypatch.setattr(prior, "_pipeline", lambda _: pytest.fail("all are there"))
    draw_class_pictures(cfg)


def test_of_several_processes_one_draws(
    cfg_of: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cfg = cfg_of(tmp_path / "run")
    load, loaded = prior._pipeline, []
    monkeypatch.setattr(prior, "_pipeline", lambda c: loaded.append(1) or load(c))
    with ThreadPoolExecutor(3) as pool:
        for done in [pool.submit(draw_class_pictures, cfg) for _ in range(3)]:
            done.result()
    assert len(loaded) == 1
    assert len(list((tmp_path / "run" / "prior").glob("*.tar"))) == 3


# -- the loss -------------------------------------------------------------------------------------


def mixture(quotas: list[int]) -> Interleaved:
    orders = [Order((7,), seed=n) for n in range(len(quotas))]
    turns = Turns(quotas, seed=3, purpose="mixture")
    return Interleaved(orders, turns, first_shard=list(range(len(quotas))), length=14)


def test_the_loss_is_the_paper_s_and_no_matter_how_a_batch_is_cut() -> None:
    loss = PriorLoss(mixture([1, 1]), weight=0.3)
    losses, index = torch.rand(12, dtype=torch.float64), torch.arange(24, 36)
    rows = loss.class_rows(2, 12)
    assert rows.sum() == 6
    whole = loss(losses, index, batch_number=2, batch_size=12)
    expected = losses[~rows].mean() + 0.3 * losses[rows].mean()
    assert torch.allclose(whole["loss"], expected, rtol=1e-12)
    assert torch.allclose(whole["loss_prior"], losses[rows].mean(), rtol=1e-12)
    assert torch.allclose(whole["loss_instance"], losses[~rows].mean(), rtol=1e-12)
    parts = [
        loss(losses[r::2][m : m + 2], index[r::2][m : m + 2], batch_number=2, batch_size=12)["loss"]
        for r in (0, 1)
        for m in (0, 2, 4)
    ]
    assert torch.allclose(torch.stack(parts).mean(), expected, rtol=1e-12)


@pytest.mark.parametrize(("share", "expected"), [(0.5, [1, 1]), (0.25, [3, 1]), (0.2, [4, 1])])
def test_every_batch_holds_the_ratio(
    share: float, expected: list[int], cfg_of: Callable[..., Any], pictures: Path, tmp_path: Path
) -> None:
    line = [f"training.prior.folder={pictures}", f"training.prior.share={share}"]
    data = open_training_data(cfg_of(tmp_path / "run", *line))
    assert data.train.order.turns.quotas.tolist() == expected
    run, first = sum(expected), data.train.order.first_shard[-1]
    loss = PriorLoss(data.train.order, weight=1.0)
    assert loss.share == share
    for batch in range(20):
        rows = loss.class_rows(batch, run).tolist()
        assert sum(rows) == expected[-1]
        places = [data.train.order.at(batch * run + i)[1] for i in range(run)]
        assert [place >= first for place in places] == rows
    drawn = data.train.batch(torch.arange(run))
    for caption, of_class in zip(drawn.captions, loss.class_rows(0, run).tolist(), strict=True):
        assert (caption in PROMPTS) or not of_class


def test_a_light_weight_is_another_run_than_a_heavy_one(
    cfg_of: Callable[..., Any], pictures: Path, document: Callable[..., Any], tmp_path: Path
) -> None:
    states, rows = [], []
    for weight in (1, 1, 4):
        run_dir = tmp_path / f"run{len(states)}"
        line = (f"training.prior.folder={pictures}", f"training.prior.weight={weight}")
        assert app.train(cfg_of(run_dir, *line)) == 0
        states.append(document(run_dir)["state_dict"])
        rows.append((run_dir / "metrics.csv").read_text().splitlines()[:2])
    same = [torch.equal(states[0][name], states[1][name]) for name in states[0]]
    assert all(same)
    assert not all(torch.equal(states[0][name], states[2][name]) for name in states[0])
    named = dict(zip(rows[2][0].split(","), map(float, rows[2][1].split(",")), strict=True))
    parts = named["train/loss_instance"] + 4 * named["train/loss_prior"]
    assert named["train/loss"] == pytest.approx(parts, rel=1e-5)
    cfg = cfg_of(tmp_path / "run0", "resume=auto", "training.prior.weight=2",
                 "training.max_samples=40", f"training.prior.folder={pictures}")  # fmt: skip
    with pytest.raises(ConfigError, match=r"data\.prior\.weight was 1"):
        app.train(cfg)


# -- runs -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_an_interrupted_run_goes_on_bit_for_bit(
    kind: str,
    cfg_of: Callable[..., Any],
    pictures: Path,
    document: Callable[..., Any],
    differences: Callable[[Any, Any], list[str]],
    tmp_path: Path,
) -> None:
    line = (*KINDS[kind], f"training.prior.folder={pictures}", "training.micro_batch=2")
    whole = tmp_path / "whole"
    assert app.train(cfg_of(whole, *line)) == 0
    part = Path(shutil.copytree(whole, tmp_path / "part", symlinks=True))
    for path in (part / "checkpoints").glob("*32*"):
        path.unlink()
    (part / "checkpoints" / "last.ckpt").unlink()
    files.point_last(part / "checkpoints" / "s000000016.ckpt")
    assert app.train(cfg_of(part, *line, "resume=auto")) == 0
    for key in EXACT:
        assert differences(document(part)[key], document(whole)[key]) == []


def test_two_processes_are_one(
    cfg_of: Callable[..., Any],
    finished_run: Path,
    script: Callable[..., Any],
    document: Callable[..., Any],
    metrics: Callable[..., list[dict[str, float]]],
    tmp_path: Path,
) -> None:
    two = tmp_path / "two"
    line = (f"init_from={finished_run}", *PRIOR, "training.trainer.devices=2")
    done = script("train", *line, f"run_dir={two}", cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stderr.count("wrote ") == 1  # drawn once
    assert app.train(cfg_of(tmp_path / "one")) == 0
    for row, other in zip(metrics(two), metrics(tmp_path / "one"), strict=True):
        for name in ("train/loss", "train/loss_prior", "train/loss_instance"):
            assert row[name] == pytest.approx(other[name], rel=1e-4), name


# -- bad input ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (("training.prior.count=0",), "must be 2 or more"),
        (("training.prior.share=1",), "allowed: 0.001 to 0.999"),
        (("training.prior.weight=0",), "give a positive number"),
        (("training.prior.steps=0",), "steps=0"),
        (("training.prior.prompts=[]",), "give one text or more"),
        (("training.prior.cuont=3",), "did you mean 'count'"),
        (("training.prior.prompts=nowhere.txt",), "is no file; give a list"),
        (("init_from=null",), "are drawn by init_from"),
        (('data.templates=["a photo of {}"]',), "would be for the class pictures too"),
        (("data.buckets.max_aspect=2",), "class pictures are square"),
        (("data.overfit_samples=4",), "overfit_samples"),
    ],
)
def test_what_contradicts_is_said_before_anything_is_drawn(
    changes: tuple[str, ...], message: str, cfg_of: Callable[..., Any], tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=message):
        app.train(cfg_of(tmp_path / "run", *changes))
    assert not list(tmp_path.rglob("*.tar"))


def test_a_folder_of_something_else_is_left_alone(
    cfg_of: Callable[..., Any], pictures: Path, tmp_path: Path
) -> None:
    other = tmp_path / "photos"
    other.mkdir()
    Image.new("RGB", (32, 32)).save(other / "dog.png")
    with pytest.raises(ConfigError, match=r"holds no shards, but dog\.png"):
        app.train(cfg_of(tmp_path / "run", f"training.prior.folder={other}"))
    changes = (f"training.prior.folder={pictures}", "training.prior.guidance=2.5")
    with pytest.raises(ConfigError, match=r"other class pictures \(guidance was None"):
        app.train(cfg_of(tmp_path / "run", *changes))
    copy = Path(shutil.copytree(pictures, tmp_path / "copy"))
    (copy / "shard-00001.tar").unlink()
    with pytest.raises(ConfigError, match="not whole any more; remove it"):
        app.train(cfg_of(tmp_path / "run", f"training.prior.folder={copy}"))


def test_own_class_pictures_may_be_broken_but_not_too_few(
    cfg_of: Callable[..., Any], tmp_path: Path
) -> None:
    good: list[Any] = [Image.new("RGB", (32, 32), (10 * i, 80, 9)) for i in range(8)]
    folder = own_shards(tmp_path / "own", good)
    line = (f"training.prior.folder={folder}", "training.prior.count=8")
    with pytest.raises(ConfigError, match=r"holds 8 class pictures that can be used.*count=9"):
        app.train(cfg_of(tmp_path / "few", *line[:1], "training.prior.count=9"))
    path = folder / "shard-00000.tar"
    with tarfile.open(path) as tar:  # the third picture's bytes become noise
        member = tar.getmember("00000002-own-2.png")
    with path.open("r+b") as file:
        file.seek(member.offset_data)
        file.write(b"\x00" * member.size)
    for cached in folder.glob("*.index"):
        cached.unlink()
    run_dir = tmp_path / "run"
    assert app.train(cfg_of(run_dir, *line)) == 0
    assert member.name.removesuffix(".png") in (run_dir / "quarantine.jsonl").read_text()


def test_prompts_are_a_list_or_the_lines_of_a_file(tmp_path: Path) -> None:
    path = tmp_path / "prompts.txt"
    path.write_text("a red circle\n\n a star \n")
    assert read_prompts(str(path)) == ["a red circle", "a star"]
    assert read_prompts(["x"]) == ["x"]
    path.write_text("\n")
    with pytest.raises(ValueError, match="holds no prompt"):
        read_prompts(str(path))
    assert not PriorSettings().used
