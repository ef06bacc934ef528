"""Is every parameterisation the same model in other coordinates?"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from ldm.diffusion.prediction import (
    PREDICTIONS,
    X0,
    Edm,
    Eps,
    FlowVelocity,
    Prediction,
    V,
    determinant,
    prediction_from_spec,
    recover,
    target,
)
from ldm.types import Level

ALL = (Eps(), X0(), V(), FlowVelocity(), Edm(sigma_data=0.5), Edm(sigma_data=1.3))


def normals(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def some_levels(rows: int) -> Level:
    """Levels between 0.1 and 0.99 noise, none degenerate; alpha^2 + sigma^2 is not 1."""
    t = torch.linspace(0.1, 0.99, rows, dtype=torch.float64)
    return Level(t, 1 - t, t)


X_0, EPS, LEVEL = normals(9, 4, 5, 5), normals(9, 4, 5, 5, seed=1), some_levels(9)
ROWS = LEVEL.expand(X_0)
X = ROWS.alpha * X_0 + ROWS.sigma * EPS


@pytest.mark.parametrize("prediction", ALL, ids=str)
def test_round_trip(prediction: Prediction) -> None:
    got = recover(X, target(X_0, EPS, LEVEL, prediction), LEVEL, prediction)
    assert_close(got.x0, X_0, rtol=0, atol=1e-12)  # float64: only rounding, over alpha >= 0.01
    assert_close(got.eps, EPS, rtol=0, atol=1e-12)


@pytest.mark.parametrize("prediction", ALL, ids=str)
def test_belief_always_adds_up_to_x(prediction: Prediction) -> None:
    """Whatever the network says, alpha x0 + sigma eps is x."""
    got = recover(X, normals(*X.shape, seed=2), LEVEL, prediction)
    assert_close(ROWS.alpha * got.x0 + ROWS.sigma * got.eps, X, rtol=0, atol=1e-12)


def test_published_formulas() -> None:
    alpha, sigma = ROWS.alpha, ROWS.sigma
    assert_close(target(X_0, EPS, LEVEL, Eps()), EPS, rtol=0, atol=0)
    assert_close(target(X_0, EPS, LEVEL, X0()), X_0, rtol=0, atol=0)
    assert_close(target(X_0, EPS, LEVEL, V()), alpha * EPS - sigma * X_0, rtol=0, atol=1e-15)
    assert_close(target(X_0, EPS, LEVEL, FlowVelocity()), EPS - X_0, rtol=0, atol=0)


def test_v_on_the_circle() -> None:
    """Salimans & Ho: x0 = alpha x - sigma v, eps = alpha v + sigma x when alpha^2 + sigma^2 = 1."""
    angle = torch.linspace(0, torch.pi / 2, 9, dtype=torch.float64)  # both ends included
    level = Level(angle, angle.cos(), angle.sin())
    rows = level.expand(X_0)
    x, out = rows.alpha * X_0 + rows.sigma * EPS, normals(*X.shape, seed=3)
    got = recover(x, out, level, V())
    assert_close(got.x0, rows.alpha * x - rows.sigma * out, rtol=0, atol=1e-14)
    assert_close(got.eps, rows.alpha * out + rows.sigma * x, rtol=0, atol=1e-14)


@pytest.mark.parametrize("sigma_data", [0.5, 1.0])
def test_edm_is_table_1_of_the_paper(sigma_data: float) -> None:
    sigma = torch.tensor([0.002, 0.1, 1.0, 80.0], dtype=torch.float64)
    level = Level(sigma, torch.ones_like(sigma), sigma)
    x, out = normals(4, 1, 2, 2, seed=4), normals(4, 1, 2, 2, seed=5)
    s = sigma.reshape(4, 1, 1, 1)
    total = s**2 + sigma_data**2
    c_skip, c_out, c_in = sigma_data**2 / total, s * sigma_data / total.sqrt(), 1 / total.sqrt()
    prediction = Edm(sigma_data=sigma_data)
    got = recover(x, out, level, prediction)
    assert_close(got.x0, c_skip * x + c_out * out, rtol=0, atol=1e-12)
    assert_close(prediction.scaled_input(x, level.expand(x)), c_in * x, rtol=0, atol=1e-15)
    a, b = prediction.coefficients(level)
    assert_close(a, ((1 - c_skip) / c_out).flatten(), rtol=1e-9, atol=0)  # 1 - c_skip cancels
    assert_close(b, (-c_skip * s / c_out).flatten(), rtol=1e-12, atol=0)


def test_edm_is_finite_without_noise() -> None:
    level = Level(*(torch.tensor([v], dtype=torch.float64) for v in (0.0, 1.0, 0.0)))
    got = recover(X[:1], normals(1, 4, 5, 5), level, Edm())
    assert_close(got.x0, X[:1], rtol=0, atol=1e-15)


@pytest.mark.parametrize("prediction", ALL, ids=str)
def test_network_input_has_unit_variance_or_is_x(prediction: Prediction) -> None:
    scaled = prediction.scaled_input(X, ROWS)
    if isinstance(prediction, Edm):
        deviation = (ROWS.alpha**2 * prediction.sigma_data**2 + ROWS.sigma**2).sqrt()
        assert_close(scaled * deviation, X, rtol=0, atol=1e-14)
    else:
        assert scaled is X


@pytest.mark.parametrize("prediction", ALL, ids=str)
def test_scalar_levels_broadcast(prediction: Prediction) -> None:
    scalar = Level(LEVEL.t[3], LEVEL.alpha[3], LEVEL.sigma[3])
    rows = scalar.rows(9)
    out = target(X_0, EPS, scalar, prediction)
    assert torch.equal(out, target(X_0, EPS, rows, prediction))
    assert torch.equal(recover(X, out, scalar, prediction).x0, recover(X, out, rows, prediction).x0)


def test_determinant_vanishes_only_where_f_says_nothing() -> None:
    no_signal = Level(*(torch.tensor(v, dtype=torch.float64) for v in (1.0, 0.0, 1.0)))
    zero = [type(p).__name__ for p in ALL if determinant(no_signal, p) == 0]
    assert zero == ["Eps"]


@pytest.mark.parametrize("prediction", ALL, ids=str)
def test_spec_round_trip(prediction: Prediction) -> None:
    assert prediction_from_spec(prediction.spec()) == prediction


def test_unknown_prediction_lists_the_known() -> None:
    with pytest.raises(ValueError, match=r"'epsilon' is unknown; known: .*eps"):
        prediction_from_spec({"name": "epsilon"})
    assert set(PREDICTIONS) == {"eps", "x0", "v", "flow", "edm"}
