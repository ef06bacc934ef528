"""Which samplers can be asked for by name, and what do they stand for?"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from difflib import get_close_matches
from functools import partial
from typing import Protocol

from torch import Tensor

from ldm.diffusion.schedules import Schedule
from ldm.sampling.denoiser import Denoise
from ldm.sampling.levels import (
    GRIDS,
    Grid,
    Levels,
    ays,
    flow_shift,
    karras,
    leading,
    linspace,
    trailing,
)
from ldm.sampling.solvers import (
    ddim,
    dpm2,
    dpm2_ancestral,
    dpmpp_2m,
    dpmpp_2m_sde,
    dpmpp_2s_ancestral,
    dpmpp_sde,
    euler,
    heun,
    heun_churn,
    lms,
    plms,
    unipc,
)
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
    """A solver with its grid and its start, and the settings to use unless told otherwise.

    final_to_zero: whether the grid ends without noise or at the schedule's first step.
    """

    solve: Solve
    spacing: Grid
    start: Start
    steps: int
    final_to_zero: bool = True
    guidance: float = 7.5
    guidance_rescale: float = 0.0
    eta: float = 0.0

    def grid(self, schedule: Schedule, *, steps: int) -> Levels:
        """The levels of so many steps. ValueError when steps is out of range."""
        return self.spacing(schedule, steps=steps, final_to_zero=self.final_to_zero)


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
        _refuse(eta)
        return solver(denoise, x, levels, on_step=on_step)

    return solve


def churned(
    denoise: Denoise,
    x: Tensor,
    levels: Levels,
    *,
    eta: float,
    noise: Noise | None = None,
    on_step: OnStep | None = None,
) -> Tensor:
    """`heun_churn` behind the common signature: its noise is set by S_churn, not by eta."""
    _refuse(eta)
    if noise is None:
        raise ValueError("churn adds noise at every step; give noise=..., key -> normals")
    return heun_churn(denoise, x, levels, noise=noise, on_step=on_step)


_LMS = Sampler(solve=without_eta(lms), spacing=linspace, start=own_noise, steps=50)
_EULER = Sampler(solve=without_eta(euler), spacing=linspace, start=own_noise, steps=30)
_HEUN = Sampler(solve=without_eta(heun), spacing=karras, start=own_noise, steps=20)
_DPM2 = Sampler(solve=without_eta(dpm2), spacing=linspace, start=own_noise, steps=25)
_2M = Sampler(solve=without_eta(dpmpp_2m), spacing=linspace, start=total_noise, steps=25)
_2S = Sampler(solve=dpmpp_2s_ancestral, spacing=linspace, start=own_noise, steps=25, eta=1.0)
_SDE = Sampler(solve=dpmpp_sde, spacing=linspace, start=own_noise, steps=25, eta=1.0)
_2M_SDE = Sampler(solve=dpmpp_2m_sde, spacing=linspace, start=own_noise, steps=25, eta=1.0)
_UNIPC = Sampler(solve=without_eta(unipc), spacing=trailing, start=total_noise, steps=20)
_FLOW = replace(_EULER, guidance=5.0)

# euler_ancestral and ddpm are DDIM with eta 1 on other grids: see `moves.split`.
SAMPLERS: dict[str, Sampler] = {
    "ddim": Sampler(solve=ddim, spacing=leading, start=total_noise, steps=50, final_to_zero=False),
    # for zero terminal SNR: starts at the last step, and rescales what guidance over-exposes
    "ddim_trailing": Sampler(
        solve=ddim,
        spacing=trailing,
        start=total_noise,
        steps=50,
        final_to_zero=False,
        guidance_rescale=0.7,
    ),
    "ddpm": Sampler(solve=ddim, spacing=trailing, start=total_noise, steps=1000, eta=1.0),
    "plms": Sampler(
        solve=without_eta(plms),
        spacing=leading,
        start=total_noise,
        steps=50,
        final_to_zero=False,
    ),
    "lms": _LMS,
    "lms_karras": replace(_LMS, spacing=karras),
    "euler": _EULER,
    "euler_karras": replace(_EULER, spacing=karras),
    "euler_ancestral": Sampler(solve=ddim, spacing=linspace, start=own_noise, steps=30, eta=1.0),
    "heun": _HEUN,
    "heun_churn": replace(_HEUN, solve=churned),
    "dpm2": _DPM2,
    "dpm2_karras": replace(_DPM2, spacing=karras),
    "dpm2_ancestral": replace(_DPM2, solve=dpm2_ancestral, eta=1.0),
    "dpmpp_2m": _2M,
    "dpmpp_2m_karras": replace(_2M, spacing=karras, start=own_noise),
    "dpmpp_2m_ays": replace(_2M, spacing=ays, start=own_noise, steps=10),
    "dpmpp_2s_ancestral": _2S,
    "dpmpp_2s_ancestral_karras": replace(_2S, spacing=karras),
    "dpmpp_sde": _SDE,
    "dpmpp_sde_karras": replace(_SDE, spacing=karras),
    "dpmpp_2m_sde": _2M_SDE,
    "dpmpp_2m_sde_karras": replace(_2M_SDE, spacing=karras),
    "unipc": _UNIPC,
    # for the flow schedule; the shift spends more steps at high noise, as large images need
    "euler_flow": replace(_FLOW, spacing=partial(flow_shift, shift=1.0)),
    "euler_flow_shift": replace(_FLOW, spacing=flow_shift),
}

ALIASES = {  # other programs' names: alias -> row of SAMPLERS
    "pndm": "plms",
    "k_lms": "lms",
    "euler_a": "euler_ancestral",
    "heun_karras": "heun",
    "edm": "heun_churn",
    "dpm2_a": "dpm2_ancestral",
    "dpmpp_2s_a": "dpmpp_2s_ancestral",
    "dpmpp_2s_a_karras": "dpmpp_2s_ancestral_karras",
    "ays": "dpmpp_2m_ays",
}
SAMPLER_NAMES = (*SAMPLERS, *ALIASES)


def get_sampler(name: str, grid: str | None = None) -> Sampler:
    """The sampler of that name or alias, on another grid if `grid` names one of GRIDS.

    Grids that stop short of the schedule's first step keep the sampler's own end; the others go on
    to no noise. An unknown name raises ValueError with the known ones, nearest first.
    """
    if name not in SAMPLER_NAMES:
        raise ValueError(_unknown("sampler", name, SAMPLER_NAMES))
    sampler = SAMPLERS[ALIASES.get(name, name)]
    if grid is None:
        return sampler
    if grid not in GRIDS:
        raise ValueError(_unknown("grid", grid, GRIDS))
    own_end = sampler.final_to_zero if grid in ("leading", "trailing") else True
    return replace(sampler, spacing=GRIDS[grid], final_to_zero=own_end)


def _refuse(eta: float) -> None:
    if eta != 0:
        having = [name for name, sampler in SAMPLERS.items() if sampler.solve in _WITH_ETA]
        raise ValueError(
            f"eta={eta}, but this sampler has none; use eta=0, or one of {', '.join(having)}"
        )


_WITH_ETA = (ddim, dpm2_ancestral, dpmpp_2s_ancestral, dpmpp_sde, dpmpp_2m_sde)


def _unknown(kind: str, name: str, known: Iterable[str]) -> str:
    near = get_close_matches(name, list(known), n=3, cutoff=0.4)
    ordered = [*near, *(other for other in known if other not in near)]
    return f"{kind} {name!r} is unknown; known: {', '.join(ordered)}"
