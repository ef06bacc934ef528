"""Does the doctor find what would end a run, before it begins, and nothing where all is well?"""

from __future__ import annotations

import html
import io
import json
import shutil
import tarfile
from collections import namedtuple
from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from ldm import app
from ldm.app.doctor import cost, course, encoders, examine, order, resuming, shards, stored
from ldm.app.doctor.building import configuration, elsewhere, for_here
from ldm.app.doctor.findings import Chapter
from ldm.app.doctor.settings import DoctorSettings, split
from ldm.app.job import Job, build_job
from ldm.cli import ConfigError
from ldm.data.locate import expand
from ldm.parts import build
from ldm.training import run_folder
from ldm.training.nonfinite import NonFiniteError
from ldm.types import Conditioning

Config = dict[str, Any]
HERE = DoctorSettings(k=4)
BROKEN = ("training.optim.lr=1e25", "training.save_every=8", "training.micro_batch=4")


@pytest.fixture(scope="session")
def doctor_cfg(
    composed: Callable[..., Config], tiny_line: Callable[..., list[str]]
) -> Callable[..., Config]:
    """doctor_cfg(run_dir, "key=value", …): conf/doctor.yaml for a tiny run."""

    def make(run_dir: Path, *changes: str) -> Config:
        given = any(change.startswith("doctor.k=") for change in changes)
        line = tiny_line(*([] if given else ["doctor.k=4"]), *changes)
        return {**composed(*line, config="doctor"), "run_dir": str(run_dir)}

    return make


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory, doctor_cfg: Callable[..., Config]) -> Job:
    cfg, _, _ = split(doctor_cfg(tmp_path_factory.mktemp("doctor") / "run"))
    return build_job(cfg)


@pytest.fixture
def cfg(tmp_path: Path, doctor_cfg: Callable[..., Config]) -> Config:
    """Of train.py alone."""
    return split(doctor_cfg(tmp_path / "run"))[0]


def said(out: Path, name: str = "doctor") -> Config:
    """The JSON, strict."""

    def refuse(word: str) -> None:
        raise AssertionError(word)

    found = json.loads((out / f"{name}.json").read_text(), parse_constant=refuse)
    assert isinstance(found, dict)
    return found


def chapter_of(document: Config, title: str) -> Config:
    return next(chapter for chapter in document["chapters"] if chapter["title"] == title)


def texts(chapter: Chapter, level: str) -> list[str]:
    return [str(finding) for finding in chapter.findings if finding.level == level]


# -- the whole ------------------------------------------------------------------------------------


def test_a_good_run_has_a_page_and_a_plan_that_training_follows(
    doctor_cfg: Callable[..., Config], tmp_path: Path
) -> None:
    cfg = doctor_cfg(tmp_path / "run", "training.max_samples=1600")
    assert app.doctor(cfg) == 0
    document = said(tmp_path / "run" / "doctor")
    assert document["format"] == "ldm-doctor/1"
    assert [c["title"] for c in document["chapters"]] == [
        "Configuration",
        "Parts",
        "Training shards",
        "Validation shards",
        "Samples and processes",
        "Encoders",
        "Plan",
        "Memory and time",
    ]
    assert {c["title"]: c["level"] for c in document["chapters"] if c["level"] != "ok"} == {}
    train = chapter_of(document, "Training shards")["facts"]
    assert (train["usable"], train["share_cut"], train["share_upscaled"]) == (96, 0, 0)
    assert chapter_of(document, "Plan")["facts"]["steps"] == 200
    assert 30 < chapter_of(document, "Encoders")["facts"]["psnr_mean"] < 60
    assert len(chapter_of(document, "Encoders")["facts"]["strip"]) == 8
    page = (tmp_path / "run" / "doctor" / "doctor.html").read_text()
    assert page.count("data:image/png") >= 16  # 4 before and after, 8 levels
    assert "http://" not in page.replace("http://www.w3.org", "")
    # the folder is not a run yet, so that train.py takes it
    assert not (tmp_path / "run" / "card.json").exists()


