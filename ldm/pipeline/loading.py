"""How does a path become a pipeline?"""

from __future__ import annotations

from pathlib import Path

import torch

from ldm.diffusion.objective import objective_from_spec
from ldm.models.dtypes import dtype_here
from ldm.pipeline.options import SamplingDefaults
from ldm.pipeline.pipeline import Pipeline


def load(
    path: str | Path, *, weights: str = "ema", device: str = "auto", dtype: str = "auto"
) -> Pipeline:
    """A Pipeline from `tiny`, a run folder, a .ckpt or a folder of weights.

    weights: `ema` (wherever the file has them) or `raw`; device: auto, cpu, cuda, …; dtype: auto
    (bf16 on a GPU that has it, else fp32), fp32, bf16 or fp16. Raises FileNotFoundError or
    ValueError that say what the path holds instead.
    """
    from ldm.io.load import load_model

    chosen = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
    model = load_model(path, weights=weights, dtype=dtype_here(dtype, chosen))
    sampling = {**model.card["sampling"], "size": tuple(model.card["sampling"]["size"])}
    for adapter in model.adapters.values():
        adapter.to(chosen)
    pipeline = Pipeline(
        model.unet.to(chosen),
        model.codec.to(chosen),
        model.text.to(chosen),
        objective_from_spec(model.card["objective"]),
        defaults=SamplingDefaults(**sampling),
        null=model.card["null"],
        device=chosen,
        weights=model.weights,
        adapters=model.adapters,
    )
    pipeline.card = model.card
    pipeline.asked_weights = weights  # of adapters, also where the model has others only
    return pipeline
