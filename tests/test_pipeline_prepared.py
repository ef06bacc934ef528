"""Is a sampling with prepared weights the same sampling, and never one with old weights?"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

import ldm
from ldm.adapters.attach import attach
from ldm.adapters.lora import LoRA, LoRAConfig
from ldm.models.prepared import PreparedUNet
from ldm.pipeline import Pipeline, SamplingOptions, solving
from ldm.pipeline.options import Settings
from ldm.pipeline.solving import PREPARED_FROM, Source
from ldm.types import Conditioning

ENOUGH = SamplingOptions(steps=PREPARED_FROM)


@pytest.fixture
def pipe() -> Pipeline:
    return ldm.load("tiny", device="cpu")


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What every sampling from now on was given to call."""
    found: list[Any] = []
    prepare = solving.prepared

    def noted(network: torch.nn.Module) -> Any:
        found.append(prepare(network))
        return found[-1]

    monkeypatch.setattr(solving, "prepared", noted)
    return found


def latents(pipe: Pipeline, *, prepare: bool = True, **changes: Any) -> Tensor:
    pipe.prepare = prepare
    cond, null = pipe.text.encode(["a red circle", "a blue star"]), pipe.text.null(2)
    return pipe.latents(cond, null, [1, 2], **{"options": ENOUGH, **changes})


@pytest.mark.parametrize("sampler", ["ddim", "dpmpp_2m", "euler_ancestral"])
def test_latents_are_those_of_the_network_as_it_is(pipe: Pipeline, sampler: str) -> None:
    options = SamplingOptions(steps=PREPARED_FROM, sampler=sampler)
    ours, plain = (latents(pipe, prepare=p, options=options) for p in (True, False))
    # fp32 rounding, through as many steps
    assert_close(ours, plain, rtol=0, atol=1e-4 * plain.abs().max().item())
    assert not torch.equal(ours, plain)
    assert torch.equal(ours, latents(pipe, options=options))


def test_one_preparation_a_sampling_where_it_pays(pipe: Pipeline, made: list[Any]) -> None:
    latents(pipe)
    assert [type(network) for network in made] == [PreparedUNet]
    latents(pipe, options=SamplingOptions(steps=PREPARED_FROM - 1))
    source = Source(latents(pipe, prepare=False), strength=0.5)
    latents(pipe, source=source)  # half of the steps
    assert len(made) == 1


def test_guidance_within_an_interval_calls_with_other_numbers_of_rows(pipe: Pipeline) -> None:
    options = SamplingOptions(steps=PREPARED_FROM, guidance_interval=(0.5, 5.0))
    ours, plain = (latents(pipe, prepare=p, options=options) for p in (True, False))
    assert_close(ours, plain, rtol=0, atol=1e-4 * plain.abs().max().item())


def lora_attached(pipe: Pipeline) -> LoRA:
    torch.manual_seed(0)
    adapter = LoRA(pipe.unet, LoRAConfig(rank=2)).eval().requires_grad_(False)
    for value in adapter.parameters():
        value.normal_(std=0.2)
    attach(pipe.unet, adapter, strength=0.5)
    return adapter


def trained(pipe: Pipeline) -> Callable[[], object]:
    """A step of an optimiser, in place."""
    optimizer = torch.optim.SGD(pipe.unet.parameters(), lr=1.0)
    for value in pipe.unet.parameters():
        value.grad = 0.02 * torch.ones_like(value)
    return optimizer.step


def test_a_lora_whose_strength_changes_between_samplings(pipe: Pipeline) -> None:
    bare = latents(pipe)
    adapter = lora_attached(pipe)
    half = latents(pipe)
    adapter.set_strength(1.0)
    whole, plain = latents(pipe), latents(pipe, prepare=False)
    assert_close(whole, plain, rtol=0, atol=1e-4 * plain.abs().max().item())
    assert not torch.equal(bare, half)
    assert not torch.equal(half, whole)


def test_weights_that_change_between_samplings(pipe: Pipeline) -> None:
    before = latents(pipe)
    step = trained(pipe)
    step()
    after, plain = latents(pipe), latents(pipe, prepare=False)
    assert_close(after, plain, rtol=0, atol=1e-4 * plain.abs().max().item())
    assert (after - before).abs().max() > 1e-2


def test_sampling_leaves_a_network_that_trains_as_it_was(pipe: Pipeline) -> None:
    pipe.unet.requires_grad_(True)
    weights = {name: value.clone() for name, value in pipe.unet.state_dict().items()}
    latents(pipe)
    now = pipe.unet.state_dict()
    assert now.keys() == weights.keys()
    assert all(torch.equal(now[name], value) for name, value in weights.items())
    x, t = torch.zeros(1, 4, 8, 8), torch.zeros(1)
    context = pipe.text.null(1).context
    assert context is not None
    pipe.unet(x, t, context.clone()).sum().backward()
    assert all(value.grad is not None for value in pipe.unet.parameters())


def test_a_network_in_training_is_sampled_as_it_is(pipe: Pipeline, made: list[Any]) -> None:
    pipe.unet.train()
    ours, plain = (latents(pipe, prepare=p) for p in (True, False))
    assert torch.equal(ours, plain)
    assert made == [pipe.unet]


def test_a_preparation_lasts_one_sampling(pipe: Pipeline) -> None:
    model, settings = pipe.parts.model, ENOUGH.settled(pipe.defaults)
    assert isinstance(settings, Settings)
    cond = Conditioning(torch.zeros(1, 8, 128))
    with torch.inference_mode():
        model.denoise(cond, cond, settings, steps=settings.steps)
    assert model.unet is pipe.unet
    assert model.ready is None
