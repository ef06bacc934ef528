"""How does a model with adapters become a model without, that computes the same?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from ldm.adapters.attach import detach, merge
from ldm.io.adapter_file import read_adapter
from ldm.io.load import build
from ldm.io.source import Source

OF_ADAPTERS = ("adapters", "unet_hash")  # keys of a card


def has_adapters(source: Source) -> bool:
    """Whether a model has trained adapters of its own."""
    return bool(source.card.get("adapters"))


def merged(
    source: Source, adapters: Sequence[tuple[str, float]] = (), *, weights: str = "ema"
) -> Source:
    """The model with its own adapters, and these (path, strength), added to the weights.

    Summed in fp32 and rounded once to the dtype that the model is stored in. Raises ValueError for
    what cannot be merged: hypernetworks, LoRAs of another architecture.
    """
    model = build(source)
    bases = {"unet": model.unet, "text": model.text.module}
    if "text" in model.adapters or adapters:
        model.text.cast(torch.float32)
    for part, adapter in model.adapters.items():
        detach(bases[part], adapter)
        merge(bases[part], adapter)
    for path, strength in adapters:
        for part, adapter in (
            read_adapter(path, weights=weights).build(model.unet, model.text).items()
        ):
            merge(bases[part], adapter, strength)
    text = model.text.cast(source.dtypes["text"]).freeze()
    unet = {
        name: value.to(source.dtypes["unet"]) for name, value in model.unet.state_dict().items()
    }
    bad = [name for name, value in unet.items() if not value.isfinite().all()]
    if bad:
        raise ValueError(
            f"{len(bad)} merged weights are beyond the range of {source.dtypes['unet']}, as "
            f"{bad[0]}; give dtype=fp32 or bf16"
        )
    kept = {key: value for key, value in source.card.items() if key not in OF_ADAPTERS}
    return replace(
        source,
        card=kept,
        networks={source.weights: unet},
        text=lambda: text,
        beside={},
    )
