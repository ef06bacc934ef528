"""What can a model draw, and in which ways?

B batch, C latent channels, h x w latent size, H x W picture size in px.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from ldm.adapters.attach import Adapter
from ldm.diffusion.objective import Objective
from ldm.models.codec import Codec
from ldm.models.text.base import TextEncoder
from ldm.pipeline import inputs
from ldm.pipeline.adapting import Adapters
from ldm.pipeline.batches import BatchSize
from ldm.pipeline.drawing import Parts, Request, concat, draw, first_batch, inverted
from ldm.pipeline.identity import fingerprint
from ldm.pipeline.noise import Noise
from ldm.pipeline.options import SamplingDefaults, SamplingOptions
from ldm.pipeline.pictures import Between, Drawn, Picture
from ldm.pipeline.solving import Source, solve
from ldm.types import Conditioning

Progress = Callable[[int, int], None]  # pictures done, pictures in all
MODELS_OWN = SamplingOptions()


class Pipeline:
    """A network with its encoders and objective. Public: unet, codec, text, objective, defaults.

    null: the kind of null context that the network was trained with ("empty" or "zeros").
    prepare (an attribute): on a CPU each sampling copies the network's weights into a faster layout
    (see models/prepared.py); False saves the memory, the last bits of pictures differ.

    Every mode takes `options` (see SamplingOptions) and `batch_size`: a number, which then holds
    for all batches, or auto; it halves when memory runs out. A picture depends on what is asked of
    it alone, to the bit for the same batch size, device and number of threads.
    """

    def __init__(
        self,
        unet: nn.Module,
        codec: Codec,
        text: TextEncoder,
        objective: Objective,
        *,
        defaults: SamplingDefaults,
        null: str,
        device: torch.device | str = "cpu",
        weights: str = "ema",
        adapters: Mapping[str, Adapter] | None = None,
    ) -> None:
        """adapters: attached already, by `unet` and `text`, as a run has trained them."""
        own = text.spec()["null"]
        if own != null:
            raise ValueError(
                f"the text encoder's null context is {own!r}, but the network was "
                f"trained with {null!r}; guidance would start from a context it never saw. "
                f"Use models.text.null={null}"
            )
        self.unet = unet
        self.codec = codec
        self.text = text
        self.objective = objective
        self.defaults = defaults
        self.weights = self.asked_weights = weights
        self.device = torch.device(device)
        self.prepare = True
        self.card: dict[str, Any] = {}
        self.adapters = Adapters(unet, text, adapters)
        known = (0, codec.latent_channels + 1)
        if self.parts.extra_channels not in known:
            raise ValueError(
                f"the network is fed {self.parts.extra_channels} channels beside "
                f"{codec.latent_channels} latent ones; known are {known[0]}, and {known[1]} "
                "(mask and masked picture, to inpaint)"
            )

    def attach(self, path: str | Path, *, strength: float = 1.0, name: str | None = None) -> str:
        """From now on draws with an adapter as well: a file of a LoRA, a hypernetwork or a new
        word (textual inversion), or a run here.

        Several add up; their names (the file's, unless given) are for `detach` and
        `adapters.set_strength`. Raises FileNotFoundError, or ValueError that says what the path
        holds instead, or what does not fit.
        """
        from ldm.io.adapter_file import read_adapter

        file = read_adapter(path, weights=self.asked_weights)
        name = name or file.path.stem
        parts = file.build(self.unet, self.text)
        self.adapters.attach(parts, name=name, strength=strength, source=str(path))
        return name

    def detach(self, name: str) -> None:
        """From now on draws without it, exactly as before it was attached."""
        self.adapters.detach(name)

    @property
    def parts(self) -> Parts:
        """What is drawn with now: unet and device may be set anew."""
        return Parts(self.unet, self.codec, self.text, self.objective, self.device, self.prepare)

    def txt2img(
        self,
        prompts: str | Sequence[str],
        seeds: Sequence[int] | None = None,
        *,
        steps: int | None = None,
        sampler: str | None = None,
        guidance: float | None = None,
        negative_prompts: str | Sequence[str] | None = None,
        size: tuple[int, int] | None = None,
        start: Tensor | None = None,
        options: SamplingOptions = MODELS_OWN,
        batch_size: BatchSize = "auto",
        progress: Progress | None = None,
    ) -> list[Image.Image]:
        """One picture a prompt. seeds: 0, 1, 2, … unless given.

        size: (height, width) px. start: latents [N,C,h,w] at the sampler's first level instead of
        noise, as `invert` gives them. Raises ValueError with everything that is wrong.
        """
        given: dict[str, Any] = {"steps": steps, "sampler": sampler, "guidance": guidance}
        options = replace(options, **{k: v for k, v in given.items() if v is not None})
        pictures = _pictures(prompts, seeds, negative_prompts, start=start)
        drawn = self.draw(pictures, size=size, options=options, batch_size=batch_size)
        return _in_order(drawn, len(pictures), progress)

    def img2img(
        self,
        prompts: str | Sequence[str],
        images: Image.Image | Sequence[Image.Image],
        strength: float = 0.75,
        seeds: Sequence[int] | None = None,
        *,
        negative_prompts: str | Sequence[str] | None = None,
        options: SamplingOptions = MODELS_OWN,
        batch_size: BatchSize = "auto",
        progress: Progress | None = None,
    ) -> list[Image.Image]:
        """Meng et al. 2022 (SDEdit): the last int(steps * strength) steps, from the image.

        strength 0 gives the image through the autoencoder, 1 is txt2img of the seed, of which the
        image is no part. One image or one prompt serves for all.
        """
        pictures = _pictures(prompts, seeds, negative_prompts, images)
        drawn = self.draw(pictures, strength=strength, options=options, batch_size=batch_size)
        return _in_order(drawn, len(pictures), progress)

    def inpaint(
        self,
        prompts: str | Sequence[str],
        images: Image.Image | Sequence[Image.Image],
        masks: Image.Image | Sequence[Image.Image],
        strength: float = 1.0,
        seeds: Sequence[int] | None = None,
        *,
        negative_prompts: str | Sequence[str] | None = None,
        paste_back: bool = True,
        options: SamplingOptions = MODELS_OWN,
        batch_size: BatchSize = "auto",
        progress: Progress | None = None,
    ) -> list[Image.Image]:
        """Draws anew where the mask is white. One image, mask or prompt serves for all.

        A network that was trained to inpaint is told mask and picture; any other keeps the rest at
        each step's noise level (`sampling.edits.inpaint`). paste_back: the image's own pixels where
        the mask is black, since the autoencoder blurs them a little.
        """
        pictures = _pictures(prompts, seeds, negative_prompts, images, masks)
        drawn = self.draw(
            pictures,
            strength=strength,
            paste_back=paste_back,
            options=options,
            batch_size=batch_size,
        )
        return _in_order(drawn, len(pictures), progress)

    def interpolate(
        self,
        prompts: str | tuple[str, str],
        seeds: tuple[int, int] = (0, 0),
        frames: int = 8,
        *,
        negative_prompt: str | None = None,
        size: tuple[int, int] | None = None,
        options: SamplingOptions = MODELS_OWN,
        batch_size: BatchSize = "auto",
        progress: Progress | None = None,
    ) -> list[Image.Image]:
        """Pictures on the way from one prompt and seed to another; the ends are txt2img's.

        Contexts go along a straight line, noise along an arc.
        """
        pictures = frames_between(prompts, seeds, frames, negative_prompt)
        drawn = self.draw(pictures, size=size, options=options, batch_size=batch_size)
        return _in_order(drawn, len(pictures), progress)

    def invert(
        self,
        images: Image.Image | Sequence[Image.Image],
        prompts: str | Sequence[str] = "",
        *,
        options: SamplingOptions = MODELS_OWN,
        batch_size: BatchSize = "auto",
    ) -> Tensor:
        """Latents [N,C,h,w] from which txt2img(prompts, start=…) draws the images again.

        DDIM backwards on the sampler's grid, without guidance: draw with guidance=1, the same steps
        and grid, and a deterministic sampler; more steps, smaller error.
        """
        pictures = _pictures(prompts, None, None, images)
        request = self._request(pictures, options)
        return inverted(self.parts, pictures, request, batch_size)

    def draw(
        self,
        pictures: Sequence[Picture],
        *,
        size: tuple[int, int] | None = None,
        strength: float = 1.0,
        paste_back: bool = True,
        options: SamplingOptions = MODELS_OWN,
        batch_size: BatchSize = "auto",
        watch: int = 0,
    ) -> Iterator[Drawn]:
        """What all modes do: the pictures as they are finished, batch by batch.

        All have an image or none, all a mask or none. watch: look at what the model believes the
        picture will be, at so many steps. Raises ValueError at once; MemoryError when one picture
        at a time is too much, after all that were finished before.
        """
        request = self._request(
            pictures, options, size, strength=strength, paste_back=paste_back, watch=watch
        )
        if problems := self.codec.problems():
            raise ValueError("\n".join(problems))
        return draw(self.parts, pictures, request, batch_size)

    @torch.inference_mode()
    def latents(
        self,
        cond: Conditioning,
        uncond: Conditioning,
        seeds: Sequence[int],
        *,
        size: tuple[int, int] | None = None,
        options: SamplingOptions = MODELS_OWN,
        source: Source | None = None,
    ) -> Tensor:
        """x0 [B,C,h,w] of contexts, in one batch. uncond: B rows, or one for all."""
        request = self._request([], options, size)
        parts, count = self.parts, len(seeds)
        joined = concat(parts, request, count)
        return solve(
            parts.model,
            replace(cond.to(self.device), concat=joined),
            replace(_rows(uncond.to(self.device), count), concat=joined),
            Noise(seeds, parts.shape(request.size), self.device),
            request.settings,
            source=source,
        )

    def batch_size(self, asked: BatchSize, *, size: tuple[int, int], count: int) -> int:
        """What auto is for so many pictures of this size, (height, width) px."""
        return first_batch(self.parts, size, asked, count)

    def fingerprint(self) -> str:
        """Tells this model, with these weights in this dtype, from any other."""
        modules = (self.unet, self.codec.vae, self.text.module, *self.adapters.modules())
        facts: dict[str, Any] = {"objective": self.objective.spec(), "scale": self.codec.scale}
        if len(self.adapters):
            facts["adapters"] = list(self.adapters.strengths().values())
        return fingerprint(modules, facts)

    def _request(
        self,
        pictures: Sequence[Picture],
        options: SamplingOptions,
        size: tuple[int, int] | None = None,
        *,
        strength: float = 1.0,
        paste_back: bool = True,
        watch: int = 0,
    ) -> Request:
        """Raises ValueError with all problems."""
        factor = self.codec.factor
        problems = options.problems() + inputs.strength_problems(strength)
        images, masks = [p.image for p in pictures], [p.mask for p in pictures]
        given = next((image for image in images if image is not None), None)
        if given is None:
            size = size or self.defaults.size
            problems += inputs.size_problems(size, factor)
        else:
            size = (given.height, given.width)
            problems += inputs.picture_problems(images, masks, factor)
        if problems:
            raise ValueError("\n".join(problems))
        shape = self.parts.shape(size)
        for picture in pictures:
            if picture.start is not None and tuple(picture.start.shape) != shape:
                raise ValueError(
                    f"start latents are {tuple(picture.start.shape)}, but {size[0]}x{size[1]} px "
                    f"need {shape}; give size=(height, width) of the picture they came from"
                )
        return Request(
            settings=options.settled(self.defaults),
            size=size,
            strength=strength,
            paste_back=paste_back,
            watch=watch,
        )


def frames_between(
    prompts: str | tuple[str, str], seeds: tuple[int, int], frames: int, negative: str | None = None
) -> list[Picture]:
    """The pictures of `Pipeline.interpolate`."""
    if frames < 2:
        raise ValueError(f"frames={frames}; give 2 or more, both ends count")
    ends = (prompts, prompts) if isinstance(prompts, str) else prompts
    return [
        Picture(prompt=Between(*ends, weight), seed=Between(*seeds, weight), negative=negative)
        for weight in (i / (frames - 1) for i in range(frames))
    ]


def _pictures(
    prompts: str | Sequence[str],
    seeds: Sequence[int] | None,
    negatives: str | Sequence[str] | None,
    images: Image.Image | Sequence[Image.Image] | None = None,
    masks: Image.Image | Sequence[Image.Image] | None = None,
    start: Tensor | None = None,
) -> list[Picture]:
    rows = inputs.spread(
        prompts=prompts,
        seeds=seeds,
        negative_prompts=negatives,
        images=images,
        masks=masks,
        start=start,
    )
    return [
        Picture(
            prompt=row["prompts"],
            seed=i if row["seeds"] is None else row["seeds"],
            negative=row["negative_prompts"],
            image=row["images"],
            mask=row["masks"],
            start=row["start"],
        )
        for i, row in enumerate(rows)
    ]


def _in_order(drawn: Iterable[Drawn], count: int, progress: Progress | None) -> list[Image.Image]:
    images: dict[int, Image.Image] = {}
    for picture in drawn:
        images[picture.index] = picture.image
        if progress is not None:
            progress(len(images), count)
    return [images[i] for i in range(count)]


def _rows(cond: Conditioning, count: int) -> Conditioning:
    def grown(value: Tensor | None) -> Tensor | None:
        if value is None or value.shape[0] == count:
            return value
        return value.expand(count, *value.shape[1:])

    return Conditioning(grown(cond.context), grown(cond.mask), grown(cond.concat))
