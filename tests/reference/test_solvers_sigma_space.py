"""Do our solvers give what their published recursions give in sigma space, as k-diffusion runs?

There x is data + sigma noise, the network's denoised x is D, and levels are sigma alone. Each loop
below is the paper's, written out for one step; ours work on (alpha, sigma) pairs of any schedule.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from itertools import pairwise

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from ldm.diffusion.objective import Objective
from ldm.diffusion.prediction import Eps, Prediction, V
from ldm.diffusion.schedules import ScaledLinear
from ldm.sampling.denoiser import Denoiser
from ldm.sampling.levels import Levels, karras
from ldm.sampling.solvers import (
    dpm2,
    dpm2_ancestral,
    dpmpp_2m,
    dpmpp_2m_sde,
    dpmpp_2s_ancestral,
    dpmpp_sde,
    heun_churn,
    unipc,
)
from ldm.types import Conditioning, Denoised, Level

SHAPE = (2, 4, 6, 6)
Data = Callable[[Tensor, float], Tensor]  # x in sigma space, sigma -> D
Noise = Callable[[int], Tensor]


def normals(seed: int) -> Tensor:
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(seed)).double()


def network(x: Tensor, t: Tensor, context: Tensor | None, mask: Tensor | None) -> Tensor:
    """A smooth function of x and t near the size of a trained network's answer."""
    return (0.8 * x + 0.3 * x.roll(1, -1) - t[:, None, None, None] / 2000).tanh()


def denoiser(prediction: Prediction) -> Callable[[Tensor, Level], Denoised]:
    wrapped = Denoiser(network, Objective(schedule=ScaledLinear(), prediction=prediction))
    return lambda x, level: wrapped(x, level, Conditioning())


def in_sigma_space(prediction: Prediction) -> Data:
    denoise, schedule = denoiser(prediction), ScaledLinear()

    def data(x: Tensor, sigma: float) -> Tensor:
        level = schedule.at(schedule.time_at_sigma_ratio(torch.tensor(sigma).double()))
        return denoise(x * level.alpha, level).x0

    return data


def ancestral(now: float, to: float, eta: float = 1.0) -> tuple[float, float]:
    """(sigma_down, sigma_up), whose squares add up to sigma'^2."""
    up = min(to, eta * math.sqrt(to**2 * (now**2 - to**2) / now**2))
    return math.sqrt(to**2 - up**2), up


def plain_dpmpp_2m(data: Data, x: Tensor, sigmas: list[float]) -> Tensor:
    old, h_last = None, 0.0
    for now, to in pairwise(sigmas):
        d = data(x, now)
        if to == 0:
            return d
        h = math.log(now / to)
        best = d if old is None else (1 + h / (2 * h_last)) * d - h / (2 * h_last) * old
        x = to / now * x + (1 - math.exp(-h)) * best
        old, h_last = d, h
    return x


def plain_dpmpp_2m_sde(data: Data, x: Tensor, sigmas: list[float], noise: Noise) -> Tensor:
    old, h_last = None, 0.0
    for i, (now, to) in enumerate(pairwise(sigmas)):
        d = data(x, now)
        if to == 0:
            return d
        h = math.log(now / to)
        best = d if old is None else d + h / (2 * h_last) * (d - old)
        x = to / now * math.exp(-h) * x + (1 - math.exp(-2 * h)) * best
        x = x + to * math.sqrt(1 - math.exp(-2 * h)) * noise(i)
        old, h_last = d, h
    return x


def plain_dpm2(data: Data, x: Tensor, sigmas: list[float], noise: Noise, eta: float) -> Tensor:
    for i, (now, to) in enumerate(pairwise(sigmas)):
        slope = (x - data(x, now)) / now
        if to == 0:
            return x - now * slope
        down, up = ancestral(now, to, eta)
        middle = math.sqrt(now * down)
        half = x + slope * (middle - now)
        x = x + (half - data(half, middle)) / middle * (down - now)
        x = x + up * noise(i)
    return x


def plain_dpmpp_2s(data: Data, x: Tensor, sigmas: list[float], noise: Noise) -> Tensor:
    for i, (now, to) in enumerate(pairwise(sigmas)):
        d = data(x, now)
        if to == 0:
            return d
        down, up = ancestral(now, to)
        middle = math.sqrt(now * down)
        half = middle / now * x + (1 - middle / now) * d
        x = down / now * x + (1 - down / now) * data(half, middle) + up * noise(i)
    return x


def plain_dpmpp_sde(data: Data, x: Tensor, sigmas: list[float], noise: Noise) -> Tensor:
    """Noise from one path W(sigma) of Brownian motion, as k-diffusion's tree."""
    for i, (now, to) in enumerate(pairwise(sigmas)):
        d = data(x, now)
        if to == 0:
            return d
        middle = math.sqrt(now * to)
        first = math.sqrt(now - middle) * noise(2 * i)  # W(now) - W(middle)
        whole = first + math.sqrt(middle - to) * noise(2 * i + 1)
        down, up = ancestral(now, middle)
        half = down / now * x + (1 - down / now) * d + up * first / math.sqrt(now - middle)
        down, up = ancestral(now, to)
        x = down / now * x + (1 - down / now) * data(half, middle)
        x = x + up * whole / math.sqrt(now - to)
    return x


