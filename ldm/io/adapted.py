"""How do the adapters and the trained text encoder of a run come back?"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ldm.adapters.attach import Adapter, attach
from ldm.adapters.settings import from_spec
from ldm.adapters.token import NewToken
from ldm.io.source import check_fit
from ldm.models.text.base import TextEncoder

ADAPTERS, TEXT = "adapters.", "text."  # in a document's state_dict


def built(
    card: Mapping[str, Any], tensors: Mapping[str, Tensor], unet: nn.Module, text: TextEncoder
) -> dict[str, Adapter]:
    """The adapters of a card with their weights, not attached, by `unet` and `text`.

    tensors: named as in a document. Raises ValueError for what does not fit.
    """
    bases, found = {"unet": unet, "text": text.module}, {}
    for part, spec in (card.get("adapters") or {}).items():
        if part not in bases:
            raise ValueError(f"the card has adapters of {part!r}; known: {', '.join(bases)}")
        adapter = from_spec(spec, bases[part])
        own = without_prefix(tensors, f"{ADAPTERS}{part}.")
        check_fit(adapter, own, f"adapters of {part}")
        device = next(bases[part].parameters()).device
        values = {name: value.detach().clone().to(device) for name, value in own.items()}
        adapter.load_state_dict(values, assign=True)
        found[part] = adapter.eval().requires_grad_(False)
    return found


def restore(
    card: Mapping[str, Any], tensors: Mapping[str, Tensor], unet: nn.Module, text: TextEncoder
) -> dict[str, Adapter]:
    """As `built`, and attached."""
    found = built(card, tensors, unet, text)
    for part, adapter in found.items():
        introduce(adapter, text)
        attach({"unet": unet, "text": text.module}[part], adapter)
    return found


def introduce(adapter: Adapter, text: TextEncoder) -> None:
    """Lets the text encoder learn the word of a new token; nothing for other adapters.

    Raises ValueError for a word that is known already.
    """
    if isinstance(adapter, NewToken):
        adapter.rows.ids = text.learn(adapter.token, len(adapter.vectors))


def withdraw(adapter: Adapter, text: TextEncoder) -> None:
    """Undoes `introduce`."""
    if isinstance(adapter, NewToken):
        text.forget(adapter.token)
        adapter.rows.ids = ()


@torch.no_grad()
def with_trained(text: TextEncoder, tensors: Mapping[str, Tensor]) -> TextEncoder:
    """The frozen text encoder of a run with the weights that the run has trained."""
    own = without_prefix(tensors, TEXT)
    if own:
        check_fit(text.module, own, "text encoder")
        state = text.module.state_dict()
        for name, value in own.items():
            state[name].copy_(value)
        text.freeze()  # forgets the hash
    return text


def without_prefix(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Those whose names begin with it, without it."""
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
