"""Is a run measured where it should be, the same on any number of ranks, and its best kept?"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import ldm
from ldm import app
from ldm.app.evaluation import training
from ldm.app.fit import pipeline_of
from ldm.app.job import Job
from ldm.cli import ConfigError
from ldm.io import checkpoint as files
from ldm.training.callbacks.evaluation import Evaluation, EvaluationSettings
from ldm.training.launch import Processes
from ldm.types import Conditioning

Config = dict[str, Any]
KEY = "training.callbacks.evaluation"
MEASURED = (f"{KEY}.every=8", f"{KEY}.samples=4", f"{KEY}.batch_size=2", f"{KEY}.steps=1")


@pytest.fixture(autouse=True)
def own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "cache"))


def scripted(monkeypatch: pytest.MonkeyPatch, values: dict[int, float]) -> None:
    """The metric is what `values` says after so many samples seen, instead of being measured."""
    original = Evaluation.run

    def run(self: Evaluation, trainer: Any, module: Any) -> dict[str, float]:
        self._measure = lambda *_: {"cmmd": values[module.samples_seen], "clip_score": 1.0}
        return original(self, trainer, module)

    monkeypatch.setattr(Evaluation, "run", run)


def test_numbers_are_rows_of_metrics_csv_and_training_is_untouched(
    tiny_run: Callable[..., Path],
    tmp_path: Path,
    metrics: Callable[[Path], list[dict[str, float]]],
    document: Callable[[Path], Config],
    differences: Callable[[Any, Any], list[str]],
) -> None:
    plain = tiny_run(tmp_path / "plain", "training.max_samples=16")
    measured = tiny_run(tmp_path / "measured", "training.max_samples=16", *MEASURED)
    rows = [row for row in metrics(measured) if "eval/cmmd" in row]
    assert [row["samples_seen"] for row in rows] == [8, 16]
    assert {"eval/cmmd", "eval/clip_score", "eval/took_s"} <= set(rows[0])
    for key in ("state_dict", "ema", "optimizer_states"):
        assert differences(document(plain)[key], document(measured)[key]) == []


def test_the_numbers_are_those_of_evaluate(
    tiny_run: Callable[..., Path],
    composed: Callable[..., Config],
    tmp_path: Path,
    metrics: Callable[[Path], list[dict[str, float]]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run = tiny_run(tmp_path / "run", "training.max_samples=8", *MEASURED)
    line = ("samples=4", "batch_size=2", "steps=1", "metrics=[cmmd,clip_score]", "strips=0")
    out = tmp_path / "out"
    monkeypatch.setattr("ldm.evaluation.page.write_report", lambda folder: folder / "index.html")
    cfg = composed(*line, f"checkpoint={run}", f"out={out}", "device=cpu", config="evaluate")
    assert app.evaluate(cfg) == 0
    (entry,) = json.loads((out / "metrics.json").read_text())["entries"]
    (row,) = [row for row in metrics(run) if "eval/cmmd" in row]
    for name in ("cmmd", "clip_score"):
        assert row[f"eval/{name}"] == pytest.approx(entry["metrics"][name]["value"], rel=1e-6)


def test_the_best_is_kept_and_never_rotated_away(
    tiny_run: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lower is better: 16 is the best, is not among the last ones, and loads."""
    scripted(monkeypatch, {8: 3.0, 16: 1.0, 24: 2.0, 32: 1.5, 40: 1.2})
    line = ("training.max_samples=40", "training.save_every=8", "training.keep_checkpoints=1")
    run = tiny_run(tmp_path / "run", *line, *MEASURED, f"{KEY}.best=cmmd")
    folder = run / "checkpoints"
    assert (folder / "best.ckpt").resolve().name == "s000000016.ckpt"
    assert [path.name for path in files.list_checkpoints(folder)] == [
        "s000000016.ckpt",
        "s000000040.ckpt",
    ]
    assert files.read(folder / "best.ckpt")["samples_seen"] == 16
    assert ldm.load(folder / "best.ckpt", device="cpu").card["samples_seen"] == 16