def plain_edm(data: Data, x: Tensor, sigmas: list[float], noise: Noise) -> Tensor:
    """Karras et al. 2022, alg. 2 with S_churn 40, S_tmin 0.05, S_tmax 50, S_noise 1.003."""
    gamma, most = min(40 / (len(sigmas) - 1), math.sqrt(2) - 1), sigmas[0]
    for i, (now, to) in enumerate(pairwise(sigmas)):
        # beyond most noise the network was not trained
        hat = min(now * (1 + gamma), most) if 0.05 <= now <= 50 else now
        x = x + math.sqrt(hat**2 - now**2) * 1.003 * noise(i)
        slope = (x - data(x, hat)) / hat
        ahead = x + (to - hat) * slope
        if to != 0:
            ahead = x + (to - hat) * (slope + (ahead - data(ahead, to)) / to) / 2
        x = ahead
    return x


def plain_unipc(data: Data, x: Tensor, sigmas: list[float]) -> Tensor:
    """Zhao et al. 2023, order 2: B(h) = e^h - 1 for x0 (h < 0), the corrector's 2 x 2 system."""
    steps, seen, lam = len(sigmas) - 1, [], [-math.log(s) if s else math.inf for s in sigmas]
    base = x
    for i in range(steps):
        d = data(x, sigmas[i])
        if i > 0:
            h = -(lam[i] - lam[i - 1])
            b = math.expm1(h)
            start = sigmas[i] / sigmas[i - 1] * base - b * seen[-1]
            if i == 1:
                x = start - b * 0.5 * (d - seen[-1])
            else:
                r = -(lam[i - 2] - lam[i - 1]) / h
                phi1 = b / h - 1
                phi2 = phi1 / h - 0.5
                matrix = torch.tensor([[1.0, 1.0], [r, 1.0]], dtype=torch.float64)
                wanted = torch.tensor([phi1 / b, 2 * phi2 / b], dtype=torch.float64)
                rho = torch.linalg.solve(matrix, wanted).tolist()
                x = start - b * (rho[0] * (seen[-2] - seen[-1]) / r + rho[1] * (d - seen[-1]))
        seen.append(d)
        base = x
        if sigmas[i + 1] == 0:
            # the last x0 is that of the prediction, kept on the line through the corrected x
            return d
        h = -(lam[i + 1] - lam[i])
        x = sigmas[i + 1] / sigmas[i] * base - math.expm1(h) * d
        if i > 0:
            r = -(lam[i - 1] - lam[i]) / h
            x = x - math.expm1(h) * 0.5 * (seen[-2] - d) / r
    return x


DRAWN = {"noise": lambda key: normals(100 + key)}
PAIRS = {
    "dpmpp_2m": (dpmpp_2m, plain_dpmpp_2m, {}),
    "dpmpp_2m_sde": (dpmpp_2m_sde, plain_dpmpp_2m_sde, DRAWN),
    "dpm2": (dpm2, partial(plain_dpm2, noise=normals, eta=0.0), {}),
    "dpm2_ancestral": (dpm2_ancestral, partial(plain_dpm2, eta=1.0), DRAWN),
    "dpmpp_2s_ancestral": (dpmpp_2s_ancestral, plain_dpmpp_2s, DRAWN),
    "dpmpp_sde": (dpmpp_sde, plain_dpmpp_sde, DRAWN),
    "heun_churn": (heun_churn, plain_edm, DRAWN),
    "unipc": (unipc, plain_unipc, {}),
}


@pytest.mark.parametrize("name", PAIRS)
@pytest.mark.parametrize("prediction", [Eps(), V()], ids=["eps", "v"])
@pytest.mark.parametrize("steps", [10, 20, 50])
def test_karras_grid(name: str, prediction: Prediction, steps: int) -> None:
    ours, plain, noise = PAIRS[name]
    levels = karras(ScaledLinear(), steps=steps)
    sigmas = (levels.sigma.double() / levels.alpha.double()).tolist()
    x = levels.sigma[0] * normals(0)  # sigma_max z in sigma space
    got = ours(denoiser(prediction), x, levels, **noise)
    want = plain(in_sigma_space(prediction), x / levels.alpha[0], sigmas, **noise)
    # levels are float32; the part that is new noise is a difference of nearly equal squares
    assert_close(got, want, rtol=0, atol=2e-5 if noise else 1e-6)


def test_the_loops_differ_from_each_other() -> None:
    """So that agreement means something: at 20 steps they are 0.04 apart and more."""
    levels: Levels = karras(ScaledLinear(), steps=20)
    x = levels.sigma[0] * normals(0)
    ends = [ours(denoiser(Eps()), x, levels, **noise) for ours, _, noise in PAIRS.values()]
    for i, one in enumerate(ends):
        for other in ends[:i]:
            assert float((one - other).abs().max()) > 0.03
