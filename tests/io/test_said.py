"""Is what files say of themselves believed, and are contradictions named?"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from ldm.diffusion.schedules import Cosine, Linear, ScaledLinear
from ldm.io.facts import schedule_of
from ldm.io.load import load_model, open_source
from ldm.io.said import Hints

Foreign = Callable[..., Path]
YAML = """
model:
  params:
    parameterization: "{prediction}"
    linear_start: 0.00085
    linear_end: 0.0120
    timesteps: 1000
    scale_factor: {scale}
    image_size: 96
    unet_config:
      params: {{num_head_channels: 64, num_heads: -1}}
"""


def changed(path: Path, metadata: dict[str, str] | None = None, **tensors: Tensor | None) -> Path:
    found = load_file(path)
    for name, value in tensors.items():
        found.pop(name, None)
        if value is not None:
            found[name] = value
    save_file(found, path, metadata=metadata)
    return path


@pytest.mark.parametrize(
    "schedule",
    [
        ScaledLinear(),
        ScaledLinear(zero_terminal_snr=True),
        Linear(),
        Linear(beta_start=0.0015, beta_end=0.0195),
        ScaledLinear(num_train_steps=500),
        Cosine(),
    ],
)
def test_a_schedule_is_known_by_its_values(schedule: ScaledLinear) -> None:
    assert schedule_of(schedule.alphas_cumprod().float(), "x") == schedule.spec()
    if schedule in (ScaledLinear(), ScaledLinear(zero_terminal_snr=True)):
        assert schedule_of(schedule.alphas_cumprod().half(), "x") == schedule.spec()


def test_an_unknown_schedule_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"belong to no known schedule; give schedule="):
        schedule_of(torch.linspace(0.99, 0.01, 1000), "x")


def test_sd1_needs_no_words(foreign: Foreign) -> None:
    source = open_source(foreign("sd1"))
    assert source.card["objective"]["prediction"] == {"name": "eps"}
    assert source.card["objective"]["schedule"] == ScaledLinear().spec()
    assert source.card["vae"]["config"]["scaling_factor"] == 0.18215
    assert source.card["null"] == "empty"
    assert source.stated == {"schedule": ScaledLinear().spec()}  # nobody said eps


def test_sd2_must_say_what_it_predicts(foreign: Foreign) -> None:
    file = foreign("sd2")
    with pytest.raises(ValueError, match=r"do not say whether they predict eps.*yaml.*prediction="):
        open_source(file)
    by_hint = open_source(file, hints=Hints(prediction="v_prediction"))
    assert by_hint.card["objective"]["prediction"] == {"name": "v"}
    file.with_suffix(".yaml").write_text(YAML.format(prediction="v", scale=0.18215))
    by_yaml = open_source(file)
    assert by_yaml.card["objective"]["prediction"] == {"name": "v"}
    assert by_yaml.card["unet"]["num_attention_heads"] == [1, 1]  # 64 wide
    assert by_yaml.card["sampling"]["size"] == [96 * 4, 96 * 4]
    file.with_suffix(".yaml").unlink()
    changed(file, {"modelspec.prediction_type": "v"})
    assert open_source(file).card["objective"]["prediction"] == {"name": "v"}


def test_flags_in_the_file(foreign: Foreign) -> None:
    """`v_pred` and `ztsnr` are empty tensors that some programs write; buffers lie then."""
    file = changed(foreign("sd1"), v_pred=torch.zeros(0), ztsnr=torch.zeros(0))
    source = open_source(file)
    assert source.card["objective"]["prediction"] == {"name": "v"}
    assert source.card["objective"]["schedule"]["zero_terminal_snr"] is True
    assert source.card["sampling"]["sampler"] == "ddim_trailing"
    assert {"v_pred", "ztsnr"} <= set(source.extras)  # and they go along


def test_a_scale_in_the_file(foreign: Foreign) -> None:
    source = open_source(changed(foreign("sd1"), scale_factor=torch.tensor(0.25)))
    assert source.codec(torch.float32).scale == 0.25


@pytest.mark.parametrize(
    ("hints", "words"),
    [
        (Hints(schedule="linear"), [".yaml says name=scaled_linear", "schedule=linear"]),
        (Hints(scale=0.5), ["yaml says 0.18215", "scale=0.5 says 0.5"]),
        (Hints(prediction="eps"), ["yaml says 'v'", "prediction=eps says 'eps'"]),
    ],
)
def test_a_contradiction_names_both(foreign: Foreign, hints: Hints, words: list[str]) -> None:
    file = foreign("sd1")
    file.with_suffix(".yaml").write_text(
        YAML.format(prediction="v", scale=0.18215).replace("num_head_channels: 64,", "")
    )
    with pytest.raises(ValueError) as error:
        open_source(file, hints=hints)
    assert all(word in str(error.value) for word in words)


def test_unknown_words(foreign: Foreign) -> None:
    with pytest.raises(ValueError, match=r"prediction 'velocity' is unknown; known: epsilon"):
        open_source(foreign("sd1"), hints=Hints(prediction="velocity"))
    file = foreign("sd1")
    file.with_suffix(".yaml").write_text("a: [1")
    with pytest.raises(ValueError, match="no CompVis config"):
        open_source(file)


def test_ours_need_no_hints(finished_run: Path) -> None:
    with pytest.raises(ValueError, match="has a card that says what it is"):
        load_model(finished_run, hints=Hints(prediction="v"))
