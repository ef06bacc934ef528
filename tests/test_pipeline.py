"""Do the modes keep their laws: which pictures are the same, to the bit?"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.testing import assert_close

import ldm
from ldm.images import from_pil
from ldm.models.unet import UNet
from ldm.pipeline import Between, Picture, Pipeline, SamplingOptions
from ldm.pipeline.noise import Noise, slerp
from ldm.pipeline.solving import Source
from ldm.rng import normal

PROMPTS = ["a small red circle", "a large blue star", "a large green heart"]
SEEDS = [5, 6, 7]
FEW = SamplingOptions(steps=4)


@pytest.fixture(scope="module")
def pipe() -> Pipeline:
    return ldm.load("tiny", device="cpu")


@pytest.fixture(scope="module")
def drawn(pipe: Pipeline) -> list[Image.Image]:
    return pipe.txt2img(PROMPTS, SEEDS, options=FEW)


@pytest.fixture
def half() -> Image.Image:
    """A mask whose left half is drawn anew."""
    mask = Image.new("L", (32, 32), 0)
    mask.paste(255, (0, 0, 16, 32))
    return mask


def same(one: list[Image.Image], other: list[Image.Image]) -> bool:
    return [image.tobytes() for image in one] == [image.tobytes() for image in other]


def error(one: Image.Image, other: Image.Image) -> float:
    """Mean absolute difference, of 2."""
    return float((from_pil([one]) - from_pil([other])).abs().mean())


# -- txt2img --------------------------------------------------------------------------------------


def test_the_signature_that_users_type(pipe: Pipeline) -> None:
    images = pipe.txt2img(
        ["a red circle"], seeds=[1], steps=2, sampler="ddim", guidance=5.0, negative_prompts=None
    )
    assert [image.size for image in images] == [(32, 32)]
    assert same(images, pipe.txt2img("a red circle", [1], steps=2, guidance=5.0))
    assert not same(images, pipe.txt2img("a red circle", [1], steps=2, guidance=1.0))


def test_a_picture_depends_on_its_own_prompt_and_seed_alone(
    pipe: Pipeline, drawn: list[Image.Image]
) -> None:
    assert same(drawn[1:2], pipe.txt2img(PROMPTS[1], SEEDS[1:2], options=FEW))
    assert same(drawn[::-1], pipe.txt2img(PROMPTS[::-1], SEEDS[::-1], options=FEW))
    assert not same(drawn[:1], pipe.txt2img(PROMPTS[0], [8], options=FEW))


@pytest.mark.parametrize("sampler", ["ddim", "euler_ancestral"])
def test_one_at_a_time_or_three(pipe: Pipeline, sampler: str) -> None:
    """In a batch of one size the bits are the same whatever else is in it; in batches of other
    sizes the sums of a matrix product may be taken in another order."""
    options = replace(FEW, sampler=sampler)
    three = pipe.txt2img(PROMPTS, SEEDS, options=options, batch_size=3)
    assert same(three[2:], pipe.txt2img(PROMPTS[2], SEEDS[2:], options=options, batch_size=3))
    assert same(three, pipe.txt2img(PROMPTS, SEEDS, options=options, batch_size=3))
    for a, b in zip(
        three, pipe.txt2img(PROMPTS, SEEDS, options=options, batch_size=1), strict=True
    ):
        assert float((from_pil([a]) - from_pil([b])).abs().max()) <= 2 / 255 + 1e-6


def test_negative_prompts_and_the_null_context(pipe: Pipeline, drawn: list[Image.Image]) -> None:
    """The tiny model's null is the empty caption, so "" says nothing new; a word does."""
    assert same(drawn, pipe.txt2img(PROMPTS, SEEDS, negative_prompts="", options=FEW))
    other = pipe.txt2img(PROMPTS, SEEDS, negative_prompts=["", "blue", ""], options=FEW)
    assert same(drawn[::2], other[::2])
    assert not same(drawn[1:2], other[1:2])


