"""What may be chosen about how a picture is drawn, and what is chosen for whoever does not?"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from ldm.sampling.guidance import Guidance
from ldm.sampling.levels import MAX_STEPS
from ldm.sampling.presets import get_sampler


@dataclass(frozen=True, kw_only=True)
class SamplingDefaults:
    """What a model samples with unless told otherwise; kept in the card. size: (height, width)."""

    sampler: str = "ddim"
    steps: int = 50
    guidance: float = 7.5
    guidance_rescale: float = 0.0
    eta: float = 0.0
    size: tuple[int, int] = (512, 512)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Every choice made. See `SamplingOptions` for what they mean."""

    steps: int
    sampler: str
    grid: str | None
    eta: float
    guidance: Guidance
    weighting: bool
    long_prompts: bool
    tiled: bool | None

    def options(self) -> SamplingOptions:
        """The options that ask for exactly this, whatever the model's defaults are."""
        return SamplingOptions(
            steps=self.steps,
            sampler=self.sampler,
            grid=self.grid,
            eta=self.eta,
            guidance=self.guidance.scale,
            guidance_rescale=self.guidance.rescale,
            guidance_interval=self.guidance.interval,
            threshold=self.guidance.threshold,
            threshold_floor=None
            if self.guidance.threshold is None
            else self.guidance.threshold_floor,
            weighting=self.weighting,
            long_prompts=self.long_prompts,
            tiled=self.tiled,
        )


@dataclass(frozen=True, kw_only=True)
class SamplingOptions:
    """How pictures are drawn, in every mode; None is the model's own default, or off.

    sampler, grid: names of ldm/sampling (a grid of None is the sampler's own). guidance_interval:
    (low, high) in sigma/alpha, guidance acts between them. threshold: the share of the values that
    dynamic thresholding keeps, threshold_floor the bound that is always kept. long_prompts: read
    prompts in chunks where they are longer than the text encoder's length, which cuts them
    otherwise; weighting: read (word:1.2), [word] and BREAK as well. tiled: decode in tiles; None:
    where the picture is large.
    """

    steps: int | None = None
    sampler: str | None = None
    grid: str | None = None
    eta: float | None = None
    guidance: float | None = None
    guidance_rescale: float | None = None
    guidance_interval: Sequence[float] | None = None
    threshold: float | None = None
    threshold_floor: float | None = None
    weighting: bool | None = None
    long_prompts: bool | None = None
    tiled: bool | None = None

    def problems(self) -> list[str]:
        """What is wrong with the values, each with what is allowed."""
        found = []
        if self.steps is not None and self.steps < 1:
            found.append(f"steps={self.steps}; give 1 or more, at most {MAX_STEPS}")
        if self.steps is not None and self.steps > MAX_STEPS:
            found.append(f"steps={self.steps}; allowed: 1 to {MAX_STEPS}")
        if self.eta is not None and not 0 <= self.eta <= 1:
            found.append(f"eta={self.eta}; allowed: 0 (deterministic) to 1 (ancestral)")
        makers: list[Callable[[], object]] = [
            lambda: get_sampler(SamplingDefaults.sampler if self.sampler is None else self.sampler),
            lambda: get_sampler(SamplingDefaults.sampler, self.grid),
            lambda: self._guidance(SamplingDefaults(), rescale=0.0),
        ]
        for make in makers:
            try:
                make()
            except ValueError as error:
                found += str(error).splitlines()
        return found

    def settled(self, defaults: SamplingDefaults) -> Settings:
        """Every choice made: these, then the model's, then the sampler's. Raises ValueError."""
        if problems := self.problems():
            raise ValueError("\n".join(problems))
        name = defaults.sampler if self.sampler is None else self.sampler
        chosen = get_sampler(name)
        own = chosen is get_sampler(defaults.sampler)  # also by another of its names
        eta = defaults.eta if own else chosen.eta
        rescale = defaults.guidance_rescale if own else chosen.guidance_rescale
        return Settings(
            steps=defaults.steps if self.steps is None else self.steps,
            sampler=name,
            grid=self.grid,
            eta=eta if self.eta is None else self.eta,
            guidance=self._guidance(defaults, rescale=rescale),
            weighting=bool(self.weighting),
            long_prompts=bool(self.long_prompts),
            tiled=self.tiled,
        )

    def _guidance(self, defaults: SamplingDefaults, *, rescale: float) -> Guidance:
        given: dict[str, Any] = {
            "scale": defaults.guidance if self.guidance is None else self.guidance,
            "rescale": rescale if self.guidance_rescale is None else self.guidance_rescale,
            "threshold": self.threshold,
        }
        if self.guidance_interval is not None:
            given["interval"] = tuple(self.guidance_interval)
        if self.threshold_floor is not None:
            given["threshold_floor"] = self.threshold_floor
        return Guidance(**given)
