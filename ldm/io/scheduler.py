"""What does a diffusers scheduler config say of a model, and how is ours written as one?"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from ldm.diffusion.schedules import Cosine, Discrete, Linear, ScaledLinear, schedule_from_spec
from ldm.io.facts import Facts, prediction_named, schedule_of

# diffusers' class: our sampler, and the one with a Karras grid where there is one
SAMPLERS = {
    "DDIMScheduler": ("ddim", "ddim"),
    "PNDMScheduler": ("plms", "plms"),
    "DDPMScheduler": ("ddim", "ddim"),  # the class that only training uses
    "LMSDiscreteScheduler": ("lms", "lms_karras"),
    "EulerDiscreteScheduler": ("euler", "euler_karras"),
    "EulerAncestralDiscreteScheduler": ("euler_ancestral", "euler_ancestral"),
    "HeunDiscreteScheduler": ("heun", "heun_karras"),
    "DPMSolverMultistepScheduler": ("dpmpp_2m", "dpmpp_2m_karras"),
}
BETAS = {"scaled_linear": ScaledLinear, "linear": Linear, "squaredcos_cap_v2": Cosine}
WORDS = {"eps": "epsilon", "v": "v_prediction", "x0": "sample"}
# what those who read a config without these keys take (DDIMScheduler's own defaults)
USUAL = {"num_train_timesteps": 1000, "beta_start": 0.0001, "beta_end": 0.02}


def say_scheduler(facts: Facts, config: Mapping[str, Any], where: str) -> None:
    """Schedule and prediction of a scheduler_config.json. Raises ValueError for unknown ones."""
    facts.say(
        "prediction", prediction_named(config.get("prediction_type", "epsilon"), where), where
    )
    if config.get("trained_betas") is not None:
        betas = torch.tensor(config["trained_betas"], dtype=torch.float64)
        facts.say("schedule", schedule_of((1 - betas).cumprod(0), where), where)
        return
    name = config.get("beta_schedule", "linear")
    if name not in BETAS:
        raise ValueError(f"{where}: beta_schedule={name!r}; known: {', '.join(BETAS)}")
    known = {**USUAL, **{k: v for k, v in config.items() if k in USUAL}}
    fields = {
        "num_train_steps": int(known["num_train_timesteps"]),
        "zero_terminal_snr": bool(config.get("rescale_betas_zero_snr", False)),
    }
    if name != "squaredcos_cap_v2":
        fields |= {key: float(known[key]) for key in ("beta_start", "beta_end")}
    facts.say("schedule", BETAS[name](**fields).spec(), where)


def sampling_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """The card's sampling defaults (without the size) for a scheduler config."""
    plain, karras = SAMPLERS.get(str(config.get("_class_name")), ("ddim", "ddim"))
    sampler = karras if config.get("use_karras_sigmas") else plain
    trailing = bool(config.get("rescale_betas_zero_snr"))
    trailing |= config.get("timestep_spacing") == "trailing"
    if sampler == "ddim" and trailing:
        sampler = "ddim_trailing"
    return {
        "sampler": sampler,
        "steps": 50 if sampler in ("ddim", "plms", "lms", "ddim_trailing") else 30,
        "guidance": 7.5,
        "guidance_rescale": 0.7 if sampler == "ddim_trailing" else 0.0,
        "eta": 1.0 if sampler == "euler_ancestral" else 0.0,
    }


def scheduler_json(objective: Mapping[str, Any], sampler: str) -> dict[str, Any]:
    """A scheduler_config.json for the card's objective; PNDM or DDIM as the card samples.

    Raises ValueError for what diffusers' discrete schedulers cannot express.
    """
    schedule = schedule_from_spec(objective["schedule"])
    prediction = objective["prediction"]["name"]
    names = {cls: name for name, cls in BETAS.items()}
    if not isinstance(schedule, Discrete) or prediction not in WORDS:
        raise ValueError(
            f"a diffusers folder cannot hold schedule {objective['schedule']['name']!r} with "
            f"prediction {prediction!r}; known: {', '.join(BETAS)} with {', '.join(WORDS)}. "
            "Use format=native"
        )
    spec = schedule.spec()
    plms = sampler in ("plms", "pndm") and not schedule.zero_terminal_snr
    config = {
        "_class_name": "PNDMScheduler" if plms else "DDIMScheduler",
        "num_train_timesteps": schedule.num_train_steps,
        "beta_schedule": names[type(schedule)],
        "beta_start": spec.get("beta_start", USUAL["beta_start"]),
        "beta_end": spec.get("beta_end", USUAL["beta_end"]),
        "trained_betas": None,
        "prediction_type": WORDS[prediction],
        "set_alpha_to_one": False,
        "steps_offset": 1,
        "timestep_spacing": "trailing" if schedule.zero_terminal_snr else "leading",
    }
    if plms:
        return {**config, "skip_prk_steps": True}
    zero = {"rescale_betas_zero_snr": schedule.zero_terminal_snr}
    return {**config, "clip_sample": False, "thresholding": False, **zero}
