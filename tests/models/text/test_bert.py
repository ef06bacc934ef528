"""The BERT-style encoder of latent diffusion; parity with diffusers is in tests/reference."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from ldm.models.text.bert import LDMBert, LDMBertConfig, bert_text
from ldm.models.text.folder import load_text

BITS = {"rtol": 0, "atol": 0}
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "red", "blue", "star", "##s"]
SMALL = LDMBertConfig(
    vocab_size=10, max_tokens=8, width=24, num_layers=2, num_heads=2, head_dim=8, ff_width=48
)


@pytest.fixture
def vocabulary(tmp_path):
    folder = tmp_path / "bert-tokenizer"
    folder.mkdir()
    (folder / "vocab.txt").write_text("\n".join(WORDS) + "\n")
    return str(folder)


@pytest.fixture
def encoder(vocabulary):
    torch.manual_seed(0)
    return bert_text(source="scratch", tokenizer=vocabulary, config=SMALL)


def test_published_size():
    with torch.device("meta"):
        model = LDMBert(LDMBertConfig())
    assert sum(p.numel() for p in model.parameters()) == 581_994_042
    assert sum(p.numel() for p in model.to_logits.parameters()) == 39_098_682
    assert model.model.layers[0].self_attn.q_proj.weight.shape == (512, 1280)


def test_tokens_are_berts_lower_case_and_word_pieces(encoder):
    ids = encoder.tokens(["A Red stars", ""]).ids
    assert ids.tolist() == [[2, 5, 6, 8, 9, 3, 0, 0], [2, 3, 0, 0, 0, 0, 0, 0]]


def test_context_is_the_modules_output_pads_included(encoder):
    got = encoder.encode(["a red star"])
    with torch.no_grad():
        expected = encoder.module(encoder.tokens(["a red star"]).ids)
    assert got.mask is None
    assert_close(got.context, expected, **BITS)
    other = encoder.tokens.pad_id + 5
    ids = encoder.tokens(["a red star"]).ids
    with torch.no_grad():
        changed = encoder.module(torch.where(ids == 0, other, ids))
    assert not torch.equal(changed[:, 0], expected[:, 0])  # the first token sees the pads


def test_save_and_load_are_bit_equal(encoder, tmp_path):
    encoder.save(tmp_path / "frozen")
    again = load_text(tmp_path / "frozen")
    assert again.spec() == encoder.spec()
    captions = ["a red star", "blue"]
    assert_close(again.encode(captions).context, encoder.encode(captions).context, **BITS)
    same = bert_text(source=str(tmp_path / "frozen"), config=SMALL)
    assert_close(same.encode(captions).context, encoder.encode(captions).context, **BITS)


def test_training_reaches_every_weight_but_the_unused_head(encoder):
    encoder.unfreeze()
    encoder.encode(["a red star"]).context.square().sum().backward()
    trained = {n for n, p in encoder.module.named_parameters() if p.requires_grad}
    assert {n for n, _ in encoder.module.named_parameters()} - trained == {
        "to_logits.weight",
        "to_logits.bias",
    }
    # a parameter that requires a gradient and gets none would stop data-parallel training
    assert all(p.grad is not None for p in encoder.module.parameters() if p.requires_grad)


def test_other_sizes_and_vocabularies_are_refused(encoder, vocabulary, tmp_path):
    encoder.save(tmp_path / "frozen")
    with pytest.raises(ValueError, match=r"width=1280 \(there 24\)"):
        bert_text(source=str(tmp_path / "frozen"), config=LDMBertConfig())
    tiny = LDMBertConfig(vocab_size=9, max_tokens=8, width=24, num_layers=1)
    with pytest.raises(ValueError, match="10 ids and the network 9 rows"):
        bert_text(source="scratch", tokenizer=vocabulary, config=tiny)
    with pytest.raises(ValueError, match="has no tokenizer; name one"):
        bert_text(source="scratch", config=SMALL)


def test_initial_embeddings_are_small(vocabulary):
    torch.manual_seed(0)
    config = LDMBertConfig(vocab_size=1000, width=256, num_layers=1)
    module = bert_text(source="scratch", tokenizer=vocabulary, config=config).module
    # 256,000 draws: the sample deviation is within 0.5 % of 0.02
    assert_close(module.model.embed_tokens.weight.std().item(), 0.02, rtol=0.01, atol=0)
