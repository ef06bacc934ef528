"""Do extractors give what their networks say, whatever batch a picture is in?"""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoModel, CLIPModel, CLIPTokenizer, Dinov2Config, Dinov2Model

from ldm.data.shapes import EASY, render, scenes
from ldm.evaluation import features
from ldm.evaluation.features import ClipExtractor, ClsExtractor, load_extractor
from ldm.evaluation.source import PACKAGED

TINY = PACKAGED["tiny"]


@pytest.fixture(scope="module")
def tiny() -> ClipExtractor:
    found = load_extractor(batch_size=8)
    assert isinstance(found, ClipExtractor)
    return found


@pytest.fixture(scope="module")
def pictures() -> list[Image.Image]:
    return [Image.fromarray(p) for p in render(scenes(EASY, seed=3, index=range(20)), side_px=32)]


@pytest.fixture(scope="module")
def captions() -> list[str]:
    return [EASY.caption(scene) for scene in scenes(EASY, seed=3, index=range(20))]


@pytest.fixture
def dino(tmp_path: Path) -> Path:
    """A DINOv2 of random weights in a folder as the hub has it."""
    folder = tmp_path / "dino"
    config = Dinov2Config(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, image_size=28, patch_size=14
    )
    torch.manual_seed(0)
    Dinov2Model(config).save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(
        json.dumps(
            {
                "size": {"shortest_edge": 32},
                "crop_size": {"height": 28, "width": 28},
                "resample": 3,
                "image_mean": [0.5] * 3,
                "image_std": [0.25] * 3,
            }
        )
    )
    return folder


def test_the_embedded_clip_is_the_default(tiny: ClipExtractor) -> None:
    assert (tiny.spec.name, tiny.spec.dim) == ("tiny", 128)
    assert tiny.spec.resize == "Pillow bilinear to 64x64"


def test_clip_features_are_those_of_the_model(
    tiny: ClipExtractor, pictures: list[Image.Image], captions: list[str]
) -> None:
    model = CLIPModel.from_pretrained(TINY, dtype=torch.float32).eval()
    resized = [picture.resize((64, 64), Image.Resampling.BILINEAR) for picture in pictures]
    pixels = torch.stack([torch.from_numpy(np.array(p)).movedim(-1, 0) for p in resized])
    tokens = CLIPTokenizer.from_pretrained(TINY)(captions, padding=True, return_tensors="pt")
    with torch.no_grad():
        out = model(pixel_values=pixels / 127.5 - 1, **tokens)
    ours = torch.nn.functional.normalize(tiny(pictures), dim=1)
    torch.testing.assert_close(ours, out.image_embeds, rtol=0, atol=1e-5)
    ours = torch.nn.functional.normalize(tiny.captions(captions), dim=1)
    torch.testing.assert_close(ours, out.text_embeds, rtol=0, atol=1e-5)


def test_a_row_does_not_depend_on_its_batch(
    tiny: ClipExtractor, pictures: list[Image.Image], captions: list[str]
) -> None:
    """Bit for bit: the same on any number of ranks."""
    assert torch.equal(torch.cat([tiny([picture]) for picture in pictures]), tiny(pictures))
    assert torch.equal(tiny(pictures[5:]), tiny(pictures)[5:])
    one_by_one = torch.cat([tiny.captions([caption]) for caption in captions])
    assert torch.equal(one_by_one, tiny.captions(captions))


def test_captions_find_their_pictures(
    tiny: ClipExtractor, pictures: list[Image.Image], captions: list[str]
) -> None:
    image, text = (
        torch.nn.functional.normalize(f, dim=1) for f in (tiny(pictures), tiny.captions(captions))
    )
    assert float((image @ text.T).argmax(1).eq(torch.arange(20)).float().mean()) > 0.9


def test_long_captions_are_cut_and_counted(
    tiny: ClipExtractor, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, features.__name__):
        found = tiny.captions(["a red circle", "a red circle and " * 30])
    assert "1 of 2 captions are cut to 24 tokens" in caplog.text
    assert torch.isfinite(found).all()


def test_dino_features_are_the_class_token(dino: Path, pictures: list[Image.Image]) -> None:
    extract = load_extractor(str(dino), batch_size=8)
    assert isinstance(extract, ClsExtractor)
    assert (extract.spec.name, extract.spec.dim) == ("dino", 16)
    assert extract.spec.resize == "Pillow bicubic to 32 short side, centre crop 28x28"
    pixels = torch.stack(
        [
            (torch.from_numpy(np.array(p)[2:30, 2:30]).movedim(-1, 0) / 255 - 0.5) / 0.25
            for p in pictures
        ]
    )
    with torch.no_grad():
        expected = AutoModel.from_pretrained(dino).eval()(pixels).pooler_output
    torch.testing.assert_close(extract(pictures), expected, rtol=0, atol=1e-5)


def test_the_hash_is_of_weights_and_preprocessing(dino: Path, tmp_path: Path) -> None:
    spec = load_extractor(str(dino)).spec
    moved = Path(shutil.copytree(dino, tmp_path / "moved"))
    assert load_extractor(str(moved)).spec.hash == spec.hash  # a name is not what it is
    settings = json.loads((moved / "preprocessor_config.json").read_text())
    (moved / "preprocessor_config.json").write_text(json.dumps({**settings, "resample": 2}))
    assert load_extractor(str(moved)).spec.hash != spec.hash
    model = AutoModel.from_pretrained(dino)
    model.layernorm.weight.data[0] += 1e-3
    model.save_pretrained(dino)
    assert load_extractor(str(dino)).spec.hash != spec.hash


def test_what_is_missing_is_named(dino: Path) -> None:
    (dino / "preprocessor_config.json").rename(dino / "other.json")
    with pytest.raises(FileNotFoundError, match=r"preprocessor_config.json is missing; put"):
        load_extractor(str(dino))
    (dino / "other.json").rename(dino / "preprocessor_config.json")
    (dino / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"model.safetensors is missing"):
        load_extractor(str(dino))
    torch.save(Dinov2Model(Dinov2Config()).state_dict, dino / "pytorch_model.bin")
    with pytest.raises(FileNotFoundError, match=r"model.safetensors is missing"):  # no pickles
        load_extractor(str(dino))


def test_random_weights_are_refused(dino: Path) -> None:
    config = json.loads((dino / "config.json").read_text())
    (dino / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 3}))
    with pytest.raises(ValueError, match=r"lacks \d+ weights"):
        load_extractor(str(dino))


def test_other_models_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "resnet"}')
    with pytest.raises(ValueError, match=r"model_type='resnet'; extractors are of clip, dinov2"):
        load_extractor(str(tmp_path))
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(ValueError, match="no JSON object"):
        load_extractor(str(tmp_path))
    with pytest.raises(ValueError, match="batch_size=0"):
        load_extractor(batch_size=0)

    def unreachable(*_: object, **__: object) -> str:
        raise OSError("no connection")

    monkeypatch.setattr("ldm.evaluation.source.cached_file", unreachable)
    with pytest.raises(FileNotFoundError, match=r"org/nothing.*no connection.*put config.json"):
        load_extractor("org/nothing")


def test_nothing_to_look_at_is_an_error(tiny: ClipExtractor) -> None:
    with pytest.raises(ValueError, match="no pictures"):
        tiny([])
    with pytest.raises(ValueError, match="list of at least one"):
        tiny.captions("a red circle")
