"""Is the network told in training what the pipeline tells it, whatever becomes of the caption?"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from ldm import rng
from ldm.app.job import Job
from ldm.models.codec import Codec
from ldm.pipeline.drawing import Parts, Request, concat
from ldm.pipeline.inputs import mask_latents
from ldm.training.encoders import FrozenEncoders
from ldm.training.inpainting import InpaintingSettings, inpainting_problems, joined
from ldm.training.module import DiffusionModule
from ldm.types import Conditioning, ImageBatch, LatentBatch

SETTINGS = InpaintingSettings()


class Heard(nn.Module):
    """A network that keeps what it was told and answers zeros."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))
        self.told: list[Tensor] = []
        self.contexts: list[Tensor | None] = []

    def forward(
        self, x: Tensor, t: Tensor, context: Tensor | None, mask: Tensor | None = None
    ) -> Tensor:
        self.told.append(x.detach())
        self.contexts.append(context)
        return x[:, :4] * self.weight


@pytest.fixture
def inpainting(tiny_job: Callable[..., Job]) -> Callable[..., tuple[DiffusionModule, Heard]]:
    """inpainting("key=value", …): a module that trains on masks, with a network that listens."""

    def build(*changes: str) -> tuple[DiffusionModule, Heard]:
        module = tiny_job(*changes).module
        module.encoders.inpainting = SETTINGS
        module.unet = Heard()
        return module, module.unet

    return build


@pytest.fixture
def batch(tiny_job: Callable[..., Job], batch_of: Callable[..., ImageBatch]) -> ImageBatch:
    return batch_of(tiny_job())


