"""Does img2img give what diffusers' pipeline gives, with the same network and noise?"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.testing import assert_close

import ldm
from ldm.pipeline import Pipeline, SamplingOptions
from ldm.pipeline.noise import Noise
from ldm.pipeline.solving import Source

pytestmark = pytest.mark.reference
SEEDS = (3, 4)
PROMPTS = ["a small red circle", "a large blue star"]
STEPS = 10
SD: dict[str, Any] = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "steps_offset": 1,
}
# both compute in float32, over ten steps of a network that amplifies, on values up to about 4
CLOSE = {"rtol": 0.0, "atol": 1e-4}


@pytest.fixture(scope="module")
def pipe() -> Pipeline:
    return ldm.load("tiny")


@pytest.fixture
def theirs(pipe: Pipeline, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Tensor]:
    """theirs(scheduler, …): the latents that diffusers' pipeline makes of our noise."""
    import diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion_img2img as module
    from diffusers import AutoencoderKL, StableDiffusionImg2ImgPipeline, UNet2DConditionModel

    config = pipe.unet.config
    unet = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=config.block_out_channels,
        down_block_types=config.down_block_types,
        up_block_types=config.up_block_types,
        layers_per_block=config.layers_per_block,
        attention_head_dim=config.num_attention_heads,
        cross_attention_dim=config.cross_attention_dim,
        norm_num_groups=config.norm_num_groups,
    )
    unet.load_state_dict(pipe.unet.state_dict())
    noise = Noise(SEEDS, (4, 8, 8), torch.device("cpu")).start()
    monkeypatch.setattr(module, "randn_tensor", lambda *_, **__: noise)

    def run(scheduler: Any, **call: Any) -> Tensor:
        model = StableDiffusionImg2ImgPipeline(
            vae=AutoencoderKL(block_out_channels=(8, 8, 8), norm_num_groups=4),
            text_encoder=None,
            tokenizer=None,
            unet=unet,
            scheduler=scheduler,
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
        model.set_progress_bar_config(disable=True)
        cond, null = pipe.text.encode(PROMPTS).context, pipe.text.null(2).context
        return model(
            prompt_embeds=cond, negative_prompt_embeds=null, output_type="latent", **call
        ).images

    return run


@pytest.fixture(scope="module")
def x0(pipe: Pipeline) -> Tensor:
    colours = [Image.new("RGB", (32, 32), colour) for colour in ("orange", "navy")]
    pixels = torch.stack([torch.tensor(list(c.getpixel((0, 0)))) for c in colours]) / 127.5 - 1
    pixels = pixels[:, :, None, None].expand(-1, -1, 32, 32) * torch.linspace(0, 1, 32)
    return pipe.parts.latents(pixels, None)


@pytest.mark.parametrize("strength", [0.1, 0.35, 0.75, 0.99])
@pytest.mark.parametrize("guidance", [1.0, 4.0])
def test_ddim(
    pipe: Pipeline,
    theirs: Callable[..., Tensor],
    x0: Tensor,
    strength: float,
    guidance: float,
) -> None:
    from diffusers import DDIMScheduler

    scheduler = DDIMScheduler(**SD, clip_sample=False, set_alpha_to_one=False)
    call = {"strength": strength, "guidance_scale": guidance, "num_inference_steps": STEPS}
    got = pipe.latents(
        pipe.text.encode(PROMPTS),
        pipe.text.null(1),
        SEEDS,
        options=SamplingOptions(steps=STEPS, sampler="ddim", guidance=guidance),
        source=Source(x0, strength),
    )
    want = theirs(scheduler, image=x0, **call)
    assert_close(got, want, **CLOSE)
    assert float((got - x0).abs().max()) > 0.01  # the image was changed


@pytest.mark.parametrize("strength", [0.05, 0.2, 0.29, 0.5, 0.99])
@pytest.mark.parametrize("steps", [1, 7, 50])
def test_as_many_steps_from_the_same_time(pipe: Pipeline, strength: float, steps: int) -> None:
    """int(steps * strength) of them, in exact arithmetic: 0.29 of 100 is 29."""
    from diffusers import DDIMScheduler

    scheduler = DDIMScheduler(**SD)
    scheduler.set_timesteps(steps)
    kept = int(round(steps * strength, 9))
    times = scheduler.timesteps[max(steps - kept, 0) :].tolist()
    options = SamplingOptions(steps=steps, sampler="ddim").settled(pipe.defaults)
    _, levels = pipe.parts.model.levels(options)
    assert levels.truncate(strength).t[:-1].tolist() == times
