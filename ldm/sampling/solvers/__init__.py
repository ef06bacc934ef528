"""Which solvers are there? Each is solver(denoise, x, levels, ...) -> x at the last level."""

from ldm.sampling.solvers.dpm import dpmpp_2m, dpmpp_2m_sde
from ldm.sampling.solvers.midpoint import dpm2, dpm2_ancestral, dpmpp_2s_ancestral, dpmpp_sde
from ldm.sampling.solvers.multistep import lms, plms
from ldm.sampling.solvers.onestep import ddim, ddpm, euler, euler_ancestral
from ldm.sampling.solvers.runge_kutta import heun, heun_churn
from ldm.sampling.solvers.unipc import unipc

__all__ = [
    "ddim",
    "ddpm",
    "dpm2",
    "dpm2_ancestral",
    "dpmpp_2m",
    "dpmpp_2m_sde",
    "dpmpp_2s_ancestral",
    "dpmpp_sde",
    "euler",
    "euler_ancestral",
    "heun",
    "heun_churn",
    "lms",
    "plms",
    "unipc",
]
