"""How does a prompt become a picture?"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from ldm import rng
from ldm.diffusion.objective import Objective, objective_from_spec
from ldm.images import to_pil
from ldm.models.codec import Codec
from ldm.models.text.base import TextEncoder
from ldm.sampling.denoiser import Denoiser
from ldm.sampling.guidance import cfg
from ldm.sampling.presets import get_sampler
from ldm.types import Conditioning

Progress = Callable[[int, int], None]
DTYPES = {
    "auto": None,
    "fp32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
}


@dataclass(frozen=True, kw_only=True)
class SamplingDefaults:
    """What a model samples with unless told otherwise; kept in the card. size: (height, width)."""

    sampler: str = "ddim"
    steps: int = 50
    guidance: float = 7.5
    guidance_rescale: float = 0.0
    eta: float = 0.0
    size: tuple[int, int] = (512, 512)


class Pipeline:
    """A network with its encoders and objective. Public: unet, codec, text, objective, defaults.

    null: the kind of null context that the network was trained with ("empty" or "zeros").
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
    ) -> None:
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
        self.weights = weights
        self.device = torch.device(device)
        self.card: dict[str, Any] = {}

    @torch.inference_mode()
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
        batch_size: int = 16,
        progress: Progress | None = None,
    ) -> list[Image.Image]:
        """One picture a prompt; picture i depends on prompt i and seed i only.

        size: (height, width) px. Raises ValueError when lists differ in length, a size is not a
        multiple of the VAE's factor, or a setting is out of range.
        """
        prompts = [prompts] if isinstance(prompts, str) else list(prompts)
        request = self._request(prompts, seeds, negative_prompts, size)
        images: list[Image.Image] = []
        for start in range(0, len(prompts), batch_size):
            rows = slice(start, start + batch_size)
            x0 = self.latents(
                self.text.encode(prompts[rows]),
                self._negative(request.negatives, rows),
                request.seeds[rows],
                size=request.size,
                steps=steps,
                sampler=sampler,
                guidance=guidance,
            )
            images += to_pil(self.codec.decode(x0))
            if progress is not None:
                progress(len(images), len(prompts))
        return images

    def latents(
        self,
        cond: Conditioning,
        uncond: Conditioning,
        seeds: Sequence[int],
        *,
        size: tuple[int, int] | None = None,
        steps: int | None = None,
        sampler: str | None = None,
        guidance: float | None = None,
    ) -> Tensor:
        """x0 [B,C,h,w]. cond, uncond: B rows each (uncond may be one row for all)."""
        defaults = self.defaults
        height, width = size or defaults.size
        chosen = get_sampler(defaults.sampler if sampler is None else sampler)
        own = sampler is None or sampler == defaults.sampler
        eta = defaults.eta if own else chosen.eta
        rescale = defaults.guidance_rescale if own else chosen.guidance_rescale
        levels = chosen.grid(
            self.objective.schedule, steps=_steps(defaults.steps if steps is None else steps)
        )
        factor = self.codec.factor
        shape = (self.codec.latent_channels, height // factor, width // factor)
        index = torch.tensor([_row_key(seed) for seed in seeds], device=self.device)
        start = rng.normal(0, "start-noise", index, shape)

        def noise(step: int) -> Tensor:
            return rng.normal(step, "step-noise", index, shape)

        denoise = cfg(
            Denoiser(self.unet, self.objective),
            cond.to(self.device),
            _rows(uncond.to(self.device), len(seeds)),
            scale=defaults.guidance if guidance is None else guidance,
            rescale=rescale,
        )
        x = chosen.start(start, levels)
        return chosen.solve(denoise, x, levels, noise=noise, eta=eta)

    def _request(
        self,
        prompts: list[str],
        seeds: Sequence[int] | None,
        negatives: str | Sequence[str] | None,
        size: tuple[int, int] | None,
    ) -> _Request:
        problems = []
        count = len(prompts)
        seed_list = list(range(count)) if seeds is None else list(seeds)
        if len(seed_list) != count:
            problems.append(f"{len(seed_list)} seeds for {count} prompts; give one each, or none")
        if isinstance(negatives, str):
            negatives = [negatives] * count
        if negatives is not None and len(negatives) != count:
            problems.append(f"{len(negatives)} negative prompts for {count} prompts")
        height, width = size or self.defaults.size
        factor = self.codec.factor
        for name, value in (("height", height), ("width", width)):
            if value < factor or value % factor:
                near = max(round(value / factor), 1) * factor
                problems.append(f"{name}={value} is not a multiple of {factor}; use {near}")
        if problems:
            raise ValueError("\n".join(problems))
        return _Request(seed_list, None if negatives is None else list(negatives), (height, width))

    def _negative(self, negatives: list[str] | None, rows: slice) -> Conditioning:
        return self.text.null(1) if negatives is None else self.text.encode(negatives[rows])


def load(
    path: str | Path, *, weights: str = "ema", device: str = "auto", dtype: str = "auto"
) -> Pipeline:
    """A Pipeline from `tiny`, a run folder, a .ckpt or a folder of weights.

    weights: `ema` (wherever the file has them) or `raw`; device: auto, cpu, cuda, …; dtype: auto
    (bf16 on a GPU, fp32 on a CPU), fp32, bf16 or fp16. Raises FileNotFoundError or ValueError
    that say what the path holds instead.
    """
    from ldm.io.load import load_model

    chosen = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
    if dtype not in DTYPES:
        raise ValueError(f"dtype={dtype!r}; allowed: {', '.join(DTYPES)}")
    default = torch.bfloat16 if torch.device(chosen).type == "cuda" else torch.float32
    model = load_model(path, weights=weights, dtype=DTYPES[dtype] or default)
    sampling = {**model.card["sampling"], "size": tuple(model.card["sampling"]["size"])}
    pipeline = Pipeline(
        model.unet.to(chosen),
        model.codec.to(chosen),
        model.text.to(chosen),
        objective_from_spec(model.card["objective"]),
        defaults=SamplingDefaults(**sampling),
        null=model.card["null"],
        device=chosen,
        weights=model.weights,
    )
    pipeline.card = model.card
    return pipeline


@dataclass(frozen=True)
class _Request:
    seeds: list[int]
    negatives: list[str] | None
    size: tuple[int, int]


def _steps(steps: int) -> int:
    if not 1 <= steps <= 2000:
        raise ValueError(f"steps={steps}; allowed: 1 to 2000")
    return steps


def _row_key(seed: int) -> int:
    return rng.fold(seed, "picture")


def _rows(cond: Conditioning, count: int) -> Conditioning:
    def grown(value: Tensor | None) -> Tensor | None:
        if value is None or value.shape[0] == count:
            return value
        return value.expand(count, *value.shape[1:])

    return Conditioning(grown(cond.context), grown(cond.mask), grown(cond.concat))
