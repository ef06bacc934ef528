"""Does a step that is not finite leave no trace but its report, and does the report suffice?"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ldm import app
from ldm.app.job import Job, build_job
from ldm.io import checkpoint as files
from ldm.training import nonfinite
from ldm.training.module import DiffusionModule

EVERY_STEP = ("training.save_every=8", "training.keep_checkpoints=9", "training.micro_batch=4")
SKIP = (*EVERY_STEP, "training.nonfinite=skip", "training.max_skipped=2")


@pytest.fixture
def poison(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """poison(11, 12): the losses of these samples are nan from now on."""
    original = DiffusionModule.losses

    def set_bad(*numbers: int) -> None:
        def losses(self: DiffusionModule, *arguments: Any) -> Tensor:
            bad = torch.isin(arguments[-1], torch.tensor(numbers))
            return torch.where(bad, float("nan"), 1.0) * original(self, *arguments)

        monkeypatch.setattr(DiffusionModule, "losses", losses)

    return set_bad


def report_of(run_dir: Path, samples: int) -> dict[str, Any]:
    """Strict JSON: no nan, no inf."""

    def refuse(word: str) -> None:
        raise AssertionError(word)

    text = (run_dir / "reports" / f"nonfinite-s{samples:09d}-rank0.json").read_text()
    found = json.loads(text, parse_constant=refuse)
    assert isinstance(found, dict)
    return found


def document_at(run_dir: Path, samples: int) -> dict[str, Any]:
    return files.read(files.checkpoint_path(run_dir / "checkpoints", samples))


def test_a_skipped_step_leaves_weights_moments_and_average_alone(
    tiny_run: Callable[..., Path],
    tmp_path: Path,
    poison: Callable[..., None],
    metrics: Callable[[Path], list[dict[str, float]]],
    differences: Callable[..., list[str]],
) -> None:
    """Sample 11 is in the second step of four; the rate goes on by samples."""
    poison(11)
    run_dir = tiny_run(tmp_path, *SKIP, "training.optim.warmup=32", "training.val_every=8")
    before, after, later = (document_at(run_dir, n) for n in (8, 16, 24))
    for key in ("state_dict", "ema", "optimizer_states"):
        rate = "lr"  # of the next step
        found = [d for d in differences(before[key], after[key]) if f".{rate}:" not in d]
        assert found == [], key
    assert differences(after["state_dict"], later["state_dict"])
    assert (before["ema"]["steps"], after["ema"]["steps"], later["ema"]["steps"]) == (1, 1, 2)
    rows = [row for row in metrics(run_dir) if "train/loss" in row]
    assert [row["skipped_steps"] for row in rows] == [0, 1, 1, 1]
    assert [row["lr"] for row in rows] == [pytest.approx(0.002 * k / 4) for k in (2, 3, 4, 4)]
    assert rows[1]["train/loss"] == rows[0]["train/loss"]  # no step of its own to speak of
    assert all(row["train/loss"] == row["train/loss"] for row in rows)


def test_nothing_else_changes_because_a_step_may_be_skipped(
    tiny_run: Callable[..., Path],
    tmp_path: Path,
    document: Callable[[Path], dict[str, Any]],
    differences: Callable[..., list[str]],
) -> None:
    """The policy costs no bit of a run in which all is finite."""
    runs = [
        tiny_run(tmp_path / name, f"training.nonfinite={name}", "training.gradient_clip=null")
        for name in ("raise", "skip")
    ]
    one, other = (document(run) for run in runs)
    assert differences(one["state_dict"], other["state_dict"]) == []
    assert one["skips"] == other["skips"] == {"total": 0, "in_a_row": 0}
    assert not (runs[1] / "reports").exists()


def test_the_report_says_what_the_batch_was_and_it_can_be_made_again(
    tiny_cfg: Callable[..., dict[str, Any]], tmp_path: Path, poison: Callable[..., None]
) -> None:
    poison(13)
    cfg = tiny_cfg(tmp_path, *EVERY_STEP)
    with pytest.raises(nonfinite.NonFiniteError, match=r"the loss is nan after 16 samples") as got:
        app.train(cfg)
    report = report_of(tmp_path, 16)
    for part in ("nonfinite-s000000016-rank0.json", "training.nonfinite=skip", "optim.lr"):
        assert part in str(got.value)
    assert [p.name for p in files.list_checkpoints(tmp_path / "checkpoints")] == ["s000000008.ckpt"]

    rows = report["samples"]
    assert [row["i"] for row in rows] == list(range(8, 16))
    assert [row["micro_batch"] for row in rows] == [0] * 4 + [1] * 4
    assert [row["loss"] == "nan" for row in rows] == [i == 13 for i in range(8, 16)]
    assert report["loss"] == report["gradient_norm"] == "nan"
    assert set(report["gradient_norms"].values()) == {"nan"}
    assert {"unet.conv_in", "unet.down_blocks.1", "unet.mid_block"} <= set(report["gradient_norms"])
    assert report["weights_finite"] is True
    assert report["weights_not_finite"] == []
    assert all(row["context_finite"] is True for row in rows)
    assert (report["batch_size"], report["rank"], report["world_size"]) == (8, 0, 1)

    # the same samples, times and losses, from the numbers in the report and the last checkpoint
    job: Job = build_job(cfg)
    assert job.module.seed == report["seed"]
    job.module.load_state_dict(document_at(tmp_path, 8)["state_dict"])
    batch = job.data.train.batch(torch.tensor([row["i"] for row in rows[:4]]))
    assert list(batch.keys) == [row["key"] for row in rows[:4]]
    assert list(batch.captions) == [row["caption"] for row in rows[:4]]
    job.module.train()
    job.module.batch_loss(batch, (report["samples_seen"] - 1) // report["batch_size"])
    (again,) = job.module._rows
    for name in ("t", "loss", "latent_min", "latent_max", "latent_mean", "latent_std"):
        assert again.values[name].tolist() == [row[name] for row in rows[:4]], name


def test_too_many_in_a_row_end_the_run(
    tiny_cfg: Callable[..., dict[str, Any]], tmp_path: Path, poison: Callable[..., None]
) -> None:
    """Two are allowed: the third ends it, and a good one between them begins the count anew."""
    poison(0, 8, 24)
    assert app.train(tiny_cfg(tmp_path / "a", *SKIP, "training.log_every=32")) == 0
    poison(8, 16, 24)
    with pytest.raises(nonfinite.NonFiniteError, match=r"3 step\(s\) in a row.*max_skipped=2"):
        app.train(tiny_cfg(tmp_path / "b", *SKIP))
    assert len(list((tmp_path / "b" / "reports").iterdir())) == 3


def test_the_count_goes_on_in_a_resumed_run(
    tiny_cfg: Callable[..., dict[str, Any]],
    tmp_path: Path,
    poison: Callable[..., None],
    metrics: Callable[[Path], list[dict[str, float]]],
) -> None:
    """Or a run that is started again after each of them would never end."""
    poison(8, 16, 24)
    assert app.train(tiny_cfg(tmp_path, *SKIP, "training.max_samples=24", "resume=auto")) == 0
    with pytest.raises(nonfinite.NonFiniteError, match=r"3 step\(s\) in a row"):
        app.train(tiny_cfg(tmp_path, *SKIP, "training.max_samples=32", "resume=auto"))
    assert [row["skipped_steps"] for row in metrics(tmp_path)] == [0, 1, 2]


@pytest.mark.parametrize("task", ["vae", "clip"])
def test_the_other_tasks_skip_too(
    tiny_run: Callable[..., Path], tmp_path: Path, task: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ldm.training.clip_module import ClipModule
    from ldm.training.vae_module import VAEModule

    kind = {"vae": VAEModule, "clip": ClipModule}[task]
    original = kind.batch_loss

    def diverging(self: Any, batch: Any, number: int) -> dict[str, Tensor]:
        losses = original(self, batch, number)
        return {**losses, "loss": losses["loss"] * (float("inf") if number == 1 else 1)}

    monkeypatch.setattr(kind, "batch_loss", diverging)
    run_dir = tiny_run(tmp_path, f"experiment={task}_tiny", *SKIP)
    report = report_of(run_dir, 16)
    assert report["loss"] == "inf"
    assert [row["i"] for row in report["samples"]] == list(range(8, 16))
    assert ("loss" in report["samples"][0]) == (task == "vae")


def test_norms_are_torchs_own_bit_for_bit() -> None:
    draws = torch.Generator().manual_seed(0)
    shapes = [(32, 16, 3, 3), (32,), (7, 5), ()]
    parameters = [nn.Parameter(torch.randn(shape, generator=draws)) for shape in shapes]
    unused = nn.Parameter(torch.zeros(3))
    for parameter in parameters:
        parameter.grad = 100 * torch.randn(parameter.shape, generator=draws)
    norms, norm = nonfinite.gradient_norms([*parameters, unused])
    assert norms.tolist() == [p.grad.norm().item() for p in parameters if p.grad is not None]
    assert torch.equal(norm, nn.utils.clip_grad_norm_([*parameters, unused], 1.0))


@pytest.mark.parametrize(
    ("name", "block"),
    [
        ("unet.conv_in.weight", "unet.conv_in"),
        ("unet.down_blocks.1.resnets.0.conv1.weight", "unet.down_blocks.1"),
        ("unet.mid_block.resnets.0.conv1.weight", "unet.mid_block"),
        ("pair.logit_scale", "pair.logit_scale"),
    ],
)
def test_a_block_is_what_one_would_name(name: str, block: str) -> None:
    assert nonfinite.block_of(name) == block
