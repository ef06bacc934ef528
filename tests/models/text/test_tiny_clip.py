"""The pair of towers that this project trains, and what it exports."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch.testing import assert_close
from transformers import AutoImageProcessor, CLIPModel, CLIPTokenizer

from ldm.models.text.clip import clip_text
from ldm.models.text.contrastive import contrastive_loss
from ldm.models.text.tiny_clip import ClipPair, TinyClipConfig, build_tiny_clip, clip_pair

SMALL = TinyClipConfig(
    width=32, text_layers=2, vision_layers=1, heads=2, image_px=16, projection=16, max_tokens=16
)


@pytest.fixture
def pair(tokenizer_dir) -> ClipPair:
    torch.manual_seed(0)
    return clip_pair(tokenizer=str(tokenizer_dir), config=SMALL).eval()


def test_default_size():
    """Text: 128 wide, 4 layers. Images: 8 x 8 patches of 64 px and a class token, 3 layers."""
    with torch.device("meta"):
        model = build_tiny_clip(4096, TinyClipConfig())
    layer = 4 * (128 * 128 + 128) + 2 * (128 * 512) + 512 + 128 + 4 * 128
    text = (4096 + 24) * 128 + 4 * layer + 2 * 128
    vision = 128 + 3 * 8 * 8 * 128 + 65 * 128 + 3 * layer + 4 * 128
    heads = 2 * 128 * 128 + 1
    assert sum(p.numel() for p in model.parameters()) == text + vision + heads


def test_same_as_transformers_own_forward(pair, captions):
    pixels = torch.rand(len(captions), 3, 16, 16) * 2 - 1
    ids, mask = pair.tokenize(captions)
    with torch.no_grad():
        image, text, scale = pair(pixels, ids, mask)
        own = pair.clip(input_ids=ids, pixel_values=pixels)
    assert_close(image, own.image_embeds, rtol=0, atol=1e-6)
    assert_close(text, own.text_embeds, rtol=0, atol=1e-6)
    assert_close(scale * text @ image.T, own.logits_per_text, rtol=0, atol=1e-5)


def test_vectors_have_unit_length_and_the_scale_is_bounded(pair):
    with torch.no_grad():
        pair.clip.logit_scale.fill_(10.0)
        image, text, scale = pair(torch.rand(2, 3, 16, 16), *pair.tokenize(["a", "b"]))
    assert_close(image.norm(dim=-1), torch.ones(2))
    assert_close(text.norm(dim=-1), torch.ones(2))
    assert_close(scale, torch.tensor(100.0))


def test_other_sizes_are_resized_and_the_own_size_is_not(pair):
    pixels = torch.rand(1, 3, 16, 16)
    flat = torch.full((1, 3, 8, 8), 0.25)
    with torch.no_grad():
        assert_close(
            pair.image_features(flat), pair.image_features(torch.full((1, 3, 16, 16), 0.25))
        )
        own = pair.clip.get_image_features(pixel_values=pixels).pooler_output
        assert_close(pair.image_features(pixels), own, rtol=0, atol=0)


def test_it_learns_a_batch_by_heart(pair):
    captions = ["a red circle", "a blue star", "a green cross", "a red circle"]
    pixels = torch.randn(4, 3, 16, 16)
    optimiser = torch.optim.AdamW(pair.parameters(), lr=3e-3)
    ids, mask = pair.tokenize(captions)
    losses = []
    for _ in range(30):
        loss = contrastive_loss(*pair(pixels, ids, mask), captions)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert all(p.grad is not None for p in pair.parameters())
    assert losses[-1] < 0.1 * losses[0]


def test_the_export_is_a_clip_for_transformers_in_fp16(pair, captions, tmp_path):
    pair.export(tmp_path)
    stored = load_file(tmp_path / "model.safetensors")
    assert {v.dtype for v in stored.values()} == {torch.float16}
    model, info = CLIPModel.from_pretrained(tmp_path, dtype=torch.float32, output_loading_info=True)
    assert not any(info.values())
    for name, value in pair.clip.state_dict().items():
        assert_close(model.state_dict()[name], value.half().float(), rtol=0, atol=0)
    tokenizer = CLIPTokenizer.from_pretrained(tmp_path)
    assert tokenizer(captions)["input_ids"] == pair.tokens.tokenizer(captions)["input_ids"]


def test_exported_preprocessing_is_our_range(pair, tmp_path):
    pair.export(tmp_path)
    array = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    processor = AutoImageProcessor.from_pretrained(tmp_path)
    got = processor(Image.fromarray(array), return_tensors="pt")["pixel_values"][0]
    expected = torch.from_numpy(array).permute(2, 0, 1).float() / 127.5 - 1
    assert_close(got, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("whole", [True, False])
def test_cliptext_reads_either_export(pair, captions, tmp_path, whole):
    (pair.export if whole else pair.export_text)(tmp_path)
    encoder = clip_text(source=str(tmp_path))
    assert {p.dtype for p in encoder.module.parameters()} == {torch.float32}
    rounded = pair.clip.text_model.half().float()
    ids, _ = pair.tokenize(captions)
    with torch.no_grad():
        expected = rounded(ids).last_hidden_state
    assert_close(encoder.encode(captions).context, expected, rtol=0, atol=0)


def test_spec_is_plain(pair):
    spec = pair.spec()
    assert spec["kind"] == "clip_pair"
    assert spec["vocab_size"] == len(pair.tokens.tokenizer)
    assert all(isinstance(value, int | str) for value in spec.values())