def test_progress_is_told(pipe: Pipeline) -> None:
    told: list[tuple[int, int]] = []
    pipe.txt2img(PROMPTS, SEEDS, options=FEW, progress=lambda *said: told.append(said))
    assert told == [(1, 3), (2, 3), (3, 3)]


def test_a_size_of_its_own(pipe: Pipeline) -> None:
    (wide,) = pipe.txt2img("a large blue star", [1], size=(16, 40), options=FEW)
    assert wide.size == (40, 16)


@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
def test_half_precision_draws_the_same_thing(drawn: list[Image.Image], dtype: str) -> None:
    half = ldm.load("tiny", device="cpu", dtype=dtype)
    assert next(half.unet.parameters()).dtype in (torch.bfloat16, torch.float16)
    (image,) = half.txt2img(PROMPTS[1], SEEDS[1:2], options=FEW)
    assert 0 < error(image, drawn[1]) < 0.05  # 8 or 11 bits, over four steps


# -- img2img --------------------------------------------------------------------------------------


def test_strength_1_is_txt2img_and_the_image_plays_no_part(
    pipe: Pipeline, drawn: list[Image.Image]
) -> None:
    assert same(drawn, pipe.img2img(PROMPTS, drawn[::-1], 1.0, SEEDS, options=FEW))


def test_strength_0_is_the_image_through_the_autoencoder(
    pipe: Pipeline, drawn: list[Image.Image]
) -> None:
    pixels = from_pil(drawn[:1])
    mean = pipe.codec.moments(pixels).chunk(2, dim=1)[0] * pipe.codec.scale
    want = pipe.codec.decode(mean).clamp(-1, 1)
    (got,) = pipe.img2img("anything", drawn[0], 0.0, [9], options=FEW)
    assert_close(from_pil([got]), want, rtol=0, atol=1 / 255 + 1e-5)  # half a level, and rounding
    assert same([got], pipe.img2img("else", drawn[0], 0.0, [1], options=FEW))
    assert same([got], pipe.img2img("else", drawn[0], 0.2, [1], options=FEW))  # int(4 * 0.2) = 0


def test_more_strength_is_further_from_the_image(pipe: Pipeline, drawn: list[Image.Image]) -> None:
    options = SamplingOptions(steps=10)
    errors = [
        error(pipe.img2img(PROMPTS[1], drawn[0], strength, [1], options=options)[0], drawn[0])
        for strength in (0.0, 0.4, 0.9)
    ]
    assert errors[0] < errors[1] < errors[2]


def test_one_image_or_one_prompt_serves_for_all(pipe: Pipeline, drawn: list[Image.Image]) -> None:
    all_given = pipe.img2img([PROMPTS[0]] * 2, [drawn[0]] * 2, 0.5, [1, 2], options=FEW)
    assert same(all_given, pipe.img2img(PROMPTS[0], drawn[0], 0.5, [1, 2], options=FEW))


# -- inpaint --------------------------------------------------------------------------------------


def test_the_kept_part_is_exact_and_the_hole_is_new(
    pipe: Pipeline, drawn: list[Image.Image], half: Image.Image
) -> None:
    (image,) = pipe.inpaint("a small yellow square", drawn[0], half, seeds=[1], options=FEW)
    before, after = from_pil([drawn[0]]), from_pil([image])
    assert torch.equal(before[..., 16:], after[..., 16:])
    assert float((before - after)[..., :16].abs().mean()) > 0.05


@pytest.mark.parametrize("strength", [0.5, 1.0])
@pytest.mark.parametrize("sampler", ["ddim", "euler_ancestral", "dpmpp_2m_karras", "heun"])
def test_known_latents_come_back_without_any_error(
    pipe: Pipeline, sampler: str, strength: float
) -> None:
    x0 = normal(0, "x0", torch.arange(2), (4, 8, 8))
    mask = (normal(0, "mask", torch.arange(2), (1, 8, 8)) > 0).float()
    with torch.inference_mode():
        got = pipe.latents(
            pipe.text.encode(PROMPTS[:2]),
            pipe.text.null(1),
            SEEDS[:2],
            options=replace(FEW, sampler=sampler),
            source=Source(x0, strength, mask),
        )
    kept = (mask == 0).expand_as(x0)
    assert float((got - x0)[kept].abs().max()) == 0.0
    assert float((got - x0)[~kept].abs().mean()) > 0.1


