"""Does inpainting give what diffusers' pipelines give, with 4 and with 9 input channels?"""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any

import pytest
import torch
from PIL import Image, ImageChops
from torch import Tensor
from torch.testing import assert_close

import ldm
from ldm.models.unet import UNet
from ldm.pipeline import Pipeline, SamplingOptions
from ldm.pipeline.noise import Noise
from ldm.pipeline.solving import Source

pytestmark = pytest.mark.reference
SEEDS = (3, 4)
PROMPTS = ["a small red circle", "a large blue star"]
STEPS = 10
OPTIONS = SamplingOptions(steps=STEPS, sampler="ddim", guidance=3.0)
# both compute in float32, over ten steps of a network that amplifies, on values up to about 4
CLOSE = {"rtol": 0.0, "atol": 1e-4}


@pytest.fixture(scope="module")
def pipe() -> Pipeline:
    return ldm.load("tiny")


@pytest.fixture(scope="module")
def wide(pipe: Pipeline) -> Pipeline:
    """The same model with five more input channels that say something."""
    config = replace(pipe.unet.config, in_channels=9)
    unet = UNet(config)
    state = dict(pipe.unet.state_dict())
    more = 0.05 * torch.randn(64, 5, 3, 3, generator=torch.Generator().manual_seed(0))
    state["conv_in.weight"] = torch.cat([state["conv_in.weight"], more], dim=1)
    unet.load_state_dict(state)
    return Pipeline(
        unet.eval().requires_grad_(False),
        pipe.codec,
        pipe.text,
        pipe.objective,
        defaults=pipe.defaults,
        null="empty",
    )


@pytest.fixture(scope="module")
def image() -> Image.Image:
    picture = Image.new("RGB", (32, 32), "white")
    picture.paste("orange", (8, 4, 28, 20))
    return picture


@pytest.fixture(scope="module")
def mask() -> Image.Image:
    """Greys on both sides of the half, and an edge within a latent position."""
    picture = Image.new("L", (32, 32), 100)
    picture.paste(200, (6, 0, 20, 32))
    return picture


def noise() -> Tensor:
    return Noise(SEEDS, (4, 8, 8), torch.device("cpu")).start()


