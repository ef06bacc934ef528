"""Does an unusable file say what it is, and what was expected?"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from ldm.io.load import load_model, open_network

Foreign = Callable[..., Path]


def written(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("suffix", [".safetensors", ".ckpt"])
@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "empty"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:aa\nsize 4\n", "git lfs pull"),
        (b"<!DOCTYPE html><html><body>Sign in</body></html>", "HTML"),
    ],
)
def test_what_is_no_model_says_what_it_is(
    tmp_path: Path, suffix: str, content: bytes, words: str
) -> None:
    file = written(tmp_path / f"model{suffix}", content)
    for read in (load_model, open_network):
        with pytest.raises(ValueError, match=words):
            read(file)


def test_a_truncated_file(foreign: Foreign) -> None:
    file = foreign("sd1")
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"(?i)truncated|incomplete|cut"):
        load_model(file)


def test_lora_where_a_model_is_expected(tmp_path: Path) -> None:
    name = "lora_unet_down_blocks_0_attentions_0_proj_in"
    tensors = {
        f"{name}.lora_down.weight": torch.zeros(4, 320, 1, 1),
        f"{name}.alpha": torch.ones(()),
    }
    save_file(tensors, tmp_path / "lora.safetensors")
    with pytest.raises(ValueError, match=r"LoRA.*expected a whole model"):
        load_model(tmp_path / "lora.safetensors")


def test_nan_weights(foreign: Foreign) -> None:
    file = foreign("sd1", ema=False)
    tensors = load_file(file)
    tensors["model.diffusion_model.out.2.bias"][0] = float("nan")
    save_file(tensors, file)
    with pytest.raises(ValueError, match=r"out\.2\.bias"):
        load_model(file)


@pytest.mark.parametrize(
    ("name", "shape", "words"),
    [
        ("model.diffusion_model.out.2.bias", None, "1 tensors are missing"),
        ("model.diffusion_model.extra.weight", (3,), "1 are unexpected"),
        ("first_stage_model.encoder.conv_in.bias", None, "1 tensors are missing"),
        ("first_stage_model.other", (3,), "1 unexpected"),
    ],
)
def test_missing_and_unexpected_keys(
    foreign: Foreign, name: str, shape: tuple[int, ...] | None, words: str
) -> None:
    file = foreign("sd1", ema=False)
    tensors = load_file(file)
    tensors.pop(name, None)
    if shape is not None:
        tensors[name] = torch.zeros(shape)
    save_file(tensors, file)
    with pytest.raises(ValueError, match=words) as error:
        load_model(file)
    assert str(file) in str(error.value)


def test_half_an_average(foreign: Foreign) -> None:
    file = foreign("sd1")
    tensors = load_file(file)
    del tensors["model_ema.diffusion_modelout2bias"]
    save_file(tensors, file)
    with pytest.raises(ValueError, match=r"1 of \d+ averaged weights .* missing.*weights=raw"):
        load_model(file)


def test_text_and_network_of_different_families(foreign: Foreign) -> None:
    """The SD 1 network's context is wider than this text encoder: both are named."""
    file = foreign("sd1", ema=False)
    tensors = load_file(file)
    for key in [k for k in tensors if k.endswith(("attn2.to_k.weight", "attn2.to_v.weight"))]:
        tensors[key] = torch.zeros(tensors[key].shape[0], 48)
    save_file(tensors, file)
    with pytest.raises(ValueError, match=r"the UNet has 48, the text encoder 64"):
        load_model(file)


def test_a_vocabulary_of_its_own_needs_its_tokenizer(foreign: Foreign, tmp_path: Path) -> None:
    file = foreign("sd1", ema=False)
    tensors = load_file(file)
    key = "cond_stage_model.transformer.text_model.embeddings.token_embedding.weight"
    tensors[key] = tensors[key][:600].clone()
    save_file(tensors, file)
    with pytest.raises(ValueError, match=r"600 token embeddings.*tokenizer/"):
        load_model(file)
    (tmp_path / "tokenizer").mkdir()
    with pytest.raises(FileNotFoundError, match=r"holds no tokenizer.*vocab\.json"):
        load_model(file)


def test_an_incomplete_diffusers_folder_names_what_is_missing(tmp_path: Path) -> None:
    (tmp_path / "unet").mkdir()
    (tmp_path / "model_index.json").write_text("{}")
    with pytest.raises(FileNotFoundError, match=r"unet.*holds no weights|config\.json is missing"):
        load_model(tmp_path)
    (tmp_path / "unet" / "config.json").write_text("[]")
    save_file({"w": torch.zeros(1)}, tmp_path / "unet" / "diffusion_pytorch_model.safetensors")
    with pytest.raises(ValueError, match="expected an object"):
        load_model(tmp_path)


def test_a_card_in_a_file_is_checked(foreign: Foreign) -> None:
    file = foreign("sd1")
    tensors = load_file(file)
    for text, words in (("{", "no JSON"), (json.dumps({"format": "x"}), "card format 'x'")):
        save_file(tensors, file, metadata={"ldm.card": text})
        with pytest.raises(ValueError, match=words):
            load_model(file)


def test_neither_path_nor_hub() -> None:
    with pytest.raises(FileNotFoundError, match=r"/nowhere/x does not exist; give tiny, a run"):
        load_model("/nowhere/x")