def test_without_paste_back_the_autoencoder_is_seen(
    pipe: Pipeline, drawn: list[Image.Image], half: Image.Image
) -> None:
    call: dict[str, Any] = {"seeds": [1], "options": FEW, "paste_back": False}
    (image,) = pipe.inpaint("a small yellow square", drawn[0], half, **call)
    kept = (from_pil([drawn[0]]) - from_pil([image]))[..., 16:].abs()
    assert 0 < float(kept.mean()) < 0.05


def test_a_network_that_was_trained_to_inpaint_is_told_mask_and_picture(
    pipe: Pipeline, drawn: list[Image.Image], half: Image.Image
) -> None:
    """[noisy 4 | mask 1 | latents of the picture with a grey hole 4], on both sides of guidance."""
    seen: list[Tensor] = []
    wide = widened(pipe)
    wide.unet.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    wide.inpaint(PROMPTS[0], drawn[0], half, seeds=[1], options=FEW)
    assert {tuple(x.shape) for x in seen} == {(2, 9, 8, 8)}
    mask = torch.zeros(8, 8)
    mask[:, :4] = 1
    hole = from_pil(drawn[:1]).clone()
    hole[..., :16] = 0
    latents = pipe.parts.latents(hole, None)[0]
    for x in seen:
        for row in x:
            assert torch.equal(row[4], mask)
            assert_close(row[5:], latents, rtol=0, atol=1e-6)
    seen.clear()
    wide.txt2img(PROMPTS[0], [1], options=FEW)
    assert all(bool((x[:, 4] == 1).all()) for x in seen)  # everything is drawn anew


def widened(pipe: Pipeline, channels: int = 9) -> Pipeline:
    config = replace(pipe.unet.config, in_channels=channels)
    torch.manual_seed(0)
    unet = UNet(config).eval().requires_grad_(False)
    return Pipeline(
        unet, pipe.codec, pipe.text, pipe.objective, defaults=pipe.defaults, null="empty"
    )


# -- inversion and interpolation ------------------------------------------------------------------


def test_inversion_comes_back_and_more_steps_come_closer(
    pipe: Pipeline, drawn: list[Image.Image]
) -> None:
    through, *_ = pipe.img2img("", drawn[1], 0.0)
    errors = []
    for steps in (5, 20, 80):
        options = SamplingOptions(steps=steps, guidance=1.0)
        start = pipe.invert(drawn[1], PROMPTS[1], options=options)
        assert start.shape == (1, 4, 8, 8)
        errors.append(error(pipe.txt2img(PROMPTS[1], start=start, options=options)[0], through))
    assert errors[0] > 2 * errors[1] > 4 * errors[2]
    assert errors[2] < 0.02


def test_the_ends_of_an_interpolation_are_txt2img(pipe: Pipeline) -> None:
    for sampler in ("ddim", "euler_ancestral"):
        options = replace(FEW, sampler=sampler)
        frames = pipe.interpolate((PROMPTS[0], PROMPTS[1]), (5, 6), 3, options=options)
        ends = pipe.txt2img(PROMPTS[:2], SEEDS[:2], options=options)
        assert len(frames) == 3
        assert same([frames[0], frames[-1]], ends)
        assert not same(frames[:1], frames[1:2])


def test_equal_ends_stay(pipe: Pipeline) -> None:
    frames = pipe.interpolate(PROMPTS[0], (5, 5), 3, options=FEW)
    assert same(frames[:1] * 3, frames)


