"""Is every model found under a name of its own, with the true pictures that go with it?"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ldm.app.evaluation.request import Request, listed, read_request
from ldm.app.evaluation.subjects import find_subjects, size_of
from ldm.app.evaluation.truths import truth_of
from ldm.evaluation.truth import DrawnShapes

Asked = Callable[..., Request]


@pytest.fixture
def asked(composed: Callable[..., dict[str, Any]]) -> Asked:
    """asked("key=value", …): the request of a command line."""

    def read(*changes: str) -> Request:
        return read_request(composed(*changes, config="evaluate"))

    return read


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, []),
        ("runs/a", ["runs/a"]),
        ("[runs/a, 'runs/b c' ,d]", ["runs/a", "runs/b c", "d"]),
        (["a"], ["a"]),
        ("[]", []),
    ],
)
def test_lists_of_paths(value: Any, expected: list[str]) -> None:
    assert listed(value) == expected


def test_without_anything_it_is_tiny_and_compare_stands_alone(asked: Asked) -> None:
    assert asked().paths == ["tiny"]
    assert asked("compare=[a,b]").paths == ["a", "b"]
    assert asked("checkpoint=c", "compare=[a,b]").paths == ["c", "a", "b"]


def test_the_line_beats_the_preset(asked: Asked) -> None:
    assert asked().preset.samples == 96
    assert asked("evaluation=thorough").preset.samples == 2000
    assert asked("evaluation=fid", "metrics=[kid]").preset.metrics == ["kid"]
    assert asked("samples=7").seeds == range(1000, 1007)


def test_equal_names_get_numbers(asked: Asked, finished_run: Path, tmp_path: Path) -> None:
    other = shutil.copytree(finished_run, tmp_path / finished_run.name, symlinks=True)
    subjects, notes = find_subjects(asked(f"compare=[{finished_run},{other},tiny]"))
    assert [subject.name for subject in subjects] == ["finished", "finished 2", "tiny"]
    assert len({subject.slug for subject in subjects}) == 3
    assert notes == []
    assert subjects[0].curve == finished_run / "metrics.csv"
    assert subjects[2].curve is None


def test_every_checkpoint_of_a_run(asked: Asked, run_copy: Path) -> None:
    request = asked(f"checkpoint={run_copy}", "checkpoints=all", "weights=[raw,ema]")
    subjects, _ = find_subjects(request)
    assert [(s.samples_seen, s.weights) for s in subjects] == [
        (16, "raw"),
        (16, "ema"),
        (32, "raw"),
        (32, "ema"),
    ]
    broken = run_copy / "checkpoints" / "s000000016.ckpt"
    broken.write_bytes(broken.read_bytes()[:-1])
    assert {s.samples_seen for s in find_subjects(request)[0]} == {32}


def test_weights_that_are_not_there_are_noted(asked: Asked) -> None:
    subjects, notes = find_subjects(asked("weights=[ema,raw]"))
    assert [subject.weights for subject in subjects] == ["ema"]
    assert notes == ["tiny holds ema weights only, no raw"]


def test_the_size_is_the_models_own(asked: Asked, finished_run: Path) -> None:
    subjects, _ = find_subjects(asked(f"compare=[{finished_run},tiny]"))
    assert size_of(subjects, None) == 32
    assert size_of(subjects, 64) == 64


def test_a_runs_truth_is_its_validation_data(
    asked: Asked, finished_run: Path, val_shards: Path
) -> None:
    request = asked(f"checkpoint={finished_run}")
    (subject,) = find_subjects(request)[0]
    truth = truth_of(request, subject, 32)
    assert len(truth) == 11
    assert truth.name == val_shards.name
    named = truth_of(asked(f"data.shards={val_shards}"), subject, 32)
    assert named.captions(range(11)) == truth.captions(range(11))


def test_held_out_samples_are_found_again(asked: Asked, run_copy: Path, train_shards: Path) -> None:
    """The last of the training samples, where a run names no validation shards; 1 % of 96."""
    config = run_copy / "config.yaml"
    lines = config.read_text().splitlines()
    at = lines.index("  val:")
    lines[at + 1 : at + 3] = [
        line if "shards" not in line else "    shards: null" for line in lines[at + 1 : at + 3]
    ]
    config.write_text("\n".join(lines))
    request = asked(f"checkpoint={run_copy}")
    (subject,) = find_subjects(request)[0]
    truth = truth_of(request, subject, 32)
    assert len(truth) == 1
    assert truth.name == f"validation part of {train_shards.name}"


def test_nothing_of_a_run_folder_is_built(
    asked: Asked, run_copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a config names is not imported."""
    config = run_copy / "config.yaml"
    text = config.read_text().replace("ldm.data.settings.DataConfig", "os.system")
    config.write_text(text)
    monkeypatch.setattr("ldm.parts.instantiate", lambda *_, **__: pytest.fail("built"))
    monkeypatch.setattr("hydra.utils.instantiate", lambda *_, **__: pytest.fail("built"))
    subject = find_subjects(plain_request(run_copy))[0][0]
    assert len(truth_of(plain_request(run_copy), subject, 32)) == 11


def plain_request(path: Path) -> Request:
    from ldm.app.evaluation.request import Settings
    from ldm.evaluation.preset import Preset

    return Request(
        paths=[str(path)],
        all_checkpoints=False,
        weights=["ema"],
        grid=[Settings(sampler=None, steps=None, guidance=None)],
        preset=Preset(samples=2),
        shards=None,
        caption_key=None,
        size=None,
        first_seed=0,
        batch_size=None,
        strips=0,
        pareto=None,
        logger=None,
        dtype="auto",
        cache_dir=None,
        overwrite=False,
        out=None,
    )


def test_tiny_has_drawn_shapes(asked: Asked) -> None:
    (subject,) = find_subjects(asked())[0]
    assert isinstance(truth_of(asked(), subject, 32), DrawnShapes)
