"""Which solvers are there? Each is solver(denoise, x, levels, ...) -> x at the last level."""

from ldm.sampling.solvers.dpm import dpmpp_2m
from ldm.sampling.solvers.multistep import lms, plms
from ldm.sampling.solvers.onestep import ddim, ddpm, euler, euler_ancestral
from ldm.sampling.solvers.runge_kutta import heun

__all__ = ["ddim", "ddpm", "dpmpp_2m", "euler", "euler_ancestral", "heun", "lms", "plms"]
