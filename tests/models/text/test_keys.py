"""Names of a CLIP's text weights, with and without the prefix of files."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from ldm.models.text.keys import (
    PREFIX,
    file_names,
    first_layers,
    module_names,
    num_layers,
    plain_names,
)

NAMES = [
    "embeddings.token_embedding.weight",
    "encoder.layers.0.mlp.fc1.bias",
    "encoder.layers.10.mlp.fc1.bias",
    "final_layer_norm.weight",
]
PLAIN = {name: torch.tensor(float(i)) for i, name in enumerate(NAMES)}
PREFIXED = {PREFIX + name: value for name, value in PLAIN.items()}
OTHERS = {
    "vision_model.embeddings.class_embedding": torch.zeros(1),
    "visual_projection.weight": torch.zeros(1),
    "text_projection.weight": torch.zeros(1),
    "logit_scale": torch.zeros(()),
    "text_model.embeddings.position_ids": torch.zeros(1),
}


class Old(nn.Module):
    """As transformers before 5: the network inside `text_model`."""

    def __init__(self) -> None:
        super().__init__()
        self.text_model = New()


class New(nn.Module):
    """As transformers 5: no prefix."""

    def __init__(self) -> None:
        super().__init__()
        self.final_layer_norm = nn.LayerNorm(2)


@pytest.mark.parametrize("state", [PLAIN, PREFIXED, {**PREFIXED, **OTHERS}, {**OTHERS, **PLAIN}])
def test_any_file_gives_either_naming(state):
    assert plain_names(state) == PLAIN
    assert file_names(state) == PREFIXED
    assert module_names(state, New()) == PLAIN
    assert module_names(state, Old()) == PREFIXED


def test_foreign_names_and_doubles_are_all_reported():
    state = {
        **PREFIXED,
        "final_layer_norm.weight": torch.zeros(1),
        "lm_head.weight": torch.zeros(1),
    }
    with pytest.raises(ValueError, match=r"final_layer_norm\.weight occurs.*lm_head\.weight is no"):
        plain_names(state)


def test_layers_are_counted_by_number_not_by_order():
    assert num_layers(PLAIN) == num_layers(PREFIXED) == 11
    assert num_layers([]) == 0
    assert set(first_layers(PLAIN, 10)) == set(NAMES) - {NAMES[2]}
