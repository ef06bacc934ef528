"""Do the frozen encoders give the same rows whatever is cached and whoever is beside them?"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.testing import assert_close

from ldm.models.codec import Codec
from ldm.models.text.clip import clip_text
from ldm.models.vae import VAEConfig, build_vae
from ldm.training.encoders import GROUP, FrozenEncoders
from ldm.types import ImageBatch

CAPTIONS = ("a small red circle", "a large blue star", "a small red circle", "a green heart")


def encoders(**caches: int) -> FrozenEncoders:
    config = VAEConfig(
        block_out_channels=(8, 16),
        layers_per_block=1,
        norm_num_groups=4,
        mid_block_add_attention=False,
        scaling_factor=0.5,
    )
    torch.manual_seed(0)
    codec = Codec(build_vae(config).eval().requires_grad_(False), 0.5)
    return FrozenEncoders(codec, clip_text(source="tiny"), seed=3, **caches)


def batch() -> ImageBatch:
    draw = torch.Generator().manual_seed(1)
    levels = torch.randint(0, 256, (4, 16, 16, 3), generator=draw, dtype=torch.uint8)
    return ImageBatch(levels, CAPTIONS, ("a", "b", "c", "d"), torch.arange(100, 104))


def rows(whole: ImageBatch, chosen: list[int]) -> ImageBatch:
    return replace(
        whole,
        levels=whole.levels[chosen],
        captions=tuple(whole.captions[i] for i in chosen),
        keys=tuple(whole.keys[i] for i in chosen),
        index=whole.index[chosen],
    )


def test_a_cache_changes_nothing_but_the_work() -> None:
    plain, cached = encoders(), encoders(cache_captions=8, cache_latents=8)
    for _ in range(2):  # the second time from the cache
        assert_close(cached.latents(batch()), plain.latents(batch()), rtol=0, atol=1e-6)
        assert_close(
            cached.conditioning(batch()).context,
            plain.conditioning(batch()).context,
            rtol=0,
            atol=1e-5,
        )


@pytest.mark.parametrize("size", [1, 2, 8])
def test_a_cached_row_does_not_depend_on_the_rows_beside_it(size: int) -> None:
    """Bitwise: or a resumed run, whose cache is empty, would not go on as it was."""
    one, two = (encoders(cache_captions=size, cache_latents=size) for _ in range(2))
    one.latents(rows(batch(), [3, 0]))  # another history, as before an interruption
    one.conditioning(rows(batch(), [3, 0]))
    whole_x0, whole_context = one.latents(batch()), one.conditioning(batch()).context
    for row in (2, 0, 3, 1):
        single = rows(batch(), [row])
        assert torch.equal(two.latents(single)[0], whole_x0[row])
        assert torch.equal(two.conditioning(single).context[0], whole_context[row])


def test_the_cache_keeps_to_its_size_and_saves_work() -> None:
    cached = encoders(cache_latents=2)
    calls = []
    moments = cached.codec.moments
    cached.codec.moments = lambda pixels: (calls.append(len(pixels)), moments(pixels))[1]
    cached.latents(rows(batch(), [0, 1, 1]))
    cached.latents(rows(batch(), [1, 0]))
    assert calls == [GROUP]
    cached.latents(rows(batch(), [2]))  # 1 goes: it was used before 0
    cached.latents(rows(batch(), [0]))
    assert calls == [GROUP] * 2
    cached.latents(rows(batch(), [1]))
    assert calls == [GROUP] * 3


def test_large_pictures_are_encoded_one_by_one_for_the_cache() -> None:
    """Eight of them might not fit into memory."""
    cached, calls = encoders(cache_latents=4), []
    cached.codec.moments = lambda pixels: (calls.append(len(pixels)), pixels[:, :2])[1]
    for side in (256, 128):
        levels = torch.arange(2, dtype=torch.uint8)[:, None, None, None].expand(2, side, side, 3)
        cached.latents(ImageBatch(levels, CAPTIONS[:2], ("a", "b"), torch.arange(2)))
    assert calls == [1, 1, 4]


def test_pictures_of_the_same_bytes_and_another_shape_are_others() -> None:
    cached = encoders(cache_latents=4)
    for height, width in ((16, 32), (32, 16)):
        white = torch.full((1, height, width, 3), 255, dtype=torch.uint8)
        x0 = cached.latents(ImageBatch(white, CAPTIONS[:1], ("a",), torch.arange(1)))
        factor = cached.codec.factor
        assert x0.shape[-2:] == (height // factor, width // factor)


def test_every_visit_draws_a_latent_of_its_own() -> None:
    cached = encoders(cache_latents=8)
    again = replace(batch(), index=torch.arange(200, 204))
    first, second = cached.latents(batch()), cached.latents(again)
    assert not torch.equal(first, second)
    assert torch.equal(first, cached.latents(batch()))


def test_what_is_not_finite_is_remembered_until_asked() -> None:
    broken = encoders()
    assert broken.take_finite()
    overflowing = batch()
    overflowing.pixels.fill_(float("nan"))
    broken.latents(overflowing)
    broken.latents(batch())
    assert not broken.take_finite()
    assert broken.take_finite()
