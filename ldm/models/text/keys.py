"""Which names do the weights of a CLIP text model have?

Files, and transformers before 5, say `text_model.encoder…`; transformers 5 says `encoder…` in
memory. Names are translated here and nowhere else, so neither side depends on the version.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from torch import Tensor, nn

PREFIX = "text_model."
TEXT_PARTS = ("embeddings.", "encoder.", "final_layer_norm.")
# The other half of a whole CLIP, and buffers that old files carry.
NOT_TEXT = re.compile(
    r"(vision_model\.|visual_projection\.|text_projection\.|logit_scale$|.*\.position_ids$)"
)
LAYER = re.compile(r"encoder\.layers\.(\d+)\.")


def plain_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The text weights under names without the prefix; what is not text is left out.

    A name that belongs to no CLIP is an error, as is one that occurs with and without the prefix.
    """
    plain: dict[str, Tensor] = {}
    problems: list[str] = []
    for key, value in state.items():
        name = key.removeprefix(PREFIX)
        if NOT_TEXT.match(name):
            continue
        if not name.startswith(TEXT_PARTS):
            problems.append(f"{key} is no part of a CLIP")
        elif name in plain:
            problems.append(f"{name} occurs with and without {PREFIX!r}")
        plain[name] = value
    if problems:
        raise ValueError("the weights are not those of a CLIP text model: " + "; ".join(problems))
    return plain


def file_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The text weights as files name them, with the prefix."""
    return {PREFIX + name: value for name, value in plain_names(state).items()}


def module_names(state: Mapping[str, Tensor], module: nn.Module) -> dict[str, Tensor]:
    """The text weights as `module` (a CLIPTextModel of the installed transformers) names them."""
    prefixed = next(iter(module.state_dict())).startswith(PREFIX)
    return file_names(state) if prefixed else plain_names(state)


def num_layers(names: Iterable[str]) -> int:
    """How many layers plain or prefixed names speak of."""
    found = [int(match[1]) for name in names if (match := LAYER.match(name.removeprefix(PREFIX)))]
    return max(found, default=-1) + 1


def first_layers(state: Mapping[str, Tensor], layers: int) -> dict[str, Tensor]:
    """Plain names without the layers from `layers` on."""
    return {
        name: value
        for name, value in state.items()
        if not (match := LAYER.match(name)) or int(match[1]) < layers
    }
