"""Encoders of other families: T5, BERT, CLIP."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch.testing import assert_close
from transformers import (
    BertConfig,
    BertModel,
    PreTrainedTokenizerFast,
    T5Config,
    T5EncoderModel,
    T5Model,
)

from ldm.models.text.auto import auto_text
from ldm.models.text.clip import clip_text
from ldm.models.text.folder import load_text

BITS = {"rtol": 0, "atol": 0}
WORDS = ["<pad>", "</s>", "<unk>", "a", "red", "blue", "star", "circle"]
CAPTIONS = ["a red star", "a blue circle a red star a", "star"]


def save_tokenizer(folder):
    """One id a word and `</s>` at the end, as T5 ends its texts."""
    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(WORDS)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", 1)]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    ).save_pretrained(folder)


@pytest.fixture
def t5_dir(tmp_path):
    torch.manual_seed(0)
    config = T5Config(vocab_size=8, d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2)
    model = T5Model(config)
    with torch.no_grad():
        for value in model.parameters():
            value.add_(0.2 * torch.randn_like(value))
    model.save_pretrained(tmp_path / "t5")
    save_tokenizer(tmp_path / "t5")
    return tmp_path / "t5"


def test_t5_encoder_with_its_mask(t5_dir):
    encoder = auto_text(source=str(t5_dir), max_tokens=6)
    assert (encoder.width, encoder.max_tokens) == (16, 6)
    got = encoder.encode(CAPTIONS)
    assert got.mask.sum(1).tolist() == [4, 6, 2]
    assert encoder.truncated == 1
    reference = T5EncoderModel.from_pretrained(t5_dir, dtype=torch.float32).eval()
    for row, length in enumerate([4, 6, 2]):  # each alone and unpadded
        ids = encoder.tokens(CAPTIONS).ids[row : row + 1, :length]
        with torch.no_grad():
            expected = reference(ids).last_hidden_state[0]
        # padding changes the order of sums only
        assert_close(got.context[row, :length], expected, rtol=0, atol=1e-5)


def test_the_mask_is_an_explicit_choice(t5_dir):
    encoder = auto_text(source=str(t5_dir), max_tokens=6, attention_mask=False)
    got = encoder.encode(CAPTIONS)
    reference = T5EncoderModel.from_pretrained(t5_dir, dtype=torch.float32).eval()
    with torch.no_grad():
        expected = reference(encoder.tokens(CAPTIONS).ids).last_hidden_state
    assert got.mask is None
    assert_close(got.context, expected, **BITS)


def test_null_has_the_mask_of_the_empty_caption(t5_dir):
    encoder = auto_text(source=str(t5_dir), max_tokens=6)
    null = encoder.null(2)
    assert null.mask.tolist() == [[True] + [False] * 5] * 2
    assert_close(null.context[:1], encoder.encode([""]).context, **BITS)


def test_save_and_load_are_bit_equal(t5_dir, tmp_path):
    encoder = auto_text(source=str(t5_dir), max_tokens=6, null="zeros")
    encoder.save(tmp_path / "frozen")
    again = load_text(tmp_path / "frozen")
    assert again.spec() == encoder.spec()
    assert_close(again.encode(CAPTIONS).context, encoder.encode(CAPTIONS).context, **BITS)
    names = load_file(tmp_path / "frozen" / "model.safetensors")
    assert not any(name.startswith("decoder") for name in names)


def test_bert_without_its_pooler(tmp_path):
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=8,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=12,
    )
    BertModel(config, add_pooling_layer=False).save_pretrained(tmp_path)
    save_tokenizer(tmp_path)
    encoder = auto_text(source=str(tmp_path), max_tokens=6)
    reference = BertModel.from_pretrained(
        tmp_path, dtype=torch.float32, add_pooling_layer=False
    ).eval()
    tokens = encoder.tokens(CAPTIONS)
    with torch.no_grad():
        expected = reference(tokens.ids, attention_mask=tokens.mask.long()).last_hidden_state
    assert_close(encoder.encode(CAPTIONS).context, expected, **BITS)
    with pytest.raises(ValueError, match="max_tokens=13; use 2 to 12"):
        auto_text(source=str(tmp_path), max_tokens=13)


def test_a_clip_without_mask_is_what_cliptext_gives(clip_dir, captions):
    encoder = auto_text(source=str(clip_dir), max_tokens=16, attention_mask=False)
    expected = clip_text(source=str(clip_dir)).encode(captions)
    assert_close(encoder.encode(captions).context, expected.context, **BITS)


def test_missing_weights_are_not_made_up(t5_dir):
    weights = load_file(t5_dir / "model.safetensors")
    weights.pop("encoder.block.1.layer.0.SelfAttention.q.weight")
    save_file(weights, t5_dir / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"do not fill a T5EncoderModel: missing .*q\.weight"):
        auto_text(source=str(t5_dir), max_tokens=6)


def test_half_precision_is_asked_for_not_inherited(t5_dir):
    model = T5EncoderModel.from_pretrained(t5_dir, dtype=torch.float16)
    model.save_pretrained(t5_dir)
    assert auto_text(source=str(t5_dir), max_tokens=6).dtype == torch.float32
    assert auto_text(source=str(t5_dir), max_tokens=6, dtype="bf16").dtype == torch.bfloat16