def test_noise_on_the_way_keeps_its_spread() -> None:
    a, b = (
        normal(0, "a", torch.arange(1), (4, 32, 32)),
        normal(0, "b", torch.arange(1), (4, 32, 32)),
    )
    for weight in (0.1, 0.5, 0.9):
        assert float(slerp(a, b, [weight]).std()) == pytest.approx(1.0, abs=0.03)
    assert float(((a + b) / 2).std()) < 0.75  # what a straight line would do
    assert torch.equal(slerp(a, b, [0.0]), a)
    assert torch.equal(slerp(a, b, [1.0]), b)
    opposite = slerp(a, a, [0.5])
    assert torch.equal(opposite, a)


def test_noise_of_a_row_is_keyed_by_its_seed_alone() -> None:
    device = torch.device("cpu")
    one = Noise([1, 2, Between(1, 2, 0.5)], (4, 8, 8), device)
    other = Noise([Between(1, 2, 0.5), 2], (4, 8, 8), device)
    for draw in (lambda noise: noise.start(), lambda noise: noise.step(3)):
        assert torch.equal(draw(one)[[2, 1]], draw(other))
    assert not torch.equal(one.step(3), one.step(4))


# -- watching, batches, prompts of several lengths ------------------------------------------------


@pytest.mark.parametrize(("steps", "watch", "seen"), [(4, 3, 3), (4, 9, 4), (1, 2, 1), (4, 1, 1)])
def test_watching_a_picture_emerge(pipe: Pipeline, steps: int, watch: int, seen: int) -> None:
    options = SamplingOptions(steps=steps)
    (picture,) = pipe.draw([Picture(prompt=PROMPTS[1], seed=6)], options=options, watch=watch)
    assert len(picture.steps) == seen
    assert same([picture.image], pipe.txt2img(PROMPTS[1], [6], options=options))
    # DDIM ends where the schedule begins: all but without noise, so the last belief is the picture
    assert error(picture.steps[-1], picture.image) < 0.02


def test_watching_does_not_change_a_batch(pipe: Pipeline) -> None:
    pictures = [Picture(prompt=p, seed=s) for p, s in zip(PROMPTS, SEEDS, strict=True)]
    together = list(pipe.draw(pictures, options=FEW, batch_size=2, watch=2))
    assert [drawn.index for drawn in together] == [0, 1, 2]
    for drawn, picture in zip(together, pictures, strict=True):
        (alone,) = pipe.draw([picture], options=FEW, batch_size=2, watch=2)
        assert same([drawn.image, *drawn.steps], [alone.image, *alone.steps])


def test_long_and_weighted_prompts_beside_short_ones(pipe: Pipeline) -> None:
    """A prompt of several chunks changes nothing of the others; without the option it is cut."""
    long = " and ".join(PROMPTS * 3)
    options = replace(FEW, long_prompts=True)
    both = pipe.txt2img([long, PROMPTS[1]], [5, 6], options=options, batch_size=2)
    assert same(both[1:], pipe.txt2img(PROMPTS[1], [6], options=options, batch_size=2))
    assert not same(both[:1], pipe.txt2img(long, [5], options=FEW, batch_size=2))
    weighted = replace(FEW, weighting=True)
    plain, strong = (
        pipe.txt2img(f"a large (blue{weight}) star", [6], options=weighted)
        for weight in (":1", ":1.6")
    )
    assert not same(plain, strong)


