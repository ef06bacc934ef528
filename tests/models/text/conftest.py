"""Small random text encoders on disk: there is no hub in a test."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from ldm.models.text.tiny_tokenizer import train_tokenizer

CAPTIONS = [
    f"a {size} {colour} {shape}"
    for size in ("small", "large")
    for colour in ("red", "green", "blue", "yellow", "purple")
    for shape in ("circle", "square", "triangle", "star", "cross", "heart")
] + ["carrot, fluent style", "flag: european union, noto style", "woman's hat 2!", "café 😀"]


@pytest.fixture(scope="session")
def tokenizer_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    train_tokenizer(CAPTIONS, folder, vocab_size=700, max_tokens=16)
    return folder


@pytest.fixture(scope="session")
def tokenizer(tokenizer_dir: Path) -> CLIPTokenizer:
    return CLIPTokenizer.from_pretrained(tokenizer_dir)


@pytest.fixture(scope="session")
def reference_clip(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    """transformers' own model, 4 layers, width 32."""
    torch.manual_seed(0)
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=4,
        num_attention_heads=4,
        max_position_embeddings=16,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    model = CLIPTextModel(config).eval()
    with torch.no_grad():  # norms away from 1 and 0, so that a forgotten one is seen
        for name, value in model.named_parameters():
            if "norm" in name:
                value.add_(0.3 * torch.randn_like(value))
    return model


@pytest.fixture(scope="session")
def clip_dir(
    tmp_path_factory: pytest.TempPathFactory,
    reference_clip: CLIPTextModel,
    tokenizer: CLIPTokenizer,
) -> Path:
    folder = tmp_path_factory.mktemp("clip")
    reference_clip.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def captions() -> list[str]:
    return CAPTIONS