def test_the_best_survives_a_resume(
    tiny_run: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After it 2.0 is no new best, 0.5 is."""
    scripted(monkeypatch, {8: 1.0, 16: 4.0, 24: 2.0, 32: 0.5})
    line = ("training.save_every=8", "training.keep_checkpoints=1", *MEASURED, f"{KEY}.best=cmmd")
    run = tiny_run(tmp_path / "run", "training.max_samples=16", *line)
    best = run / "checkpoints" / "best.ckpt"
    assert best.resolve().name == "s000000008.ckpt"
    tiny_run(run, "training.max_samples=24", *line, "resume=auto")
    assert best.resolve().name == "s000000008.ckpt"
    tiny_run(run, "training.max_samples=32", *line, "resume=auto")
    assert best.resolve().name == "s000000032.ckpt"
    state = files.read(best)["callbacks"]["Evaluation"]
    assert state == {"best": 0.5, "best_samples": 32}


def test_higher_is_better_where_it_is(
    tiny_run: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = Evaluation.run

    def run(self: Evaluation, trainer: Any, module: Any) -> dict[str, float]:
        self._measure = lambda *_: {"clip_score": float(module.samples_seen)}
        return original(self, trainer, module)

    monkeypatch.setattr(Evaluation, "run", run)
    line = ("training.max_samples=16", *MEASURED, f"{KEY}.best=clip_score")
    folder = tiny_run(tmp_path / "run", *line) / "checkpoints"
    assert (folder / "best.ckpt").resolve().name == "s000000016.ckpt"


class Numbers:
    """Stands for a Pipeline: a picture is its caption's number and its seed."""

    device = torch.device("cpu")

    class text:
        gradients = False

        @staticmethod
        def encode(prompts: list[str]) -> Conditioning:
            return Conditioning(torch.tensor([float(prompt) for prompt in prompts]))

        @staticmethod
        def null(count: int) -> Conditioning:
            return Conditioning()

    class codec:
        @staticmethod
        def decode(x0: torch.Tensor) -> torch.Tensor:
            return x0

    def __init__(self) -> None:
        self.sizes: set[int] = set()

    def latents(
        self, cond: Conditioning, null: Conditioning, seeds: list[int], **_: Any
    ) -> torch.Tensor:
        assert cond.context is not None
        self.sizes.add(len(seeds))
        values = torch.stack([cond.context, torch.tensor(seeds).float(), 0 * cond.context], dim=1)
        return (values / 127.5 - 1)[:, :, None, None].expand(-1, -1, 2, 2)


@pytest.mark.parametrize("world", [1, 2, 3])
def test_every_rank_draws_its_part_in_full_batches(
    tiny_job: Callable[..., Job], ranks: Callable[..., Any], world: int
) -> None:
    module = tiny_job().module
    captions = [str(10 + k) for k in range(7)]
    settings = EvaluationSettings(samples=7, first_seed=100, batch_size=3)
    seen: dict[int, tuple[int, int]] = {}

    def measure(pictures: list[Image.Image], processes: Processes) -> dict[str, float]:
        mine = processes.share(range(7))
        for index, picture in zip(mine, pictures, strict=True):
            seen[index] = picture.getpixel((0, 0))[:2]  # type: ignore[index]
        return {"cmmd": 1.0}

    for rank in range(world):
        pipeline = Numbers()
        callback = Evaluation(
            pipeline,  # type: ignore[arg-type]
            captions,
            settings,
            every=8,
            prepare=lambda _: None,
            measure=measure,
        )
        module.trainer = None
        trainer = ranks(world).trainer(rank)
        module._fabric = None
        module.record = lambda metrics: None
        callback.run(trainer, module)
        callback.run(trainer, module)
        assert pipeline.sizes == {3}
    assert seen == {k: (10 + k, 100 + k) for k in range(7)}


def test_what_cannot_be_measured_ends_the_run_before_its_first_step(
    tiny_run: Callable[..., Path], tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match="fd needs 129 pictures or more; 4 pictures are drawn"):
        tiny_run(tmp_path / "run", *MEASURED, f"{KEY}.metrics=[fd]")
    assert not list((tmp_path / "run" / "checkpoints").glob("*.ckpt"))


@pytest.mark.parametrize(
    ("change", "part"),
    [
        ("metrics=[fdd]", "did you mean 'fd'"),
        ("metrics=[loss]", "training.val_every"),
        ("metrics=[fid]", "extractor=inception"),
        ("best=kid", "best='kid' is not measured; one of cmmd, clip_score"),
        ("samples=1", "samples=1; give 2 or more"),
        ("weights=best", "weights='best'; allowed: ema, raw"),
        ("every=often", "every='often'"),
        ("sampler=dddim", "'dddim' is unknown"),
        ("smaples=3", "did you mean 'samples'"),
        ("every=8 task=vae", "task=vae draws no pictures"),
        ("every=8 data.format=latents", "data.format=latents has no pictures"),
    ],
)
def test_bad_values_are_found_by_the_check(
    tiny_cfg: Callable[..., Config], tmp_path: Path, change: str, part: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        app.train(tiny_cfg(tmp_path / "run", *f"{KEY}.{change}".split()))
    assert part in str(caught.value)


def test_no_evaluation_is_no_callback(tiny_cfg: Callable[..., Config], tmp_path: Path) -> None:
    job = app.fit.build_job(tiny_cfg(tmp_path / "run"))  # type: ignore[attr-defined]
    cfg = tiny_cfg(tmp_path / "run")
    assert training.evaluation_callback(cfg, job.data, pipeline_of(job), None) is None  # type: ignore[arg-type]


@pytest.mark.slow
def test_two_processes_measure_what_one_does(
    script: Callable[..., Any],
    tiny_run: Callable[..., Path],
    tmp_path: Path,
    metrics: Callable[[Path], list[dict[str, float]]],
) -> None:
    line = ("training.max_samples=16", *MEASURED, f"{KEY}.metrics=[cmmd,clip_score,judge,kid]")
    two = tmp_path / "two"
    devices = "training.trainer.devices=2"
    done = script("train", *line, f"run_dir={two}", devices, f"{KEY}.best=cmmd", cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    one = tiny_run(tmp_path / "one", *line, f"{KEY}.best=cmmd")
    first, second = ([row for row in metrics(run) if "eval/cmmd" in row] for run in (one, two))
    assert len(first) == len(second) == 2
    for row, other in zip(first, second, strict=True):
        for name in ("eval/cmmd", "eval/clip_score", "eval/kid"):
            assert other[name] == pytest.approx(
                row[name], rel=1e-3
            )  # weights differ in a 7th digit
    assert (two / "checkpoints" / "best.ckpt").resolve().name == (
        one / "checkpoints" / "best.ckpt"
    ).resolve().name
