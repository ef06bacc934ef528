"""How does a saved text encoder come back?"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ldm.models.text.auto import AutoText, auto_text
from ldm.models.text.base import TextEncoder
from ldm.models.text.bert import BertText, load_bert
from ldm.models.text.clip import ClipText, clip_text
from ldm.models.text.network import SPEC_FILE, NetworkText
from ldm.models.text.none import NoText
from ldm.models.text.sources import Origin


def load_text(folder: Path, spec: Mapping[str, Any] | None = None) -> TextEncoder:
    """The text encoder in `folder`, as a card says it is; without a card, as its text.json does.

    Raises FileNotFoundError, or ValueError when the weights are not those of the spec's hash.
    """
    said = read_spec(folder) if spec is None else spec
    encoder = _build(said, Origin(str(folder)))
    _check_hashes(encoder, said, str(folder))
    if isinstance(encoder, NetworkText):
        encoder.origin = _origin(said)
    return encoder


def read_spec(folder: Path) -> dict[str, Any]:
    """What `save` wrote down beside the weights."""
    path = folder / SPEC_FILE
    if not path.exists():
        raise FileNotFoundError(
            f"{path} is missing: put the saved text encoder (config, weights, tokenizer) there"
        )
    spec: dict[str, Any] = json.loads(path.read_text())
    return spec


def text_from_spec(spec: Mapping[str, Any]) -> TextEncoder:
    """The encoder that a card names, from its own source; other weights there are an error."""
    encoder = _build(spec, _origin(spec))
    _check_hashes(encoder, spec, str(spec["source"]))
    return encoder


def _origin(spec: Mapping[str, Any]) -> Origin:
    return Origin(spec["source"], spec["subfolder"], spec["revision"])


def _build(spec: Mapping[str, Any], origin: Origin) -> TextEncoder:
    kind = spec["kind"]
    if kind not in BUILDERS:
        raise ValueError(f"text encoder kind={kind!r} is not known; known: {', '.join(BUILDERS)}")
    return BUILDERS[kind](spec, origin)


def _clip(spec: Mapping[str, Any], origin: Origin) -> TextEncoder:
    return clip_text(
        source=origin.source,
        subfolder=origin.subfolder,
        revision=origin.revision,
        layers=spec["layers"],
        clip_skip=spec["clip_skip"],
        pad_token=spec["pad_token"],
        null=spec["null"],
        dtype=spec["dtype"],
    )


def _auto(spec: Mapping[str, Any], origin: Origin) -> TextEncoder:
    return auto_text(
        source=origin.source,
        subfolder=origin.subfolder,
        revision=origin.revision,
        max_tokens=spec["max_tokens"],
        attention_mask=spec["attention_mask"],
        null=spec["null"],
        dtype=spec["dtype"],
    )


def _bert(spec: Mapping[str, Any], origin: Origin) -> TextEncoder:
    return load_bert(origin, tokenizer="", null=spec["null"], dtype=spec["dtype"])


def _none(spec: Mapping[str, Any], origin: Origin) -> TextEncoder:
    return NoText()


BUILDERS = {ClipText.kind: _clip, AutoText.kind: _auto, BertText.kind: _bert, NoText.kind: _none}


def _check_hashes(encoder: TextEncoder, spec: Mapping[str, Any], where: str) -> None:
    """A flipped byte loads without any error, so what was read is compared with what was saved."""
    found = encoder.spec()
    wrong = [
        f"{name} {str(found[name])[:12]}… instead of {str(spec[name])[:12]}…"
        for name in ("hash", "tokenizer_hash")
        if found[name] != spec[name]
    ]
    if wrong:
        raise ValueError(
            f"{where} holds another text encoder than the one saved: {', '.join(wrong)}; "
            "put the original files there"
        )
