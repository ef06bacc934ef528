"""Are the text's keys and values, made once, the same as made at every call?"""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from ldm.diffusion.objective import Objective
from ldm.diffusion.prediction import V
from ldm.diffusion.schedules import ScaledLinear
from ldm.models.unet import UNet, UNetConfig
from ldm.sampling import denoiser as denoisers
from ldm.sampling.denoiser import Denoiser
from ldm.sampling.guidance import cfg
from ldm.sampling.presets import get_sampler
from ldm.types import Conditioning

MASK = torch.tensor([[True, True, True, False, False], [True, False, True, True, True]])
VALUES = "attentions.0.transformer_blocks.0.attn2.to_v"  # of the middle block


def built(**changes: Any) -> UNet:
    """A small network with random values everywhere: a fresh one answers 0 to everything."""
    fields: dict[str, Any] = {
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
        "block_out_channels": (16, 32),
        "layers_per_block": 1,
        "num_attention_heads": 4,
        "cross_attention_dim": 12,
        "norm_num_groups": 8,
    }
    torch.manual_seed(0)
    unet = UNet(UNetConfig(**{**fields, **changes}))
    with torch.no_grad():
        for value in unet.parameters():
            value.add_(0.05 * torch.randn_like(value))
    return unet


def inputs(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    rng = torch.Generator().manual_seed(1)
    x = torch.randn(2, 4, 8, 8, generator=rng, dtype=dtype)
    return x, torch.tensor([1, 900], dtype=dtype), torch.randn(2, 5, 12, generator=rng, dtype=dtype)


# --- the network ------------------------------------------------------------------------------


@pytest.mark.parametrize("mask", [None, MASK], ids=["all", "masked"])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"in_channels": 9},
        {"use_linear_projection": True, "upcast_attention": True},
        {"transformer_layers_per_block": 2, "checkpointing": True},
    ],
    ids=str,
)
def test_keys_stand_for_their_text_bit_for_bit(
    changes: dict[str, Any], mask: Tensor | None
) -> None:
    unet = built(**changes)
    x, t, context = inputs()
    x = torch.cat([x, x, x], dim=1)[:, : unet.config.in_channels]
    with torch.no_grad():
        keys = unet.project(context, mask)
        for late in (t, t + 5):
            assert_close(unet(x, late, keys), unet(x, late, context, mask), rtol=0, atol=0)
        assert (unet(x, t, keys) - unet(x, t, 2 * context, mask)).abs().max() > 1e-4


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_keys_under_autocast(dtype: torch.dtype) -> None:
    unet = built()
    x, t, context = inputs()
    with torch.inference_mode(), torch.autocast("cpu", dtype):
        keys = unet.project(context, MASK)
        assert {v.dtype for pair in keys.pairs.values() for v in pair} == {dtype}
        assert_close(unet(x, t, keys), unet(x, t, context, MASK), rtol=0, atol=0)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_keys_pass_gradients_on(checkpointing: bool) -> None:
    gradients = []
    for by_keys in (False, True):
        unet = built(checkpointing=checkpointing).double()
        x, t, context = inputs(dtype=torch.float64)
        context.requires_grad_()
        told = unet.project(context) if by_keys else context
        unet(x, t, told).square().mean().backward()
        gradients.append([context.grad, *(value.grad for value in unet.parameters())])
    for plain, through in zip(*gradients, strict=True):
        assert_close(through, plain, rtol=0, atol=1e-12)


def test_hooks_act_when_the_keys_are_made_and_not_again() -> None:
    """What adapters do before (hypernetworks) and behind (LoRA) to_k and to_v is in the keys."""
    unet = built()
    x, t, context = inputs()
    calls: Counter[str] = Counter()
    text = [name for name, _ in unet.named_modules() if name.endswith(("attn2.to_k", "attn2.to_v"))]
    for name in text:
        module = unet.get_submodule(name)
        module.register_forward_pre_hook(lambda module, args: (args[0].roll(1, -1),))
        module.register_forward_hook(lambda module, args, out: out * 1.5 + 0.5)
        module.register_forward_hook(partial(lambda name, *_: calls.update([name]), name))
    with torch.no_grad():
        expected = unet(x, t, context)
        calls.clear()
        keys = unet.project(context)
        for _ in range(3):
            assert_close(unet(x, t, keys), expected, rtol=0, atol=0)
    assert calls == dict.fromkeys(text, 1)


