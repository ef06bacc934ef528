"""Is every change since a run was stopped seen, classed, and refused unless it is allowed?"""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from ldm import app
from ldm.cli import ConfigError
from ldm.io import checkpoint as files
from ldm.training.resume import CARD, CLASSES, changes, refused

Config = dict[str, Any]


@pytest.fixture
def stopped(finished_run: Path) -> tuple[Config, Config]:
    """Card and configuration of the finished run."""
    newest = files.latest_valid(finished_run / "checkpoints")
    assert newest is not None
    config = yaml.safe_load((finished_run / "config.yaml").read_text())
    return files.read(newest)["card"], config


def changed(config: Config, path: str, value: Any) -> Config:
    found = copy.deepcopy(config)
    *parents, last = path.split(".")
    node = found
    for key in parents:
        node = node[key]
    assert node[last] != value
    node[last] = value
    return found


def test_nothing_differs_from_itself(stopped: tuple[Config, Config]) -> None:
    card, config = stopped
    assert changes(card, card, config, config) == []
    moved = changed(card, "vae.source", "elsewhere")  # the same bytes: the hash tells
    assert changes(card, moved, config, config) == []


@pytest.mark.parametrize(
    ("path", "value", "kind"),
    [
        ("training.optim.lr", 1.0, "lr"),
        ("training.optim.warmup", 7, "lr"),
        ("training.caption_dropout", 0.5, "objective"),
        ("training.ema.half_life", 3, "objective"),
        ("training.gradient_clip", 9.0, "objective"),
        ("data.flip", 0.5, "data"),
        ("data.crop", "random", "data"),
        ("data.num_workers", 5, None),
        ("data.cache_gb", 5, None),
        ("data.train.shards", "moved", None),
        ("training.val_every", 3, None),
        ("training.keep_checkpoints", 9, None),
        ("training.trainer.devices", 2, None),
        ("training.micro_batch", 2, None),
        ("training.callbacks.samples.columns", 3, None),
    ],
)
def test_the_class_of_each_key(
    stopped: tuple[Config, Config], path: str, value: Any, kind: str | None
) -> None:
    card, config = stopped
    (found,) = changes(card, card, config, changed(config, path, value))
    assert (found.path, found.kind) == (path, kind)
    assert f"unsafe: {kind}" in str(found) if kind else "(safe)" in str(found)


def test_a_constant_learning_rate_has_no_horizon(stopped: tuple[Config, Config]) -> None:
    card, config = stopped
    for constant, kind in (
        (config, None),
        (changed(config, "training.optim.shape", "cosine"), "lr"),
    ):
        longer = changed(constant, "training.max_samples", 10**6)
        assert [c.kind for c in changes(card, card, constant, longer)] == [kind]


def test_every_part_of_the_card_is_compared(stopped: tuple[Config, Config]) -> None:
    card, config = stopped
    for kind, keys in CARD.items():
        for key in keys:
            (found,) = changes(card, {**card, key: "other"}, config, config)
            assert (found.path, found.kind) == (key, kind)
    assert set(CLASSES) == {"lr", *CARD}


def test_a_change_is_named_once(stopped: tuple[Config, Config]) -> None:
    """The batch size stands in the card and in the configuration."""
    card, config = stopped
    now = changed(config, "training.batch_size", 4)
    assert len(changes(card, {**card, "batch_size": 4}, config, now)) == 1


def test_without_a_configuration_the_cards_speak(stopped: tuple[Config, Config]) -> None:
    card, config = stopped
    (found,) = changes(card, {**card, "total_samples": 99}, None, config)
    assert (found.before, found.now, found.kind) == (32, 99, "lr")


def test_what_is_allowed_is_not_refused(stopped: tuple[Config, Config]) -> None:
    card, config = stopped
    found = changes(card, {**card, "seed": 5}, config, changed(config, "data.flip", 0.5))
    assert len(refused(found, [])) == 2
    (left,) = refused(found, ["seed"])
    assert "allow=[data]" in left
    assert refused(found, ["seed", "data"]) == []


def test_an_allowed_batch_size_takes_the_right_number_of_samples(
    run_copy: Path, tiny_run: Callable[..., Path], document: Callable[[Path], Config]
) -> None:
    """32 samples in batches of 8, then 32 more in batches of 4: the steps are counted anew."""
    line = ("resume=auto", "training.batch_size=4")
    with pytest.raises(ConfigError, match=r"batch_size was 8 and is 4 now \(unsafe: batch\)"):
        tiny_run(run_copy, *line, "training.max_samples=64")
    tiny_run(run_copy, *line, "training.max_samples=64", "allow=[batch]")
    newest = document(run_copy)
    assert newest["samples_seen"] == 64
    assert newest["global_step"] == 4 + 8
    tiny_run(run_copy, *line, "training.max_samples=72")
    assert document(run_copy)["global_step"] == 4 + 8 + 2


def test_the_difference_is_shown(
    run_copy: Path, tiny_cfg: Callable[..., Config], caplog: pytest.LogCaptureFixture
) -> None:
    (run_copy / "checkpoints" / "s000000032.ckpt").unlink()
    cfg = tiny_cfg(run_copy, "resume=auto", "training.val_every=null", "training.sample_every=null")
    caplog.set_level("INFO")
    assert app.train(cfg) == 0
    assert "training.val_every was 16 and is None now (safe)" in caplog.text


@pytest.mark.parametrize("value", ["[everything]", "lr"])
def test_an_unknown_class(tiny_run: Callable[..., Path], tmp_path: Path, value: str) -> None:
    with pytest.raises(ConfigError, match=r"allow=.*give a list of lr, architecture"):
        tiny_run(tmp_path, f"allow={value}")


def test_an_allowed_rate_is_the_one_that_is_used(
    tiny_run: Callable[..., Path], tmp_path: Path, metrics: Callable[..., list[dict[str, float]]]
) -> None:
    """torch restores the optimiser with the rate it had; the configuration's must win."""
    run_dir = tiny_run(tmp_path / "run", "training.max_samples=16")
    lines = ("training.max_samples=32", "resume=auto", "training.optim.lr=0.0005", "allow=[lr]")
    tiny_run(run_dir, *lines)
    rates = {row["samples_seen"]: row["lr"] for row in metrics(run_dir)}
    assert rates == {8: 0.002, 16: 0.002, 24: 0.0005, 32: 0.0005}


def test_other_groups_of_rates_are_refused(tiny_run: Callable[..., Path], tmp_path: Path) -> None:
    run_dir = tiny_run(tmp_path / "run", "training.max_samples=16")
    lines = ("training.max_samples=32", "resume=auto", "allow=[lr]")
    with pytest.raises(ValueError, match=r"groups of \[.*has changed; put it back"):
        tiny_run(run_dir, *lines, "training.optim.groups={unet.conv_in.*:{lr:0.5}}")
