"""Does a report give its batch again, number for number, and is a bad report refused?"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from ldm import app
from ldm.app.job import build_job
from ldm.io import checkpoint as files
from ldm.training import replay as again
from ldm.training.nonfinite import NonFiniteError

Config = dict[str, Any]
# the weights are useless after one step, so the second has no finite loss
BROKEN = ("training.optim.lr=1e25", "training.save_every=8", "training.micro_batch=4")


@pytest.fixture(scope="module")
def broken(tmp_path_factory: pytest.TempPathFactory, tiny_cfg: Callable[..., Config]) -> Config:
    """The configuration of a run that ended after 16 samples; only to be read."""
    cfg = tiny_cfg(tmp_path_factory.mktemp("runs") / "broken", *BROKEN, "data.flip=0.5")
    with pytest.raises(NonFiniteError):
        app.train(cfg)
    return cfg


def report_of(cfg: Config) -> Path:
    return Path(cfg["run_dir"]) / "reports" / "nonfinite-s000000016-rank0.json"


def replayed(cfg: Config, out: Path, checkpoint: str | None = "s000000008.ckpt") -> Config:
    report = again.read_report(report_of(cfg))
    module, data = (job := build_job(cfg)).module, job.data
    if checkpoint is not None:
        document = files.read(Path(cfg["run_dir"]) / "checkpoints" / checkpoint)
        again.load_weights(module, document["state_dict"])
    batches = [data.train.batch(torch.tensor(part)) for part in again.micro_batches(report)]
    return again.replay(module, batches, report, out)


def test_the_replay_is_the_report(broken: Config, tmp_path: Path) -> None:
    """Same weights, same machine: indices, keys, t, losses and latents to the last bit."""
    report = again.read_report(report_of(broken))
    assert again.micro_batches(report) == [[8, 9, 10, 11], [12, 13, 14, 15]]
    result = replayed(broken, tmp_path / "again.json")
    assert result["samples"] == report["samples"]
    assert result["loss"] == report["loss"] == "nan"
    assert result["gradient_norms"] == report["gradient_norms"]
    assert again.differences(report, result) == []


def test_with_other_weights_the_batch_is_the_same_but_not_the_loss(
    broken: Config, tmp_path: Path
) -> None:
    """The first checkpoint is missing, say: the weights are those of the beginning."""
    report = again.read_report(report_of(broken))
    result = replayed(broken, tmp_path / "again.json", checkpoint=None)
    assert float(result["loss"]) < 100
    found = again.differences(report, result)
    assert {d.name for d in found} == {"loss", "gradient_norm"}
    assert [d.sample for d in found if d.name == "loss"] == [None, *range(8, 16)]


def test_a_difference_names_sample_and_number() -> None:
    sample = {"i": 3, "key": "a", "t": 5.0, "loss": "nan", "micro_batch": 0}
    report = {"loss": "nan", "samples": [sample]}
    assert again.differences(report, report) == []
    close = {"loss": "nan", "samples": [{**sample, "t": 5.0001}]}
    assert again.differences(report, close) == []
    other = {"loss": 0.5, "samples": [{**sample, "key": "b", "t": 6.0}]}
    assert again.differences(report, other) == [
        again.Difference("loss", None, "nan", 0.5),
        again.Difference("key", 3, "a", "b"),
        again.Difference("t", 3, 5.0, 6.0),
    ]


def test_weights_of_another_network_are_refused(broken: Config) -> None:
    module = build_job(broken).module
    with pytest.raises(ValueError, match="another network"):
        again.load_weights(module, {"unet.conv_in.weight": torch.zeros(1)})


GOOD = {
    "format": "ldm-nonfinite/1",
    **dict.fromkeys(again.FACTS, 1),
    "samples": [{"i": 0, "micro_batch": 0}],
}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is not json"),
        ("[]", "format 'list'"),
        ('{"format": "ldm-nonfinite/9"}', "ldm-nonfinite/9"),
        (json.dumps({**GOOD, "seed": "x", "rank": None}), "rank=None is not a number; seed='x'"),
        (json.dumps({**GOOD, "samples": []}), "its samples have no i"),
        (json.dumps({**GOOD, "samples": [{"i": -1, "micro_batch": 0}]}), "its samples have no i"),
        (json.dumps({**GOOD, "samples": ["x"]}), "its samples have no i"),
    ],
)
def test_a_bad_report_is_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "nonfinite-s000000001-rank0.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        again.read_report(path)


def test_a_missing_report_names_those_there_are(broken: Config, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"has nonfinite-s000000016-rank0\.json"):
        again.read_report(report_of(broken).with_name("nonfinite-s9-rank0.json"))
    with pytest.raises(FileNotFoundError, match="has no report"):
        again.read_report(tmp_path / "x.json")
