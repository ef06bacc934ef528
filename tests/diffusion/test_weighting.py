"""Are the weights the published ones, and one law for all parameterisations?"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from ldm.diffusion.prediction import X0, Edm, Eps, FlowVelocity, Prediction, V, determinant
from ldm.diffusion.schedules import ScaledLinear
from ldm.diffusion.weighting import (
    P2,
    WEIGHTINGS,
    Debiased,
    MinSNR,
    OnX0,
    SoftMinSNR,
    Uniform,
    weighting_from_spec,
)
from ldm.types import Level

ON_X0 = (MinSNR(), MinSNR(gamma=1.0), SoftMinSNR(), P2(), P2(gamma=0.5), P2(gamma=0.0), Debiased())
PREDICTIONS = (Eps(), X0(), V(), FlowVelocity(), Edm(sigma_data=0.7))
LEVEL = ScaledLinear().at(torch.arange(0, 1000, 7, dtype=torch.float64))
SNR = LEVEL.snr


def at(*steps: int) -> Level:
    return ScaledLinear().at(torch.tensor(steps, dtype=torch.float64))


def test_min_snr_numbers() -> None:
    """gamma 5 at t = 0, 100, 500, 999, as the published eps and v weights."""
    level = at(0, 100, 500, 999)
    eps = torch.tensor([0.0042537, 0.591445, 1, 1], dtype=torch.float64)
    v = torch.tensor([0.0042501, 0.528884, 0.276332, 0.00466], dtype=torch.float64)
    # atol: the digits given, which float32 code computed
    assert_close(MinSNR().on_output(level, Eps()), eps, rtol=0, atol=2e-6)
    assert_close(MinSNR().on_output(level, V()), v, rtol=0, atol=2e-6)


def test_min_snr_formulas_for_eps_v_and_x0() -> None:
    """Hang et al. 2023: min(S,g)/S, min(S,g)/(S+1), min(S,g)."""
    capped = SNR.clamp(max=5)
    weight = MinSNR(gamma=5.0)
    assert_close(weight.on_output(LEVEL, Eps()), capped / SNR, rtol=1e-12, atol=0)
    assert_close(weight.on_output(LEVEL, V()), capped / (SNR + 1), rtol=1e-12, atol=0)
    assert_close(weight.on_output(LEVEL, X0()), capped, rtol=1e-12, atol=0)


@pytest.mark.parametrize(
    ("weighting", "on_x0"),
    [
        (MinSNR(gamma=3.0), SNR.clamp(max=3)),
        (SoftMinSNR(gamma=3.0), SNR * 3 / (SNR + 3)),
        (P2(gamma=1.0), SNR / (1 + SNR)),
        (P2(gamma=0.5), SNR / (1 + SNR).sqrt()),
        (Debiased(clip=1e9), SNR.sqrt()),
        (Debiased(clip=100.0), SNR / SNR.clamp(max=100).sqrt()),
    ],
    ids=str,
)
def test_weights_on_x0(weighting: OnX0, on_x0: Tensor) -> None:
    assert_close(weighting(LEVEL), on_x0, rtol=1e-12, atol=0)


def test_p2_and_debiased_on_eps() -> None:
    """Choi et al.: (1 + S)^-gamma; Yu et al.: 1 / sqrt(S)."""
    assert_close(P2(gamma=1.0).on_output(LEVEL, Eps()), 1 / (1 + SNR), rtol=1e-12, atol=0)
    want = SNR.clamp(max=1000).rsqrt()
    assert_close(Debiased().on_output(LEVEL, Eps()), want, rtol=1e-12, atol=0)


def test_p2_without_gamma_is_the_plain_eps_loss() -> None:
    assert_close(P2(gamma=0.0).on_output(LEVEL, Eps()), torch.ones_like(SNR), rtol=1e-12, atol=0)
    want = SNR / (1 + SNR)  # the eps loss, said on v: (sigma / det)^2 SNR with det = 1
    assert_close(P2(gamma=0.0).on_output(LEVEL, V()), want, rtol=1e-12, atol=0)


@pytest.mark.parametrize("weighting", ON_X0, ids=str)
@pytest.mark.parametrize("prediction", PREDICTIONS, ids=str)
def test_weight_on_x0_does_not_depend_on_the_prediction(
    weighting: OnX0, prediction: Prediction
) -> None:
    on_x0 = (
        weighting.on_output(LEVEL, prediction) * (determinant(LEVEL, prediction) / LEVEL.sigma) ** 2
    )
    assert_close(on_x0, weighting(LEVEL), rtol=1e-12, atol=0)


@pytest.mark.parametrize("prediction", PREDICTIONS, ids=str)
def test_uniform_is_one_on_the_output(prediction: Prediction) -> None:
    assert torch.equal(Uniform().on_output(LEVEL, prediction), torch.ones_like(SNR))


@pytest.mark.parametrize("weighting", ON_X0, ids=str)
@pytest.mark.parametrize("prediction", [V(), FlowVelocity(), Edm()], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_pure_noise_and_no_noise_are_finite(
    weighting: OnX0, prediction: Prediction, dtype: torch.dtype
) -> None:
    """SNR 0 gives weight 0, not 0/0; sigma = 0 (SNR inf) is finite too."""
    alpha = torch.tensor([0.0, 1.0], dtype=dtype)
    weight = weighting.on_output(Level(1 - alpha, alpha, 1 - alpha), prediction)
    assert weight[0] == 0
    assert bool(weight.isfinite().all())


@pytest.mark.parametrize("weighting", [Uniform(), *ON_X0], ids=str)
def test_spec_round_trip(weighting: Uniform | OnX0) -> None:
    assert weighting_from_spec(weighting.spec()) == weighting
    assert weighting.name in WEIGHTINGS


def test_unusable_parameters_are_refused() -> None:
    for make in (
        lambda: MinSNR(gamma=0.0),
        lambda: SoftMinSNR(gamma=-1.0),
        lambda: P2(gamma=-0.1),
        lambda: Debiased(clip=0.0),
    ):
        with pytest.raises(ValueError, match="use "):
            make()