def test_a_compiled_network_takes_keys_of_any_text() -> None:
    graphs: list[Any] = []

    def backend(graph: Any, _: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    unet = built()
    x, t, context = inputs()
    with torch.no_grad():
        texts = [context, 2 * context, context.flip(0)]
        expected = [unet(x, t, text, MASK) for text in texts]
        unet.compile(backend=backend)
        for text, answer in zip(texts, expected, strict=True):
            assert_close(unet(x, t, unet.project(text, MASK)), answer, rtol=0, atol=0)
    assert len(graphs) == 1  # the next text is no reason to compile again


def test_wrong_keys_say_what_is_wrong() -> None:
    unet, (x, t, context) = built(), inputs()
    keys = unet.project(context)
    with pytest.raises(ValueError, match="TextKeys of another network"):
        built()(x, t, keys)
    with pytest.raises(ValueError, match="a mask beside TextKeys"):
        unet(x, t, keys, MASK)
    with pytest.raises(ValueError, match="width 24, cross_attention_dim=12"):
        unet.project(torch.cat([context, context], dim=-1))
    for told in (context, keys):
        with pytest.raises(ValueError, match="cross_attention_dim=None"):
            built(cross_attention_dim=None)(x, t, told)


# --- in sampling ------------------------------------------------------------------------------

OBJECTIVE = Objective(schedule=ScaledLinear(), prediction=V())
LEVEL = OBJECTIVE.schedule.at(torch.tensor(400.0))


def text_calls(unet: UNet) -> list[int]:
    """One entry for each time the text is projected."""
    calls: list[int] = []
    unet.mid_block.get_submodule(VALUES).register_forward_hook(
        lambda module, args, out: calls.append(len(out))
    )
    return calls


def conditionings() -> tuple[Tensor, Conditioning, Conditioning]:
    x, _, context = inputs()
    return x, Conditioning(context, MASK), Conditioning(context.flip(0, 1), MASK)


@pytest.mark.parametrize("guard", [torch.no_grad, torch.inference_mode])
def test_a_sampling_projects_its_text_once_and_gives_the_same(guard: Callable[[], Any]) -> None:
    unet = built(in_channels=9)
    calls = text_calls(unet)
    x, cond, uncond = conditionings()
    extra = torch.cat([x, x], dim=1)[:, :5]
    cond, uncond = (Conditioning(c.context, c.mask, extra) for c in (cond, uncond))
    sampler = get_sampler("ddim")
    levels = sampler.grid(OBJECTIVE.schedule, steps=4)
    pictures = []
    with guard():
        for network, times in ((lambda *args: unet(*args), 4), (unet, 1)):
            calls.clear()
            denoise = cfg(Denoiser(network, OBJECTIVE), cond, uncond, scale=3.0)
            pictures.append(sampler.solve(denoise, x, levels, eta=0.0))
            assert calls == [4] * times  # both halves of the guidance: 4 rows
    assert_close(pictures[1], pictures[0], rtol=0, atol=0)


def test_another_text_or_mask_is_never_answered_with_old_keys() -> None:
    unet = built()
    calls = text_calls(unet)
    x, cond, uncond = conditionings()
    told = [
        cond,
        uncond,
        Conditioning(cond.context),
        Conditioning(cond.context, MASK.flip(0)),
        Conditioning.cat([uncond.rows(slice(1)), cond.rows(slice(1))]),
    ]
    assert len(told) > denoisers.TEXTS
    denoiser = Denoiser(unet, OBJECTIVE)
    with torch.no_grad():
        expected = [
            Denoiser(lambda *args: unet(*args), OBJECTIVE).output(x, LEVEL, c) for c in told
        ]
        calls.clear()
        for c, answer in [*zip(told, expected, strict=True)] * 2:
            assert_close(denoiser.output(x, LEVEL, c), answer, rtol=0, atol=0)
        calls.clear()
        for c in told[-2:] * 3:  # as guidance does that is on at some levels only
            denoiser.output(x, LEVEL, c)
    assert calls == []


def test_keys_go_with_their_denoiser_and_with_newer_texts() -> None:
    unet = built()
    x, cond, _ = conditionings()
    made: list[weakref.ref[Tensor]] = []
    unet.mid_block.get_submodule(VALUES).register_forward_hook(
        lambda module, args, out: made.append(weakref.ref(out))
    )
    denoiser = Denoiser(unet, OBJECTIVE)
    with torch.no_grad():
        denoiser.output(x, LEVEL, cond)
        assert made[0]() is not None
        for _ in range(denoisers.TEXTS):
            denoiser.output(x, LEVEL, Conditioning(inputs()[2]))
    kept = [value() is not None for value in made]
    assert kept == [False] + [True] * denoisers.TEXTS
    del denoiser
    assert [value() for value in made] == [None] * len(made)


def test_with_gradients_on_the_text_is_projected_at_each_call() -> None:
    unet = built()
    calls = text_calls(unet)
    x, cond, _ = conditionings()
    denoiser = Denoiser(unet, OBJECTIVE)
    with torch.no_grad():
        before = denoiser.output(x, LEVEL, cond)
    assert cond.context is not None
    cond.context.requires_grad_()
    for _ in range(2):
        after = denoiser.output(x, LEVEL, cond)
    assert len(calls) == 3
    after.sum().backward()
    assert cond.context.grad is not None
    assert cond.context.grad.any()
    assert_close(after.detach(), before, rtol=0, atol=0)


def test_an_unconditional_network_samples() -> None:
    unet = built(cross_attention_dim=None)
    x, t, _ = inputs()
    with torch.no_grad():
        got = Denoiser(unet, OBJECTIVE).output(x, LEVEL, Conditioning())
        assert_close(got, unet(x, torch.full_like(t, 400.0)), rtol=0, atol=0)
