"""Is the average what its formula says, and do the weights always come back?"""

from __future__ import annotations

import pytest
import torch
from torch import nn

from ldm.training.ema import EMA, EMASettings


def module_of(values: list[float], dtype: torch.dtype = torch.float32) -> nn.ParameterDict:
    return nn.ParameterDict({"w": nn.Parameter(torch.tensor(values, dtype=dtype))})


def test_closed_form_of_the_average() -> None:
    """shadow_K = w_0 prod d_j + sum_k (1 - d_k) w_k prod_{j > k} d_j, in float64."""
    samples, half_life = 64, 9000.0
    weights = torch.linspace(-1, 2, 41, dtype=torch.float64) ** 3
    decays = [min(2.0 ** (-samples / half_life), (1 + k) / (10 + k)) for k in range(40)]
    expected = weights[0].item()
    for weight, decay in zip(weights[1:].tolist(), decays, strict=True):
        expected = decay * expected + (1 - decay) * weight
    module = module_of([weights[0].item()])
    ema = EMA(module.named_parameters(), half_life=half_life)
    for weight in weights[1:]:
        module["w"].data.fill_(weight)
        ema.update(samples)
    assert ema.steps == 40
    # fp32 lerp of 40 steps: rounding only
    assert ema.shadows["w"].item() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("samples", [1, 50, 500])
def test_the_past_counts_half_after_the_half_life(samples: int) -> None:
    """Past the ramp, whatever the batch size."""
    module = module_of([1.0])
    ema = EMA(module.named_parameters(), half_life=1000.0)
    ema.steps = 10_000_000  # far beyond the ramp
    module["w"].data.zero_()
    for _ in range(1000 // samples):
        ema.update(samples)
    assert ema.shadows["w"].item() == pytest.approx(0.5, abs=1e-4)  # 1000 roundings of fp32


def test_the_ramp_forgets_the_random_start() -> None:
    """Five steps into a long run the initial weights count less than a ten-thousandth."""
    module = module_of([1.0])
    ema = EMA(module.named_parameters(), half_life=1e9)
    module["w"].data.zero_()
    for _ in range(5):
        ema.update(64)
    assert 0 < ema.shadows["w"].item() < 1.2e-3  # 1/10 · 2/11 · 3/12 · 4/13 · 5/14 = 5.0e-4
    assert ema.decay(64) == pytest.approx(6 / 15)


def test_inside_swapped_the_parameters_are_the_shadows_and_come_back() -> None:
    module = module_of([1.0, 2.0])
    ema = EMA(module.named_parameters(), half_life=10.0)
    module["w"].data.add_(1.0)
    raw, shadow = module["w"].data.clone(), ema.shadows["w"].clone()
    where = module["w"].data_ptr()
    with ema.swapped():
        assert torch.equal(module["w"].data, shadow)
        assert module["w"].data_ptr() == ema.shadows["w"].data_ptr()  # exchanged, not copied
    assert torch.equal(module["w"].data, raw)
    assert module["w"].data_ptr() == where
    assert torch.equal(ema.shadows["w"], shadow)


def test_the_weights_come_back_after_an_exception() -> None:
    module = module_of([1.0])
    ema = EMA(module.named_parameters(), half_life=10.0)
    module["w"].data.fill_(5.0)
    with pytest.raises(KeyboardInterrupt), ema.swapped():
        raise KeyboardInterrupt
    assert module["w"].item() == 5.0


def test_shadows_are_fp32_whatever_the_weights() -> None:
    module = module_of([1.0], torch.bfloat16)
    ema = EMA(module.named_parameters(), half_life=1e6)
    ema.steps = 10_000_000
    module["w"].data.fill_(2.0)
    for _ in range(3):
        ema.update(1000)
    # (1 - 2^-0.003) + 1: lost in bf16, which has no number between 1 and 1.0078
    assert ema.shadows["w"].item() == pytest.approx(2 - 2**-0.003, abs=1e-6)
    with ema.swapped():
        assert module["w"].dtype == torch.bfloat16


def test_only_what_is_trained_is_averaged() -> None:
    module = nn.Linear(2, 2)
    module.bias.requires_grad_(False)
    assert set(EMA(module.named_parameters(), half_life=1.0).shadows) == {"weight"}


def test_state_goes_on_bit_for_bit() -> None:
    torch.manual_seed(0)
    one, other = nn.Linear(3, 3), nn.Linear(3, 3)
    first = EMA(one.named_parameters(), half_life=100.0)
    first.update(8)
    second = EMA(other.named_parameters(), half_life=100.0)
    second.load_state_dict(first.state_dict())
    other.load_state_dict(one.state_dict())
    for ema, module in ((first, one), (second, other)):
        module.weight.data.mul_(1.5)
        ema.update(8)
    assert second.steps == first.steps == 2
    assert all(torch.equal(first.shadows[n], second.shadows[n]) for n in first.shadows)


def test_the_state_of_other_weights_is_refused() -> None:
    ema = EMA(nn.Linear(2, 2).named_parameters(), half_life=1.0)
    other = EMA(nn.Linear(2, 2, bias=False).named_parameters(), half_life=1.0)
    with pytest.raises(ValueError, match="bias"):
        other.load_state_dict(ema.state_dict())


def test_half_life_must_be_positive() -> None:
    with pytest.raises(ValueError, match="half_life=0"):
        EMA(nn.Linear(1, 1).named_parameters(), half_life=0)
    assert "half_life=-1" in EMASettings(half_life=-1).problems()[0]
    assert EMASettings(half_life=None).problems() == EMASettings(half_life=1).problems() == []