def test_the_network_is_told_what_the_pipeline_tells_it(
    tiny_job: Callable[..., Job], batch: ImageBatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Order, scale, hole and size of the mask; only the draw from the posterior is training's."""
    codec: Codec = tiny_job().encoders.codec
    mask = SETTINGS.masks(batch, 0, "mask")
    assert 0 < float(mask.mean()) < 1
    monkeypatch.setattr(rng, "normal", lambda seed, purpose, index, shape: torch.zeros(8, *shape))
    got = joined(codec, batch, mask, 0)

    class Nine(nn.Module):
        config = type("Config", (), {"in_channels": 9})

    parts = Parts(Nine(), codec, None, None, torch.device("cpu"))  # type: ignore[arg-type]
    settings = type("Settings", (), {"tiled": False})
    request = Request(settings=settings, size=(32, 32))  # type: ignore[arg-type]
    want = concat(parts, request, 8, batch.pixels, mask)
    assert want is not None
    assert got.shape == (8, 5, 8, 8)
    assert torch.equal(got[:, :1], want[:, :1])
    assert_close(got, want, rtol=0, atol=1e-6)


def test_masks_are_made_small_as_the_pipeline_does(batch: ImageBatch) -> None:
    """The one line that is there twice: mask_latents also refuses what no latent sees."""

    class Flat:
        """Stands for a codec: two latent channels, all zeros."""

        def moments(self, pixels: Tensor) -> Tensor:
            return torch.zeros(len(pixels), 4, pixels.shape[2] // 4, pixels.shape[3] // 4)

        def latents(self, moments: Tensor, noise: Tensor) -> Tensor:
            return moments[:, :2]

    boxes = InpaintingSettings(full=0.1, boxes=0.9)  # strokes may be too thin for mask_latents
    mask = boxes.masks(batch, 5, "mask")
    got = joined(Flat(), batch, mask, 5)[:, :1]  # type: ignore[arg-type]
    assert torch.equal(got, mask_latents(mask, 4))


def test_what_is_hidden_does_not_reach_the_network(
    tiny_job: Callable[..., Job], batch: ImageBatch
) -> None:
    codec: Codec = tiny_job().encoders.codec
    mask = SETTINGS.masks(batch, 0, "mask")
    other = ImageBatch(
        torch.where(mask.permute(0, 2, 3, 1) > 0, 255 - batch.levels, batch.levels),
        batch.captions,
        batch.keys,
        batch.index,
    )
    assert not torch.equal(other.pixels, batch.pixels)
    assert torch.equal(joined(codec, batch, mask, 0), joined(codec, other, mask, 0))


def test_a_row_depends_on_its_sample_alone(
    tiny_job: Callable[..., Job], batch_of: Callable[..., ImageBatch]
) -> None:
    job = tiny_job()
    encoders: FrozenEncoders = job.encoders
    encoders.inpainting = SETTINGS
    whole = encoders.concat(batch_of(job, 0, 8), "mask")
    half = encoders.concat(batch_of(job, 4, 4), "mask")
    other = encoders.concat(batch_of(job, 0, 8), "val-mask")
    assert isinstance(whole, Tensor)
    assert isinstance(half, Tensor)
    assert isinstance(other, Tensor)
    assert torch.equal(whole[4:, :1], half[:, :1])
    assert_close(whole[4:], half, rtol=0, atol=1e-5)  # a convolution of another batch size
    assert not torch.equal(whole[:, :1], other[:, :1])


@pytest.mark.parametrize("dropout", [0.0, 1.0])
def test_conditional_and_dropped_rows_are_told_the_same(
    inpainting: Callable[..., tuple[DiffusionModule, Heard]], batch: ImageBatch, dropout: float
) -> None:
    """Or guidance would be a difference of two things at once."""
    module, network = inpainting(f"training.caption_dropout={dropout}")
    module.batch_loss(batch, 0)
    want = module.encoders.concat(batch, "mask")
    assert torch.equal(network.told[0][:, 4:], want)
    null = module.encoders.null().context
    assert torch.equal(network.contexts[0], null.expand(8, -1, -1)) == (dropout == 1.0)


def test_without_captions_the_picture_is_told_all_the_same(
    inpainting: Callable[..., tuple[DiffusionModule, Heard]], batch: ImageBatch
) -> None:
    module, network = inpainting()
    module.encoders.conditioning = lambda batch: Conditioning()
    module.batch_loss(batch, 0)
    assert network.contexts == [None]
    assert torch.equal(network.told[0][:, 4:], module.encoders.concat(batch, "mask"))


def test_validation_has_masks_of_its_own_the_same_each_time(
    inpainting: Callable[..., tuple[DiffusionModule, Heard]], batch: ImageBatch
) -> None:
    module, network = inpainting()
    module.eval()
    for _ in range(2):
        module.validation_losses(batch, 11)
    module.batch_loss(batch, 0)
    first, second, trained = (told[:, 4:] for told in network.told)
    assert torch.equal(first, second)
    assert torch.equal(first, module.encoders.concat(batch, "val-mask"))
    assert not torch.equal(first, trained)


def test_cached_latents_cannot_be_masked(tiny_job: Callable[..., Job]) -> None:
    encoders: FrozenEncoders = tiny_job().encoders
    batch = LatentBatch(torch.zeros(2, 8, 8, 8), ("a", "b"), ("a", "b"), torch.arange(2))
    assert encoders.concat(batch, "mask") is None  # another network
    encoders.inpainting = SETTINGS
    with pytest.raises(ValueError, match=r"cannot be masked.*data.format=images"):
        encoders.concat(batch, "mask")


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"full": -0.1}, ["training.inpainting.full=-0.1", "0 to 1"]),
        ({"full": 0.2, "boxes": 1.5}, ["boxes=1.5"]),
        ({"full": 0.5, "boxes": 0.6}, ["more than 1", "strokes take what they leave"]),
    ],
)
def test_settings_say_what_is_wrong(values: dict[str, float], words: list[str]) -> None:
    (problem,) = InpaintingSettings(**values).problems()
    assert all(word in problem for word in words)


def test_the_published_mix_is_the_default() -> None:
    assert SETTINGS.problems() == []
    assert SETTINGS.full == 0.25
    assert InpaintingSettings(full=0, boxes=1).problems() == []


@pytest.mark.parametrize(
    ("settings", "channels", "cached", "words"),
    [
        (None, 9, False, ["in_channels=9", "+training/inpainting=masks", "in_channels=4"]),
        (None, 7, False, ["in_channels=7", "4 latent channels", "9 to inpaint"]),
        (SETTINGS, 4, False, ["trains a network of 9", "in_channels=4", "widen=[conv_in]"]),
        (SETTINGS, 8, False, ["trains a network of 9", "in_channels=8"]),
        (SETTINGS, 9, True, ["cached latents", "data.format=images"]),
    ],
)
def test_what_does_not_fit_is_named_with_the_way_out(
    settings: Any, channels: int, cached: bool, words: list[str]
) -> None:
    (problem,) = inpainting_problems(
        settings, in_channels=channels, latent_channels=4, cached=cached
    )
    assert all(word in problem for word in words), problem


@pytest.mark.parametrize(
    ("settings", "channels", "latent", "cached"),
    [(None, 4, 4, True), (SETTINGS, 9, 4, False), (None, 3, 3, False), (SETTINGS, 7, 3, False)],
)
def test_what_fits_is_no_problem(settings: Any, channels: int, latent: int, cached: bool) -> None:
    assert not inpainting_problems(
        settings, in_channels=channels, latent_channels=latent, cached=cached
    )
