"""How is the text encoder kept inside a single file?

cond_stage_model.transformer.text_model.*     CLIP (SD 1)
cond_stage_model.model.*                      OpenCLIP, projections fused (SD 2)
cond_stage_model.transformer.token_emb.* …    LDM-BERT
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ldm.io.compvis import TEXT, bert_names
from ldm.io.detect import clip_heads, compvis_bert_config
from ldm.io.reading import TensorFile
from ldm.io.source import Renamed, stream
from ldm.models.text import vocabularies
from ldm.models.text.assemble import bert_from_weights, clip_from_weights, shapeless
from ldm.models.text.base import TextEncoder
from ldm.models.text.bert import BertText
from ldm.models.text.clip import ClipText
from ldm.models.text.keys import PREFIX
from ldm.models.text.openclip import SD2_LAYERS, SD2_PAD, from_open_clip, to_open_clip
from ldm.models.text.sources import Origin

CLIP = TEXT + "transformer."
OPENCLIP = TEXT + "model."
OPTIONS, TOKENIZER = "ldm.text", "ldm.tokenizer"  # metadata of our own files
POSITIONS = "embeddings.position_ids"
BLOCK = re.compile(r"transformer\.resblocks\.(\d+)\.")


@dataclass(frozen=True)
class TextPart:
    """The text encoder of a file. used: the file's names that it is made of, or that are made
    anew on writing; build: reads it, in fp32."""

    kind: str
    width: int
    tensors: Renamed
    used: frozenset[str]
    build: Callable[[], TextEncoder]


def open_text(
    file: TensorFile,
    said: Mapping[str, str],
    card: Mapping[str, Any],
    *,
    tokenizer: str | None = None,
) -> TextPart:
    """What text encoder a single file has. Raises ValueError when it has none that is known."""
    if CLIP + "token_emb.weight" in file:
        return _bert(file)
    spec = card.get("text", {})
    options = json.loads(said[OPTIONS]) if OPTIONS in said else {}
    words = _tokenizer(file.path, said, tokenizer)
    if OPENCLIP + "ln_final.weight" in file:
        return _openclip(file, spec, options, words)
    names = {k.removeprefix(CLIP): k for k in file if k.startswith(CLIP)}
    if not any(k.removeprefix(PREFIX) == "final_layer_norm.weight" for k in names):
        raise ValueError(
            f"{file.path}: its text encoder ({TEXT}*) is neither CLIP, OpenCLIP nor LDM-BERT: "
            f"{sorted(k for k in file if k.startswith(TEXT))[:3]}"
        )
    width = file.shape(next(k for n, k in names.items() if n.endswith("final_layer_norm.weight")))[
        0
    ]
    tensors = Renamed(file, {n: k for n, k in names.items() if not n.endswith(POSITIONS)})
    heads, activation = clip_heads(width), "quick_gelu"
    build = partial(_clip, tensors, None, _known(heads, activation, options), spec, words, 0)
    return TextPart("clip", width, tensors, frozenset(names.values()), build)


def text_tensors(text: TextEncoder) -> dict[str, Tensor]:
    """A text encoder under a single file's names. Raises ValueError where the layout has none."""
    if isinstance(text, BertText):
        names = bert_names(text.module.config)
        return {TEXT + names[k]: v for k, v in text.module.state_dict().items()}
    if not isinstance(text, ClipText):
        raise ValueError(
            f"a single file cannot hold a text encoder of the kind {text.kind!r}; known: clip, "
            "bert. Use format=native"
        )
    weights = dict(text.named_weights())
    if is_openclip(text):
        plain = {k.removeprefix(PREFIX): v for k, v in weights.items()}
        return {OPENCLIP + k: v for k, v in to_open_clip(plain).items()}
    positions = torch.arange(text.max_tokens)[None]
    return {CLIP + k: v for k, v in weights.items()} | {CLIP + PREFIX + POSITIONS: positions}


