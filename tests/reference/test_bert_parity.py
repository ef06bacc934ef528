"""Our LDM-BERT against diffusers' LDMBertModel, at reduced size."""

from __future__ import annotations

import json

import pytest
import torch
from torch.testing import assert_close

from ldm.models.text.bert import LDMBertConfig, bert_model, read_config

pytestmark = pytest.mark.reference

# every size different from every other, so that none can stand in for another
SIZES = LDMBertConfig(
    vocab_size=60, max_tokens=9, width=40, num_layers=3, num_heads=2, head_dim=12, ff_width=72
)


def reference_model():
    from diffusers.pipelines.latent_diffusion.pipeline_latent_diffusion import (
        LDMBertConfig as TheirConfig,
    )
    from diffusers.pipelines.latent_diffusion.pipeline_latent_diffusion import LDMBertModel

    torch.manual_seed(0)
    config = TheirConfig(
        vocab_size=60,
        max_position_embeddings=9,
        encoder_layers=3,
        encoder_ffn_dim=72,
        encoder_attention_heads=2,
        head_dim=12,
        d_model=40,
    )
    model = LDMBertModel(config).eval()
    with torch.no_grad():  # zero biases and unit norms would hide a missing one
        for value in model.parameters():
            value.add_(0.1 * torch.randn_like(value))
    return model


def test_same_outputs_from_the_same_weights():
    theirs = reference_model()
    ours = bert_model(theirs.state_dict(), SIZES, dtype=torch.float32)
    ids = torch.randint(0, 60, (4, 9))
    with torch.no_grad():
        # two attention implementations sum in another order
        assert_close(ours(ids), theirs(ids)[0], rtol=1e-5, atol=1e-5)


def test_their_folder_is_read_as_it_is(tmp_path):
    reference_model().save_pretrained(tmp_path)
    assert read_config(tmp_path) == SIZES
    stored = json.loads((tmp_path / "config.json").read_text())
    assert stored["model_type"] == "ldmbert"
