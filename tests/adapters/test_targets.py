"""Do globs name what they say, and do errors help?"""

from __future__ import annotations

import pytest
from torch import nn

from ldm.adapters.targets import find, matching
from ldm.models.unet import UNet


def test_a_glob_crosses_dots_and_keeps_the_networks_order(base: UNet) -> None:
    found = find(base, ["*.to_q", "conv_in"])
    paths = [name for name, _ in base.named_modules()]
    assert list(found) == [p for p in paths if p == "conv_in" or p.endswith(".to_q")]
    assert len(found) == 9  # two in each of four transformers
    assert all(found[name] is base.get_submodule(name) for name in found)


def test_only_the_kinds_asked_for_are_named(base: UNet) -> None:
    convolutions = find(base, ["*.attentions.*"], (nn.Conv2d,))
    assert {name.rpartition(".")[2] for name in convolutions} == {"proj_in", "proj_out"}
    norms = find(base, ["*.norm?"], (nn.LayerNorm,))
    assert all(isinstance(module, nn.LayerNorm) for module in norms.values())


def test_a_glob_is_the_whole_name() -> None:
    assert matching(["to_q", "a.to_q", "a.to_qkv", "a.TO_Q"], "*to_q") == ["to_q", "a.to_q"]


def test_every_glob_that_names_nothing_is_told_with_the_nearest(base: UNet) -> None:
    with pytest.raises(ValueError) as error:
        find(base, ["*.to_queries", "conv_inn", "*.to_k", "*.norm1"])
    text = str(error.value)
    assert "'*.to_queries' names no Linear or Conv2d; nearest: down_blocks.0." in text
    assert "attn1.to_q," in text
    assert "'conv_inn' names no Linear or Conv2d; nearest: conv_in," in text
    assert "'*.norm1'" in text  # it is there, but a norm
    assert "'*.to_k'" not in text


def test_no_glob_at_all_is_an_error(base: UNet) -> None:
    with pytest.raises(ValueError, match="no glob is given"):
        find(base, [])
