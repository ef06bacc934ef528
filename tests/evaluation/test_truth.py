"""Are true pictures and captions those of the validation, and what is broken counted, not used?"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from ldm.data.settings import DataConfig, TrainSource, ValSource
from ldm.data.shapes import EASY
from ldm.data.source import open_data
from ldm.evaluation.features import ExtractorSpec
from ldm.evaluation.inception import InceptionExtractor
from ldm.evaluation.preset import Preset
from ldm.evaluation.shapes_judge import score, task_of
from ldm.evaluation.truth import DrawnShapes, ShardPictures
from ldm.images import from_pil

SPEC = ExtractorSpec(name="x", dim=2, resize="none", hash="h")


def test_drawn_shapes_show_their_captions_and_are_of_no_training_seed() -> None:
    truth = DrawnShapes(count=24)
    numbers = range(24)
    pictures = [picture for picture in truth.pictures(numbers) if picture is not None]
    captions = [caption for caption in truth.captions(numbers) if caption is not None]
    assert score(pictures, captions).all == 1.0
    assert len(truth) == 24
    assert truth.made_of(SPEC).size_px == 32
    assert truth.made_of(SPEC).data_hash != DrawnShapes(count=25).made_of(SPEC).data_hash


def test_shards_give_what_validation_sees(train_shards: Path, val_shards: Path) -> None:
    config = DataConfig(
        train=TrainSource(shards=str(train_shards)),
        val=ValSource(shards=str(val_shards)),
        size=32,
        num_workers=0,
    )
    data = open_data(config, seed=0)
    assert data.val is not None
    truth = ShardPictures(data.val, "val")
    batch = next(iter(data.val_loader(batch_size=11, limit=11, rank=0, world=1)))
    assert tuple(truth.captions(range(11))) == batch.captions
    pictures = [picture for picture in truth.pictures(range(11)) if picture is not None]
    assert torch.equal(from_pil(pictures), batch.pixels)  # type: ignore[union-attr]
    assert (len(truth), truth.size_px, truth.left_out) == (11, 32, 0)
    made_of = truth.made_of(SPEC)
    assert (made_of.count, made_of.centre_crop) == (11, True)


def test_the_judge_knows_its_tasks() -> None:
    easy = list(EASY.captions[:3])
    assert task_of(easy) is EASY
    assert task_of([*easy, "a cat"]) is None


def test_presets_are_checked() -> None:
    assert Preset(samples=96).problems() == []
    problems = Preset(samples=1, metrics=["fdd"], references=1, loss_images=0).problems()
    assert len(problems) == 4
    assert "samples=1; give 2 or more" in problems


def test_inception_without_its_extra_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torchmetrics.image.fid._TORCH_FIDELITY_AVAILABLE", False)
    with pytest.raises(ValueError, match=r"needs the extra fid .* pip install -e '.\[fid\]'"):
        InceptionExtractor()


def test_pictures_are_not_changed_by_being_read(val_shards: Path) -> None:
    truth = DrawnShapes(count=4, size_px=64)
    (picture,) = truth.pictures([2])
    assert picture is not None
    assert np.asarray(picture).shape == (64, 64, 3)