def test_all_that_is_wrong_comes_at_once(doctor_cfg: Callable[..., Config], tmp_path: Path) -> None:
    """Keys, values, and shards, although the first alone would end a run."""
    cfg = doctor_cfg(
        tmp_path / "run",
        "training.optim.lr=-1",
        "training.nonfinit=skip",
        f"data.train.shards={tmp_path / 'nowhere'}",
    )
    assert app.doctor(cfg) == 1
    document = said(tmp_path / "run" / "doctor")
    errors = [f["text"] for c in document["chapters"] for f in c["findings"]]
    assert document["level"] == "error"
    for part in ("optim.lr=-1", "did you mean 'nonfinite'?", "nowhere"):
        assert any(part in error for error in errors), part


def test_missing_shards_do_not_hide_a_missing_vae(
    doctor_cfg: Callable[..., Config], tmp_path: Path
) -> None:
    gone = (f"data.train.shards={tmp_path / 'nowhere'}", f"models.vae_weights={tmp_path / 'vae'}")
    cfg, settings, _ = split(doctor_cfg(tmp_path / "run", *gone))
    chapters = examine.examine(cfg, settings)
    assert [c.title for c in chapters] == ["Configuration", "Parts", "Training shards"]
    assert "vae" in texts(chapters[1], "error")[0]
    assert len(texts(chapters[1], "error")) == 1
    assert "nowhere" in texts(chapters[2], "error")[0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("doctor.gpu=h1000", "nearest: h100"),
        ("doctor.k=0", "doctor.k=0; 1 picture or more"),
        ("doctor.scan=some", "allowed: full, headers"),
        ("doctor.processes=0", "doctor.processes=0"),
        ("doctor.gpus=a100", "did you mean 'gpu'"),
        ("replay=[1]", "replay="),
    ],
)
def test_its_own_keys_are_checked(
    doctor_cfg: Callable[..., Config], tmp_path: Path, change: str, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        app.doctor(doctor_cfg(tmp_path, change))


def test_a_gpu_that_is_elsewhere_is_no_error(
    doctor_cfg: Callable[..., Config], tmp_path: Path
) -> None:
    cfg, _, _ = split(doctor_cfg(tmp_path, "training.trainer.accelerator=gpu"))
    named = DoctorSettings(gpu="a100")
    assert configuration(elsewhere(cfg, named)).level == "ok"
    expected = "ok" if torch.cuda.is_available() else "error"
    assert configuration(elsewhere(cfg, HERE)).level == expected


# -- chapter by chapter ---------------------------------------------------------------------------


def damaged(source: Path, target: Path, bad: int) -> list[str]:
    """The shards with the first `bad` pictures cut off."""
    target.mkdir()
    left = bad
    for shard in sorted(source.glob("*.tar")):
        with tarfile.open(shard) as old, tarfile.open(target / shard.name, "w") as new:
            for info in old:
                data = old.extractfile(info)
                assert data is not None
                if info.name.endswith(".png") and left:
                    info.size, left = 40, left - 1
                new.addfile(info, data)
    return expand(target)


@pytest.mark.parametrize(("bad", "level"), [(3, "warning"), (20, "error")])
def test_corrupt_pictures_are_counted_and_above_the_ratio_end_the_run(
    cfg: Config, tmp_path: Path, train_shards: Path, bad: int, level: str
) -> None:
    listed = damaged(train_shards, tmp_path / "bad", bad)
    chapter = shards.shards("Training shards", listed, build(cfg["data"]), HERE, None)
    assert chapter.level == level
    assert f"{bad} of 96 samples cannot be used" in texts(chapter, level)[0]
    assert len(chapter.facts["bad"]) == bad


def test_what_words_and_sizes_lose_is_said(cfg: Config, job: Job, tmp_path: Path) -> None:
    """Captions of 60 words in an encoder of 24 tokens; pictures of 32 px trained at 64."""
    assert job.encoders is not None
    from ldm.data.make.shapes import ShapesSource
    from ldm.data.make.writer import ShardWriter

    ShardWriter(out=tmp_path / "a", progress=False).write(ShapesSource(count=20))
    made = next((tmp_path / "a").glob("*.tar"))
    with tarfile.open(made) as old, tarfile.open(tmp_path / "long.tar", "w") as new:
        for info in old:
            file = old.extractfile(info)
            assert file is not None
            data = file.read() + b" red" * 60 * info.name.endswith(".txt")
            info.size = len(data)
            new.addfile(info, io.BytesIO(data))
    listed = [str(tmp_path / "long.tar")]
    config = replace(build(cfg["data"]), size=64)
    chapter = shards.shards("Training shards", listed, config, HERE, job.encoders.text)
    assert chapter.facts["share_cut"] == 1
    assert chapter.facts["share_upscaled"] == 1
    found = texts(chapter, "warning")
    assert any("100.0% of the captions are longer than the 24 tokens" in text for text in found)
    assert any("smaller than the 64 px" in text for text in found)
    assert sum(chapter.facts["token_histogram"].values()) == 20
    headers = shards.shards("x", listed, config, DoctorSettings(scan="headers"), None)
    assert headers.facts["share_upscaled"] == 1
    assert headers.facts["copies of a picture"] == "not read"


def test_training_on_the_validation_shards_is_seen() -> None:
    chapter = Chapter("x")
    shards.overlap(["a.tar", "b.tar"], ["b.tar"], chapter)
    assert "1 shards are trained and validated on, b.tar" in texts(chapter, "warning")[0]


def test_processes_that_do_not_divide_the_batch(cfg: Config, job: Job) -> None:
    plan, chapter = order.order(cfg, job.data, DoctorSettings(processes=3))
    assert plan is None
    assert "use a batch_size that 3 divides" in texts(chapter, "error")[0]
    plan, chapter = order.order(cfg, job.data, DoctorSettings(processes=4))
    assert plan is not None
    assert (plan.micro_batch, chapter.facts["samples left over"][:2]) == (2, "0,")


def test_a_vae_that_loses_the_picture_and_a_scale_that_is_wrong(
    cfg: Config, job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    codec: Any = job.encoders.codec  # type: ignore[union-attr]
    monkeypatch.setattr(codec.vae, "decode", lambda z: torch.zeros(len(z), 3, 32, 32))
    monkeypatch.setattr(codec, "scale", 5 * codec.scale)
    chapter = encoders.encoders(job, cfg, 2)
    assert any("come back from the VAE" in text for text in texts(chapter, "warning"))
    (told,) = texts(chapter, "error")
    assert "the schedules are made for 1" in told
    monkeypatch.undo()
    assert encoders.encoders(job, cfg, 2).level == "ok"


def test_captions_that_do_not_reach_the_network(
    cfg: Config, job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts: Any = job.encoders
    monkeypatch.setattr(
        parts, "conditioning", lambda batch: Conditioning(torch.ones(len(batch), 24, 128))
    )
    found = texts(encoders.encoders(job, cfg, 4), "error")
    assert found[0].startswith("different captions have the same context")
    null = parts.null().context
    monkeypatch.setattr(
        parts, "conditioning", lambda batch: Conditioning(null.expand(len(batch), -1, -1))
    )
    assert texts(encoders.encoders(job, cfg, 1), "error")[0].startswith("captions have the null")
    monkeypatch.undo()
    cfg["training"]["caption_dropout"] = 0.0
    assert "caption_dropout=0" in texts(encoders.encoders(job, cfg, 1), "warning")[0]


def test_a_disk_that_is_too_small(cfg: Config, job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    """keep + 1 checkpoints: the new one is there before the oldest goes."""
    plan, _ = order.order(cfg, job.data, HERE)
    assert plan is not None
    needed = course.course(cfg, plan, job).facts["disk_needed_bytes"]
    trained = sum(p.numel() for p in job.module.parameters())
    assert 3 * 16 * trained < needed < 3 * 16 * trained + 20e6
    usage = namedtuple("usage", "total used free")
    for free, level in ((needed - 1, "error"), (needed * 1.1, "warning")):
        monkeypatch.setattr(shutil, "disk_usage", lambda _, free=free: usage(1, 1, int(free)))
        disk = [f for f in course.course(cfg, plan, job).findings if "free" in f.advice]
        assert [f.level for f in disk] == [level]


def test_a_course_that_makes_no_sense_is_warned_of(cfg: Config, job: Job) -> None:
    cfg["training"]["optim"]["warmup"] = 64
    cfg["training"]["ema"]["half_life"] = 1000
    plan, _ = order.order(cfg, job.data, HERE)
    assert plan is not None
    found = "\n".join(texts(course.course(cfg, plan, job), "warning"))
    for part in ("warm-up takes 64", "1,000 samples old", "the run has 4 steps"):
        assert part in found


def test_a_run_that_does_not_fit_the_gpu(
    cfg: Config, job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ldm.training import estimate as module

    original, asked = module.estimate, {}

    def too_large(config: Any, **options: Any) -> Any:
        asked.update(options)
        return replace(original(config, **options), fits=False)

    monkeypatch.setattr(module, "estimate", too_large)
    plan, _ = order.order(cfg, job.data, DoctorSettings(processes=2))
    assert plan is not None
    chapter = cost.cost(cfg, plan, job, "t4")
    assert texts(chapter, "error")[0].startswith("it would not fit")
    assert (asked["devices"], asked["micro_batch"], asked["tokens"]) == (2, 4, 24)
    assert asked["latent_size"] == (8, 8)
    assert asked["dtype"] == "fp32"
    assert asked["trainable"] is None
    trained = sum(p.numel() for p in job.module.parameters())
    assert chapter.facts["memory_bytes"]["weights"] == 4 * trained
    assert cost.cost(cfg, plan, job, None).level == "ok"


def test_what_resume_would_find_is_said(
    doctor_cfg: Callable[..., Config], finished_run: Path, tmp_path: Path
) -> None:
    """A folder with a run in it: an error without resume; with it, unsafe changes are."""
    run_dir = Path(shutil.copytree(finished_run, tmp_path / "run", symlinks=True))
    same = ("training.val_every=16", "training.sample_every=16", "training.log_every=4")
    cfg = split(doctor_cfg(run_dir, *same))[0]
    job = build_job(
        for_here(cfg), resuming.start_of({**cfg, "resume": "auto"}, Chapter("")).checkpoint
    )

    def compared(lr: float = 0.002, **changes: Any) -> Chapter:
        now = {**deepcopy(cfg), **changes}
        now["training"]["optim"]["lr"] = lr
        chapter = Chapter("Resume")
        start = resuming.start_of(now, chapter)
        resuming.compare(now, job.card, start, chapter)
        assert "training.log_every" in [change["path"] for change in chapter.facts["changes"]]
        return chapter

    assert str(compared().findings[0]).startswith(f"run_dir={run_dir} holds a run already")
    assert texts(compared(resume="auto"), "ok") == ["goes on after 32 samples; 1 safe changes"]
    (told,) = texts(compared(0.1, resume="auto"), "error")
    assert "allow=[lr]" in told
    assert compared(0.1, resume="auto", allow=["lr"]).level == "ok"
    assert "make it another run" in texts(compared(0.1), "warning")[0]
    (run_dir / "config.yaml").write_text("a: [")
    chapter = Chapter("Resume")
    resuming.compare({**cfg, "resume": "auto"}, job.card, run_folder.Start(None, 0), chapter)
    assert "config.yaml cannot be read" in texts(chapter, "error")[0]


# -- replay ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def broken(tmp_path_factory: pytest.TempPathFactory, tiny_cfg: Callable[..., Config]) -> Path:
    """The folder of a run that ended after 16 samples; only to be read."""
    run_dir = tmp_path_factory.mktemp("runs") / "broken"
    with pytest.raises(NonFiniteError):
        app.train(tiny_cfg(run_dir, *BROKEN))
    return run_dir


def replay_cfg(
    doctor_cfg: Callable[..., Config], run_dir: Path, out: Path, *changes: str
) -> Config:
    report = run_dir / "reports" / "nonfinite-s000000016-rank0.json"
    line = (f"replay={report}", f"doctor.out={out}", *changes)
    return doctor_cfg(out / "not-this", *line)


def test_a_replay_shows_the_batch_of_the_report(
    doctor_cfg: Callable[..., Config], broken: Path, tmp_path: Path
) -> None:
    assert app.doctor(replay_cfg(doctor_cfg, broken, tmp_path)) == 0
    name = "replay-s000000016-rank0"
    document = said(tmp_path, name)
    assert document["verdict"] == "the batch was made again, and does what the report says"
    report = json.loads((broken / "reports" / "nonfinite-s000000016-rank0.json").read_text())
    samples = chapter_of(document, "Samples")["facts"]["samples"]
    for key in ("i", "key", "caption", "t", "loss", "latent_std"):
        assert [s[key] for s in samples] == [s[key] for s in report["samples"]], key
    assert chapter_of(document, "Samples")["facts"]["not_finite"] == list(range(8, 16))
    assert chapter_of(document, "Report and replay")["facts"]["differences"] == []
    page = html.unescape((tmp_path / f"{name}.html").read_text())
    assert page.count("data:image/png") >= 8
    assert all(f"{s['key']}: {s['caption']}" in page for s in report["samples"])


def test_without_the_checkpoint_before_it_the_weights_are_those_of_the_beginning(
    doctor_cfg: Callable[..., Config], broken: Path, tmp_path: Path
) -> None:
    run_dir = Path(shutil.copytree(broken, tmp_path / "run", symlinks=True))
    shutil.rmtree(run_dir / "checkpoints")
    assert app.doctor(replay_cfg(doctor_cfg, run_dir, tmp_path)) == 0
    chapter = chapter_of(said(tmp_path, "replay-s000000016-rank0"), "Report and replay")
    assert chapter["facts"]["weights"] == "that the run began with, 8 samples before the step"
    assert [f["level"] for f in chapter["findings"]] == ["ok", "warning"]
    assert chapter["findings"][1]["text"] == "the replayed step is finite"


def test_shards_that_have_changed_are_not_taken_for_the_same_batch(
    doctor_cfg: Callable[..., Config], broken: Path, train_shards: Path, tmp_path: Path
) -> None:
    """Two shards of one size have changed names."""
    run_dir = Path(shutil.copytree(broken, tmp_path / "run", symlinks=True))
    names = [shard.name for shard in sorted(train_shards.glob("*.tar"))]
    (tmp_path / "data").mkdir()
    for old, new in zip(names, reversed(names), strict=True):
        shutil.copy(train_shards / old, tmp_path / "data" / new)
    config = run_dir / "config.yaml"
    config.write_text(config.read_text().replace(str(train_shards), str(tmp_path / "data")))
    assert app.doctor(replay_cfg(doctor_cfg, run_dir, tmp_path)) == 1
    document = said(tmp_path, "replay-s000000016-rank0")
    assert document["verdict"].endswith("this is not the batch of the report")


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("training.ema._target_", "ldm.io.checkpoint.write_text", "is no part that conf/ names"),
        ("models.vae", {"_target_": "os.system"}, "_target_=os.system is no part"),
        ("name", "${oc.env:HOME}", "would be interpolated"),
        ("data.train.shards", "pipe:touch PWNED", "read by a program"),
        ("data.train.shards", "{pipe,x}:touch PWNED", "read by a program"),
        ("data.val.shards", ["a.tar", "gs://x'; touch PWNED; '/a.tar"], "read by a program"),
        ("training.batch_size", 16, "batch_size is 8 in the report, 16 in config.yaml"),
        ("seed", 5, "seed is 0 in the report, 5 in config.yaml"),
        ("training.optim.lr", -1, "lr=-1"),
    ],
)
def test_a_run_folder_from_elsewhere_runs_nothing(
    doctor_cfg: Callable[..., Config],
    broken: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    path: str,
    value: Any,
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    run_dir = tmp_path / "run"
    shutil.copytree(broken / "reports", run_dir / "reports")
    found = yaml.safe_load((broken / "config.yaml").read_text())
    node = found
    *parts, last = path.split(".")
    for part in parts:
        node = node[part]
    node[last] = value
    (run_dir / "config.yaml").write_text(yaml.safe_dump(found))
    with pytest.raises(ConfigError, match=message):
        app.doctor(replay_cfg(doctor_cfg, run_dir, tmp_path))
    assert not (tmp_path / "PWNED").exists()


def test_a_command_that_is_given_again_may_be_run() -> None:
    cfg = {"data": {"train": {"shards": "pipe:cat x.tar"}, "val": {"shards": None}}}
    assert stored._unsafe(cfg, cfg) == []
    assert len(stored._unsafe(cfg, {"data": {"train": {"shards": "x.tar"}}})) == 1


@pytest.mark.parametrize("text", ["", "[1]", ": :", "\udc80"])
def test_a_config_that_cannot_be_read(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.yaml").write_text(text, errors="surrogateescape")
    with pytest.raises(ValueError, match=r"config\.yaml"):
        stored.stored_config(tmp_path, {})


@pytest.mark.slow
def test_the_script_ends_with_1_and_one_line_for_bad_input(
    script: Callable[..., Any], tmp_path: Path
) -> None:
    done = script("doctor", "doctor.gpu=h1000", f"run_dir={tmp_path}")
    assert done.returncode == 1
    assert "error: doctor.gpu" in done.stderr
    done = script("doctor", f"replay={tmp_path}/reports/x.json")
    assert done.returncode == 1
    assert "does not exist" in done.stderr
    assert "Traceback" not in done.stderr