def text_texts(text: TextEncoder) -> dict[str, str]:
    """What a file of ours says of its text encoder beside the weights."""
    if not isinstance(text, ClipText):
        return {}
    texts = {OPTIONS: json.dumps(shapeless(text))}
    tokenizer = text.tokens.tokenizer
    if len(tokenizer) != vocabularies.CLIP_SIZE:
        texts[TOKENIZER] = vocabularies.written(tokenizer)
    return texts


def is_openclip(text: TextEncoder) -> bool:
    """Whether it is of SD 2's family: those have the exact GELU, OpenAI's own the quick one."""
    return isinstance(text, ClipText) and text.module.config.hidden_act == "gelu"


def _bert(file: TensorFile) -> TextPart:
    shapes = {k.removeprefix(TEXT): s for k, s in file.shapes().items() if k.startswith(TEXT)}
    config = compvis_bert_config(shapes)
    names = {ours: TEXT + theirs for ours, theirs in bert_names(config).items()}
    tensors = Renamed(file, {ours: full for ours, full in names.items() if full in file})

    def build() -> TextEncoder:
        state = dict(stream(tensors, list(tensors), torch.float32))
        return bert_from_weights(state, config, origin=Origin(str(file.path)))

    return TextPart("bert", config.width, tensors, frozenset(names.values()), build)


def _openclip(
    file: TensorFile, spec: Mapping[str, Any], options: Mapping[str, Any], words: Any
) -> TextPart:
    names = {k.removeprefix(OPENCLIP): k for k in file if k.startswith(OPENCLIP)}
    width = file.shape(names["ln_final.weight"])[0]
    have = 1 + max(int(match[1]) for name in names if (match := BLOCK.match(name)))
    # the penultimate hidden state: the last block plays no part, and some files leave it out
    layers = spec.get("layers") or (have if have == SD2_LAYERS else max(have - 1, 1))
    kept = {
        name: full
        for name, full in names.items()
        if name not in ("text_projection", "logit_scale", "attn_mask")
        and not ((match := BLOCK.match(name)) and int(match[1]) >= layers)
    }
    tensors = Renamed(file, kept)
    known = _known(clip_heads(width), "gelu", options)
    build = partial(_clip, tensors, from_open_clip, known, spec, words, layers)
    return TextPart("openclip", width, tensors, frozenset(kept.values()), build)


def _clip(
    tensors: Renamed,
    names: Callable[[Mapping[str, Tensor]], dict[str, Tensor]] | None,
    known: Mapping[str, Any],
    spec: Mapping[str, Any],
    words: Any,
    layers: int,
) -> ClipText:
    state = dict(stream(tensors, list(tensors), torch.float32))
    path = str(tensors.file.path)
    return clip_from_weights(
        state if names is None else names(state),
        origin=Origin(path),
        heads=known["num_attention_heads"],
        activation=known["hidden_act"],
        epsilon=known["layer_norm_eps"],
        tokenizer=words,
        clip_skip=spec.get("clip_skip", 1),
        pad_token=spec.get("pad_token", "" if names is None else SD2_PAD),
        null=spec.get("null", "empty"),
        layers=0,
    )


def _known(heads: int, activation: str, options: Mapping[str, Any]) -> dict[str, Any]:
    usual = {"num_attention_heads": heads, "hidden_act": activation, "layer_norm_eps": 1e-5}
    return {name: options.get(name, value) for name, value in usual.items()}


def _tokenizer(path: Path, said: Mapping[str, str], given: str | None) -> Any:
    """The tokenizer that is given, lies beside the file or in it; None: the packaged one."""
    if given is not None:
        return vocabularies.from_folder(Path(given))
    beside = path.parent / "tokenizer"
    if TOKENIZER in said:
        return vocabularies.read(said[TOKENIZER])
    return vocabularies.from_folder(beside) if beside.is_dir() else None
