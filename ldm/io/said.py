"""Who says what about a single file: its metadata, its buffers, a yaml beside it, the user?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from ldm.io.facts import Facts, prediction_named, schedule_named, schedule_of
from ldm.io.reading import TensorFile

# global_step of the one SD 2 file that predicts eps (512-base-ema.ckpt)
SD2_BASE_STEP = 875000
KEYS = {"v_pred": ("prediction", "v")}  # empty tensors that some files carry as a flag


@dataclass(frozen=True, kw_only=True)
class Hints:
    """What the user says of a file. None: nothing.

    prediction: eps, v or x0; schedule: scaled_linear, linear, cosine or ztsnr; scale: of the
    latents; size: px a side; tokenizer: the folder of the text encoder's tokenizer.
    """

    prediction: str | None = None
    schedule: str | None = None
    scale: float | None = None
    size: int | None = None
    tokenizer: str | None = None


def gather(file: TensorFile, card: Mapping[str, Any], hints: Hints) -> Facts:
    """Every fact, with who says it; see `Facts.check` for contradictions."""
    facts = Facts(str(file.path))
    if card:
        _from_card(facts, card)
    _from_metadata(facts, file.metadata)
    _from_yaml(facts, file.path.with_suffix(".yaml"))
    _from_tensors(facts, file)
    say_hints(facts, hints)
    return facts


def _from_card(facts: Facts, card: Mapping[str, Any]) -> None:
    where = "the card in the file"
    objective = card["objective"]
    facts.say("prediction", objective["prediction"]["name"], where)
    facts.say("schedule", objective["schedule"], where)
    facts.say("scale", card["vae"]["config"]["scaling_factor"], where)


def _from_metadata(facts: Facts, metadata: Mapping[str, str]) -> None:
    """The keys of the published "model spec" standard."""
    word = metadata.get("modelspec.prediction_type")
    if word:
        where = "modelspec.prediction_type in the file"
        facts.say("prediction", prediction_named(word.lower(), where), where)
    width, _, height = metadata.get("modelspec.resolution", "").partition("x")
    if width.isdecimal() and width == (height or width):
        facts.say("size", int(width), "modelspec.resolution in the file")


def _from_yaml(facts: Facts, path: Path) -> None:
    """A CompVis inference config of the same name beside the file."""
    if not path.is_file():
        return
    try:
        params = yaml.safe_load(path.read_text(encoding="utf-8"))["model"]["params"]
        network = params.get("unet_config", {}).get("params", {})
        named = {
            "prediction": params.get("parameterization"),
            "scale": params.get("scale_factor"),
            "heads": _positive(network.get("num_heads")),
            "head_dim": _positive(network.get("num_head_channels")),
        }
        latent = _positive(params.get("image_size"))
        betas = params.get("linear_start"), params.get("linear_end"), params.get("timesteps", 1000)
    except (yaml.YAMLError, UnicodeDecodeError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is no CompVis config of a diffusion model: {error}") from error
    if named["prediction"] is not None:
        named["prediction"] = prediction_named(str(named["prediction"]), str(path))
    for name, value in named.items():
        facts.say(name, value, str(path))
    facts.say("latent_size", latent, str(path))
    if None not in betas:
        facts.say(
            "schedule",
            {
                **schedule_named("scaled_linear"),
                "num_train_steps": int(betas[2]),
                "beta_start": float(betas[0]),
                "beta_end": float(betas[1]),
            },
            str(path),
        )


def _from_tensors(facts: Facts, file: TensorFile) -> None:
    for key, (name, value) in KEYS.items():
        if key in file:
            facts.say(name, value, f"the tensor {key} in the file")
    if "ztsnr" in file:
        facts.say("schedule", schedule_named("ztsnr"), "the tensor ztsnr in the file")
    if "alphas_cumprod" in file and "ztsnr" not in file:
        where = "alphas_cumprod in the file"
        facts.say("schedule", schedule_of(file["alphas_cumprod"], str(file.path)), where)
    if "scale_factor" in file:
        facts.say("scale", float(file["scale_factor"]), "scale_factor in the file")
    if file.values.get("global_step") == SD2_BASE_STEP:
        facts.say("prediction", "eps", f"global_step={SD2_BASE_STEP} (SD 2's 512-base) in the file")


def say_hints(facts: Facts, hints: Hints) -> None:
    if hints.prediction is not None:
        where = f"prediction={hints.prediction}"
        facts.say("prediction", prediction_named(hints.prediction, where), where)
    if hints.schedule is not None:
        facts.say("schedule", schedule_named(hints.schedule), f"schedule={hints.schedule}")
    facts.say("scale", hints.scale, f"scale={hints.scale}")
    facts.say("size", hints.size, f"size={hints.size}")


def _positive(value: Any) -> int | None:
    """CompVis writes -1 for "not given"."""
    return value if isinstance(value, int) and value > 0 else None
