"""Is the extracted LoRA the nearest there is?"""

from __future__ import annotations

import logging
from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from ldm.adapters.attach import merge
from ldm.adapters.extract import extract
from ldm.adapters.lora import LoRA
from ldm.models.unet import UNet


def test_what_was_merged_comes_out_again(
    make_base: Callable[..., UNet], make_lora: Callable[..., LoRA]
) -> None:
    base, tuned = make_base(), make_base()
    lora = make_lora(base, rank=3, targets="*")
    merge(tuned, lora)
    found = extract(base, tuned, rank=3, targets=["*"])
    assert found.named_layers().keys() == lora.named_layers().keys()
    for path in lora.named_layers():
        assert_close(found.delta(path), lora.delta(path), rtol=0, atol=2e-5)  # fp32 SVD


@pytest.mark.parametrize("layer", [nn.Linear(7, 9), nn.Conv2d(3, 9, 2)])
def test_the_rest_is_the_smaller_singular_values(layer: nn.Module) -> None:
    torch.manual_seed(0)
    base = nn.Sequential(layer).double()
    tuned = nn.Sequential(type(layer)(*layer.weight.shape[1::-1], *layer.weight.shape[3:])).double()
    change = tuned[0].weight - base[0].weight
    lora = extract(base, tuned, rank=2, targets=["0"])
    rest = (change - lora.delta("0")).square().sum()
    singular = torch.linalg.svdvals(change.flatten(1))
    assert_close(rest, singular[2:].square().sum())  # Eckart and Young 1936
    assert lora.named_layers()["0"].alpha == 2


def test_the_share_that_is_kept_is_logged_and_ranks_are_limited(
    caplog: pytest.LogCaptureFixture,
) -> None:
    base = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 1, bias=False))
    tuned = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 1, bias=False))
    with torch.no_grad():
        for value in base.parameters():
            value.zero_()
        tuned[0].weight.copy_(torch.diag(torch.tensor([3.0, 1.0])))
        tuned[1].weight.zero_()
    with caplog.at_level(logging.INFO, "ldm"):
        extract(base, tuned, rank=1, targets=["*"])
        lora = extract(base, tuned, rank=2, targets=["*"])
    with pytest.raises(ValueError, match="are equal in all 2 layers"):
        extract(base, base, rank=1, targets=["*"])
    assert "rank 1 keeps 90.0 % of the squared difference of 2 layers" in caplog.text
    assert caplog.text.count("keeps 100.0 %") == 1
    assert {path: layer.rank for path, layer in lora.named_layers().items()} == {"0": 2, "1": 1}


def test_other_networks_and_ranks_are_refused(make_base: Callable[..., UNet]) -> None:
    with pytest.raises(ValueError, match=r"differ in the shape of .*attn2.to_k"):
        extract(make_base(), make_base(cross_attention_dim=20), rank=1)
    with pytest.raises(ValueError, match="rank=0; give 1 or more"):
        extract(make_base(), make_base(), rank=0)
