"""Which samplers can be asked for by name, and what do they stand for?"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from difflib import get_close_matches
from functools import partial
from typing import Protocol

from torch import Tensor

from ldm.sampling.denoiser import Denoise
from ldm.sampling.levels import Grid, Levels, flow_shift, karras, leading, linspace, trailing
from ldm.sampling.solvers import ddim, dpmpp_2m, euler, heun, lms, plms
from ldm.sampling.solvers.moves import Noise, OnStep

Start = Callable[[Tensor, Levels], Tensor]  # normals [B,C,h,w] -> x at the first level


class Solve(Protocol):
    """A solver as a sampler holds it: eta and noise are passed to all, used by some."""

    def __call__(
        self,
        denoise: Denoise,
        x: Tensor,
        levels: Levels,
        *,
        eta: float,
        noise: Noise | None = None,
        on_step: OnStep | None = None,
    ) -> Tensor: ...


class Deterministic(Protocol):
    """A solver without noise."""

    def __call__(
        self, denoise: Denoise, x: Tensor, levels: Levels, *, on_step: OnStep | None = None
    ) -> Tensor: ...


@dataclass(frozen=True, kw_only=True)
class Sampler:
    """A solver with its grid and its start, and the settings to use unless told otherwise."""

    solve: Solve
    grid: Grid
    start: Start
    steps: int
    guidance: float = 7.5
    guidance_rescale: float = 0.0
    eta: float = 0.0


def total_noise(noise: Tensor, levels: Levels) -> Tensor:
    """The spread that x has for data of variance 1: noise itself where alpha^2 + sigma^2 = 1."""
    level = levels.at(0)
    return noise * (level.alpha**2 + level.sigma**2).sqrt()


def own_noise(noise: Tensor, levels: Levels) -> Tensor:
    """sigma noise, as k-diffusion: x as if x0 were 0."""
    return noise * levels.at(0).sigma


def without_eta(solver: Deterministic) -> Solve:
    """A deterministic solver behind the common signature."""

    def solve(
        denoise: Denoise,
        x: Tensor,
        levels: Levels,
        *,
        eta: float,
        noise: Noise | None = None,
        on_step: OnStep | None = None,
    ) -> Tensor:
        if eta != 0:
            adds_noise = ", ".join(name for name, s in SAMPLERS.items() if s.solve is ddim)
            raise ValueError(
                f"eta={eta}, but this sampler adds no noise; use eta=0, or one of {adds_noise}"
            )
        return solver(denoise, x, levels, on_step=on_step)

    return solve


# euler_ancestral and ddpm are DDIM with eta 1 on other grids: see `_fresh_sigma`.
SAMPLERS: dict[str, Sampler] = {
    "ddim": Sampler(solve=ddim, grid=leading, start=total_noise, steps=50),
    # for zero terminal SNR: starts at the last step, and rescales what guidance over-exposes
    "ddim_trailing": Sampler(
        solve=ddim, grid=trailing, start=total_noise, steps=50, guidance_rescale=0.7
    ),
    "ddpm": Sampler(
        solve=ddim,
        grid=partial(trailing, final_to_zero=True),
        start=total_noise,
        steps=1000,
        eta=1.0,
    ),
    "plms": Sampler(solve=without_eta(plms), grid=leading, start=total_noise, steps=50),
    "lms": Sampler(solve=without_eta(lms), grid=linspace, start=own_noise, steps=50),
    "euler": Sampler(solve=without_eta(euler), grid=linspace, start=own_noise, steps=30),
    "euler_ancestral": Sampler(solve=ddim, grid=linspace, start=own_noise, steps=30, eta=1.0),
    "heun": Sampler(solve=without_eta(heun), grid=karras, start=own_noise, steps=20),
    "dpmpp_2m": Sampler(solve=without_eta(dpmpp_2m), grid=linspace, start=total_noise, steps=25),
    "dpmpp_2m_karras": Sampler(solve=without_eta(dpmpp_2m), grid=karras, start=own_noise, steps=25),
    # for the flow schedule; the shift spends more steps at high noise, as large images need
    "euler_flow": Sampler(
        solve=without_eta(euler),
        grid=partial(flow_shift, shift=1.0),
        start=own_noise,
        steps=30,
        guidance=5.0,
    ),
    "euler_flow_shift": Sampler(
        solve=without_eta(euler),
        grid=partial(flow_shift, shift=3.0),
        start=own_noise,
        steps=30,
        guidance=5.0,
    ),
}


def get_sampler(name: str) -> Sampler:
    """The sampler of that name; an unknown one lists the known, nearest first."""
    if name not in SAMPLERS:
        near = get_close_matches(name, SAMPLERS, n=3, cutoff=0.4)
        known = [*near, *(other for other in SAMPLERS if other not in near)]
        raise ValueError(f"sampler {name!r} is unknown; known: {', '.join(known)}")
    return SAMPLERS[name]