def diffusers_inpaint(
    ours: Pipeline,
    image: Image.Image,
    mask: Image.Image,
    monkeypatch: pytest.MonkeyPatch,
    **call: Any,
) -> Tensor:
    """The latents of diffusers' inpainting pipeline with our weights and our start noise."""
    import diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion_inpaint as module
    from diffusers import (
        AutoencoderKL,
        DDIMScheduler,
        StableDiffusionInpaintPipeline,
        UNet2DConditionModel,
    )

    config = asdict(ours.unet.config)
    config["attention_head_dim"] = config.pop("num_attention_heads")  # their name for it
    del config["checkpointing"]
    unet = UNet2DConditionModel(**config)
    unet.load_state_dict(ours.unet.state_dict())
    shape = ours.codec.vae.config
    vae = AutoencoderKL(
        block_out_channels=shape.block_out_channels,
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        layers_per_block=shape.layers_per_block,
        norm_num_groups=shape.norm_num_groups,
        mid_block_add_attention=shape.mid_block_add_attention,
        scaling_factor=ours.codec.scale,
    )
    vae.load_state_dict(ours.codec.vae.state_dict())
    monkeypatch.setattr(module, "randn_tensor", lambda *_, **__: noise())
    monkeypatch.setattr(  # the posterior's mean, as ours
        module, "retrieve_latents", lambda output, **_: output.latent_dist.mode()
    )
    model = StableDiffusionInpaintPipeline(
        vae=vae,
        text_encoder=None,
        tokenizer=None,
        unet=unet,
        scheduler=DDIMScheduler(
            beta_start=0.00085,
            beta_end=0.012,
            beta_schedule="scaled_linear",
            steps_offset=1,
            clip_sample=False,
            set_alpha_to_one=False,
        ),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    model.set_progress_bar_config(disable=True)
    return model(
        prompt_embeds=ours.text.encode(PROMPTS).context,
        negative_prompt_embeds=ours.text.null(2).context,
        image=image,
        mask_image=mask,
        height=32,
        width=32,
        num_inference_steps=STEPS,
        guidance_scale=3.0,
        output_type="latent",
        **call,
    ).images


def our_latents(
    pipe: Pipeline, image: Image.Image, mask: Image.Image, strength: float, monkeypatch: Any
) -> Tensor:
    """What `inpaint` decodes."""
    seen: list[Tensor] = []

    def look(codec: Any, x0: Tensor, **_: Any) -> Tensor:
        seen.append(x0)
        return codec.decode(x0)

    monkeypatch.setattr("ldm.pipeline.tiles.decoded", look)
    pipe.inpaint(
        PROMPTS, image, mask, strength, SEEDS, options=OPTIONS, batch_size=2, paste_back=False
    )
    return torch.cat(seen)


@pytest.mark.parametrize("strength", [0.3, 0.75, 1.0])
@pytest.mark.parametrize("channels", [4, 9])
def test_the_pipeline(
    pipe: Pipeline,
    wide: Pipeline,
    image: Image.Image,
    mask: Image.Image,
    monkeypatch: pytest.MonkeyPatch,
    channels: int,
    strength: float,
) -> None:
    ours = pipe if channels == 4 else wide
    want = diffusers_inpaint(ours, image, mask, monkeypatch, strength=strength)
    got = our_latents(ours, image, mask, strength, monkeypatch)
    assert_close(got, want, **CLOSE)


@pytest.mark.parametrize("strength", [0.3, 1.0])
def test_the_legacy_loop(pipe: Pipeline, strength: float) -> None:
    """Step, then the known part at the next level with the same noise, clean after the last."""
    from diffusers import DDIMScheduler

    generator = torch.Generator().manual_seed(1)
    x0 = torch.randn(2, 4, 8, 8, generator=generator)
    mask = (torch.rand(2, 1, 8, 8, generator=generator) > 0.5).float()
    scheduler = DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        steps_offset=1,
        clip_sample=False,
        set_alpha_to_one=False,
    )
    scheduler.set_timesteps(STEPS)
    times = scheduler.timesteps[STEPS - int(STEPS * strength) :]
    cond, null = pipe.text.encode(PROMPTS), pipe.text.null(2)
    both = torch.cat([null.context, cond.context])
    x = noise() if strength == 1 else scheduler.add_noise(x0, noise(), times[:1])
    with torch.no_grad():
        for i, t in enumerate(times):
            out_null, out = pipe.unet(torch.cat([x, x]), t.float().expand(4), both).chunk(2)
            x = scheduler.step(out_null + 3.0 * (out - out_null), t, x).prev_sample
            last = i == len(times) - 1
            known = x0 if last else scheduler.add_noise(x0, noise(), times[i + 1 : i + 2])
            x = mask * x + (1 - mask) * known
    got = pipe.latents(cond, null, SEEDS, options=OPTIONS, source=Source(x0, strength, mask))
    assert_close(got, x, **CLOSE)
    kept = (mask == 0).expand_as(x0)
    assert torch.equal(got[kept], x0[kept])
    assert float((got - x0)[~kept].abs().mean()) > 0.1


def test_zeroed_new_channels_change_nothing(
    pipe: Pipeline, wide: Pipeline, image: Image.Image, mask: Image.Image
) -> None:
    """A network widened from 4 channels begins as the 4-channel one, in every mode."""
    unet = UNet(wide.unet.config)
    unet.load_state_dict(wide.unet.state_dict())
    with torch.no_grad():
        unet.conv_in.weight[:, 4:] = 0
    new = Pipeline(
        unet.eval(), pipe.codec, pipe.text, pipe.objective, defaults=pipe.defaults, null="empty"
    )
    one, other = (p.txt2img(PROMPTS, SEEDS, options=OPTIONS) for p in (pipe, new))
    three, four = (p.img2img(PROMPTS, image, 0.5, SEEDS, options=OPTIONS) for p in (pipe, new))
    for a, b in zip(one + three, other + four, strict=True):
        # a convolution over more channels sums in another order
        assert max(high for _, high in ImageChops.difference(a, b).getextrema()) <= 1