Call = Callable[[Pipeline, Image.Image], Any]
WRONG: list[tuple[Call, list[str]]] = [
    (lambda p, i: p.txt2img(["a", "b"], [1]), ["2 prompts, 1 seeds", "one of each"]),
    (lambda p, i: p.txt2img([]), ["0 prompts"]),
    (lambda p, i: p.txt2img("a", negative_prompts=["x", "y"], seeds=[1]), ["2 negative_prompts"]),
    (lambda p, i: p.txt2img("a", size=(30, 2)), ["height=30", "use 32", "width=2", "use 4"]),
    (
        lambda p, i: p.txt2img("a", steps=0, sampler="ddmi"),
        ["steps=0", "'ddmi' is unknown", "plms"],
    ),
    (lambda p, i: p.txt2img("a", steps=2001), ["steps=2001; allowed: 1 to 2000"]),
    (lambda p, i: p.txt2img("a", guidance=-1.0), ["guidance=-1.0"]),
    (lambda p, i: p.txt2img("a", guidance=float("nan")), ["guidance=nan"]),
    (lambda p, i: p.txt2img("a", batch_size=0), ["batch_size=0", "auto"]),
    (lambda p, i: p.txt2img("a", start=torch.zeros(1, 4, 4, 4)), ["(4, 4, 4)", "(4, 8, 8)"]),
    (
        lambda p, i: p.txt2img("a", options=SamplingOptions(sampler="heun", eta=0.5, steps=1)),
        ["eta=0.5"],
    ),
    (
        lambda p, i: p.txt2img(
            "a",
            options=SamplingOptions(
                eta=2, guidance_rescale=2, guidance_interval=(3, 1), threshold=0, grid="kras"
            ),
        ),
        ["eta=2", "rescale=2", "interval=(3, 1)", "threshold=0", "'kras' is unknown"],
    ),
    (lambda p, i: p.img2img("a", i, 1.5), ["strength=1.5; allowed: 0"]),
    (lambda p, i: p.img2img("a", i, -0.1), ["strength=-0.1"]),
    (lambda p, i: p.img2img("a", i.resize((30, 32))), ["width=30", "use 32"]),
    (
        lambda p, i: p.img2img("a", [i, i.resize((32, 16))]),
        ["images of 32x16, 32x32 px", "one size"],
    ),
    (
        lambda p, i: p.inpaint("a", i, Image.new("L", (16, 16)), 2.0),
        ["mask 0 is 16x16 px, its image 32x32", "strength=2.0"],
    ),
    (lambda p, i: p.inpaint("a", i, speck(), options=FEW), ["mark too little", "4x4 px"]),
    (lambda p, i: p.interpolate("a", (1, 2), 1), ["frames=1"]),
]


def speck() -> Image.Image:
    mask = Image.new("L", (32, 32))
    mask.putpixel((2, 2), 255)
    return mask


@pytest.mark.parametrize(("call", "parts"), WRONG, ids=[parts[0] for _, parts in WRONG])
def test_bad_input(pipe: Pipeline, call: Call, parts: list[str]) -> None:
    """All that is wrong, at once, and before anything is drawn."""
    with pytest.raises(ValueError) as caught:
        call(pipe, Image.new("RGB", (32, 32), "white"))
    assert [part for part in parts if part not in str(caught.value)] == []


def test_a_request_is_checked_when_it_is_made(pipe: Pipeline) -> None:
    """Not when its first picture is asked for."""
    with pytest.raises(ValueError, match="strength=3"):
        pipe.draw([Picture(prompt="a")], strength=3)


def test_nothing_asked_is_nothing_drawn(pipe: Pipeline) -> None:
    assert list(pipe.draw([])) == []


def test_the_fingerprint_is_the_models(pipe: Pipeline) -> None:
    own = pipe.fingerprint()
    assert own == pipe.fingerprint() == ldm.load("tiny", device="cpu").fingerprint()
    assert own != ldm.load("tiny", device="cpu", dtype="bf16").fingerprint()
    other = ldm.load("tiny", device="cpu")
    for module in (other.unet, other.codec.vae, other.text.module):
        *_, last = module.parameters()
        with torch.no_grad():
            last.flatten()[-1] += 1e-3  # a training step changes more
        assert other.fingerprint() != own
        own = other.fingerprint()


def test_other_inputs_than_known_ones(pipe: Pipeline) -> None:
    with pytest.raises(ValueError, match="1 channels beside 4 latent ones; known are 0, and 5"):
        widened(pipe, 5)


def test_another_null_than_the_trained_one(pipe: Pipeline) -> None:
    with pytest.raises(ValueError, match=r"'empty'.*'zeros'.*models\.text\.null=zeros"):
        Pipeline(
            pipe.unet, pipe.codec, pipe.text, pipe.objective, defaults=pipe.defaults, null="zeros"
        )
