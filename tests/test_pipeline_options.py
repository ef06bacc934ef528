"""What is chosen for whoever does not choose?"""

from __future__ import annotations

import pytest

from ldm.pipeline import SamplingDefaults, SamplingOptions
from ldm.sampling.guidance import Guidance

DEFAULTS = SamplingDefaults(
    sampler="plms", steps=12, guidance=4.0, guidance_rescale=0.3, eta=0.0, size=(32, 32)
)


def test_nothing_given_is_the_models_own() -> None:
    settings = SamplingOptions().settled(DEFAULTS)
    assert (settings.steps, settings.sampler, settings.grid, settings.eta) == (12, "plms", None, 0)
    assert settings.guidance == Guidance(scale=4.0, rescale=0.3)
    assert (settings.weighting, settings.long_prompts, settings.tiled) == (False, False, None)


def test_another_sampler_brings_its_own_eta_and_rescale() -> None:
    settings = SamplingOptions(sampler="euler_a").settled(DEFAULTS)
    assert (settings.eta, settings.guidance.rescale, settings.steps) == (1.0, 0.0, 12)
    assert SamplingOptions(sampler="ddim_trailing").settled(DEFAULTS).guidance.rescale == 0.7
    same = SamplingOptions(sampler="pndm").settled(DEFAULTS)  # plms by another name
    assert same.guidance.rescale == 0.3


def test_what_is_given_counts_zeros_too() -> None:
    options = SamplingOptions(
        steps=1,
        sampler="ddim",
        grid="karras",
        eta=0.0,
        guidance=0.0,
        guidance_rescale=0.0,
        guidance_interval=[0.2, 5.0],
        threshold=0.9,
        threshold_floor=2.0,
        weighting=True,
        tiled=False,
    )
    settings = options.settled(DEFAULTS)
    assert settings.guidance == Guidance(
        scale=0.0, rescale=0.0, interval=(0.2, 5.0), threshold=0.9, threshold_floor=2.0
    )
    assert (settings.grid, settings.weighting, settings.tiled) == ("karras", True, False)


@pytest.mark.parametrize(
    "options",
    [
        SamplingOptions(),
        SamplingOptions(sampler="euler_a", threshold=0.9, guidance_interval=(0.1, 9.0)),
        SamplingOptions(sampler="ddim", eta=0.5, grid="trailing", long_prompts=True, tiled=True),
    ],
)
def test_settled_options_ask_for_the_same_of_any_model(options: SamplingOptions) -> None:
    settings = options.settled(DEFAULTS)
    assert settings.options().settled(SamplingDefaults()) == settings
