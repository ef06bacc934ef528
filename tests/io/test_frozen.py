"""Do the frozen encoders come back bit for bit, and is a wrong file an error that says so?"""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch

from ldm.io import frozen
from ldm.io.reading import open_tensors
from ldm.io.source import copy_into
from ldm.models.vae import IdentityVAEConfig, VAEConfig, build_vae

SMALL = VAEConfig(
    block_out_channels=(8, 8), layers_per_block=1, norm_num_groups=4, mid_block_add_attention=False
)


def card_of(run_dir: Path) -> dict[str, Any]:
    return json.loads((run_dir / "card.json").read_text())


def test_the_encoders_of_a_run_come_back_as_they_were(finished_run: Path) -> None:
    card = card_of(finished_run)
    codec = frozen.load_codec(card, finished_run, dtype=torch.float32)
    packaged = frozen.load_vae_weights(codec.vae.config, "tiny")
    for name, value in packaged.state_dict().items():
        assert torch.equal(codec.vae.state_dict()[name], value), name
    assert not any(p.requires_grad for p in codec.vae.parameters())
    assert not codec.vae.training
    text = frozen.load_text_encoder(card, finished_run)
    assert text.hash() == card["text"]["hash"]


def test_another_vae_than_the_one_trained_with_is_an_error(run_copy: Path) -> None:
    path = run_copy / "frozen" / "vae.safetensors"
    tensors = dict(open_tensors(path))
    tensors["encoder.conv_in.bias"] = tensors["encoder.conv_in.bias"] + 1e-3
    frozen.write_tensors(path, tensors)
    with pytest.raises(ValueError, match="another VAE than the one trained with"):
        frozen.load_codec(card_of(run_copy), run_copy, dtype=torch.float32)


def test_another_text_encoder_is_an_error(run_copy: Path) -> None:
    path = run_copy / "frozen" / "text" / "model.safetensors"
    tensors = dict(open_tensors(path))
    first = next(name for name, value in tensors.items() if value.is_floating_point())
    frozen.write_tensors(path, {**tensors, first: tensors[first] + 1e-2})
    with pytest.raises(ValueError, match="another text encoder than the one saved"):
        frozen.load_text_encoder(card_of(run_copy), run_copy)


def test_a_text_encoder_that_the_card_does_not_name_is_an_error(finished_run: Path) -> None:
    card = card_of(finished_run)
    card["text"]["hash"] = "0" * 40
    with pytest.raises(ValueError, match=r"is not the one|another text encoder"):
        frozen.load_text_encoder(card, finished_run)


@pytest.mark.parametrize("path", ["../secret", "/etc/passwd", "frozen/../../x"])
def test_a_card_cannot_lead_out_of_its_folder(tmp_path: Path, path: str) -> None:
    with pytest.raises(ValueError, match="leads out of the folder"):
        frozen.inside(tmp_path, path)
    assert frozen.inside(tmp_path, "a/../b") == tmp_path / "b"


def test_loading_names_everything_that_differs() -> None:
    vae = build_vae(SMALL)
    state = dict(vae.state_dict())
    state["extra.weight"] = torch.zeros(1)
    state["encoder.conv_in.bias"] = torch.zeros(3)
    del state["decoder.conv_out.bias"]
    with pytest.raises(ValueError, match="another architecture") as caught:
        copy_into(vae, state, "file.safetensors")
    text = str(caught.value)
    for part in ("file.safetensors", "decoder.conv_out.bias", "extra.weight", "(3,)", "(8,)"):
        assert part in text
    assert "1 keys missing" in text
    assert "1 unexpected" in text


def test_vae_weights_are_found_in_files_and_folders(tmp_path: Path) -> None:
    vae = build_vae(SMALL)
    source = tmp_path / "vae.safetensors"
    frozen.write_tensors(source, vae.state_dict())
    places = ("vae.safetensors", "vae/diffusion_pytorch_model.safetensors")
    for number, place in enumerate((*places, "diffusion_pytorch_model.safetensors")):
        folder = tmp_path / str(number)
        (folder / place).parent.mkdir(parents=True)
        shutil.copy(source, folder / place)
        found = frozen.load_vae_weights(SMALL, str(folder))
        assert torch.equal(found.state_dict()["post_quant_conv.weight"], vae.post_quant_conv.weight)
    with pytest.raises(FileNotFoundError, match="nowhere"):
        frozen.load_vae_weights(SMALL, str(tmp_path / "nowhere"))
    with pytest.raises(FileNotFoundError, match=r"models\.vae_weights=null"):
        frozen.load_vae_weights(SMALL, None)
    with pytest.raises(ValueError, match="another architecture"):
        frozen.load_vae_weights(SMALL, "tiny")


def test_writing_casts_and_leaves_no_temporary_file(tmp_path: Path) -> None:
    path = tmp_path / "x" / "model.safetensors"
    frozen.write_tensors(path, {"w": torch.tensor([1.0, 2.0])}, torch.float16)
    assert open_tensors(path)["w"].dtype == torch.float16
    assert [p.name for p in path.parent.iterdir()] == [path.name]
    assert path.stat().st_mode & 0o444 == 0o444  # others may read what was trained


def test_the_encoders_are_written_once(finished_run: Path, run_copy: Path) -> None:
    path = run_copy / "frozen" / "vae.safetensors"
    before = path.stat().st_mtime_ns
    card = card_of(run_copy)
    codec = frozen.load_codec(card, run_copy, dtype=torch.float32)
    frozen.save_frozen(run_copy / "frozen", codec, frozen.load_text_encoder(card, run_copy))
    assert path.stat().st_mtime_ns == before


@pytest.mark.parametrize("config", [SMALL, IdentityVAEConfig()], ids=["kl", "identity"])
def test_configs_survive_json(config: VAEConfig | IdentityVAEConfig) -> None:
    stored = json.loads(json.dumps(frozen.plain(asdict(config))))
    assert frozen.vae_config(stored) == config
    assert frozen.plain(asdict(config)) == stored
