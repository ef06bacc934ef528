"""What does a network that knows many pictures see in a picture?

B pictures, D feature width, H x W the network's picture size, L tokens.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from PIL import Image
from torch import Tensor, nn
from transformers import AutoModel, CLIPModel

from ldm.evaluation.preprocessing import Preprocessing
from ldm.evaluation.source import CONFIG, Source

log = logging.getLogger(__name__)

CLS_MODELS = ("dinov2", "dinov2_with_registers", "dinov3_vit")
BATCH = 64


@dataclass(frozen=True, kw_only=True)
class ExtractorSpec:
    """name: for people; resize: what happens to the size; hash: of weights and preprocessing."""

    name: str
    dim: int
    resize: str
    hash: str


class Extractor(Protocol):
    """Pictures of any size -> features; a picture's row does not depend on the others."""

    @property
    def spec(self) -> ExtractorSpec: ...

    def __call__(self, pictures: Sequence[Image.Image]) -> Tensor:
        """-> [B,D] float32 on the CPU."""
        ...


class ClsExtractor:
    """The class token after the last norm of a vision transformer such as DINOv2."""

    def __init__(self, source: Source, *, device: torch.device | str, batch: int) -> None:
        self._model = source.load(AutoModel).to(device)
        self._preprocessing = source.preprocessing()
        self._device, self._batch = device, batch
        self.spec = _spec(source, self._model, self._preprocessing, self._model.config.hidden_size)

    def __call__(self, pictures: Sequence[Image.Image]) -> Tensor:
        """-> [B,D] float32 on the CPU."""
        pixels = _stacked(pictures, self._preprocessing)
        return _in_batches(pixels, self._class_token, self._batch, self._device)

    def _class_token(self, pixels: Tensor) -> Tensor:
        hidden: Tensor = self._model(pixel_values=pixels).last_hidden_state  # [B,1+patches,D]
        return hidden[:, 0]


class ClipExtractor:
    """CLIP's projected picture features, and those of captions, before they are normalised."""

    def __init__(self, source: Source, *, device: torch.device | str, batch: int) -> None:
        self._model = source.load(CLIPModel).to(device)
        self._tokenizer = source.load_tokenizer()
        self._preprocessing = source.preprocessing()
        self._device, self._batch = device, batch
        dim = self._model.config.projection_dim
        self.spec = _spec(source, self._model, self._preprocessing, dim)

    def __call__(self, pictures: Sequence[Image.Image]) -> Tensor:
        """-> [B,D] float32 on the CPU."""
        pixels = _stacked(pictures, self._preprocessing)
        return _in_batches(pixels, self._pictures, self._batch, self._device)

    def captions(self, texts: Sequence[str]) -> Tensor:
        """-> [B,D] float32 on the CPU. What is beyond the longest caption is cut, and counted."""
        if isinstance(texts, str) or not texts:
            raise ValueError(f"captions={texts!r}; pass a list of at least one string")
        longest = self._model.config.text_config.max_position_embeddings
        ids = self._tokenizer(list(texts), verbose=False)["input_ids"]
        cut = sum(len(row) > longest for row in ids)
        if cut:
            log.warning("%d of %d captions are cut to %d tokens", cut, len(texts), longest)
        padded = self._tokenizer(
            list(texts), padding="max_length", truncation=True, max_length=longest
        )
        rows = torch.tensor(padded["input_ids"])
        return _in_batches(rows, self._texts, self._batch, self._device)

    def _pictures(self, pixels: Tensor) -> Tensor:
        pooled = self._model.vision_model(pixel_values=pixels).pooler_output
        features: Tensor = self._model.visual_projection(pooled)
        return features

    def _texts(self, ids: Tensor) -> Tensor:
        pooled = self._model.text_model(input_ids=ids).pooler_output  # at the end token
        features: Tensor = self._model.text_projection(pooled)
        return features


def load_extractor(
    source: str = "tiny",
    *,
    revision: str = "main",
    device: torch.device | str = "cpu",
    batch_size: int = BATCH,
) -> ClipExtractor | ClsExtractor:
    """'tiny' (the embedded CLIP), or a CLIP or DINOv2 from a folder or hub id; fp32, eval.

    Only safetensors are read and no code of the source is run. The hub's cache is looked at before
    the network. Raises FileNotFoundError when something is missing, ValueError for other models.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size={batch_size}; use 1 or more")
    found = Source.find(source, revision)
    kind = found.json(CONFIG).get("model_type")
    if kind == "clip":
        return ClipExtractor(found, device=device, batch=batch_size)
    if kind in CLS_MODELS:
        return ClsExtractor(found, device=device, batch=batch_size)
    known = ", ".join(("clip", *CLS_MODELS))
    raise ValueError(f"{source} is a model of model_type={kind!r}; extractors are of {known}")


@torch.no_grad()
def _in_batches(
    rows: Tensor, network: Callable[[Tensor], Tensor], batch: int, device: torch.device | str
) -> Tensor:
    """Every batch has the same shape, so that a row's last bits do not depend on its neighbours."""
    spare = -len(rows) % batch
    padded = torch.cat([rows, rows[:1].expand(spare, *rows.shape[1:])])
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):  # patches are a convolution
        parts = [network(part.to(device)).float().cpu() for part in torch.split(padded, batch)]
    return torch.cat(parts)[: len(rows)]


def _stacked(pictures: Sequence[Image.Image], preprocessing: Preprocessing) -> Tensor:
    if not pictures:
        raise ValueError("no pictures given; give one or more")
    pixels = [preprocessing(picture) for picture in pictures]
    shapes = sorted({tuple(rows.shape) for rows in pixels})
    if len(shapes) > 1:
        raise ValueError(f"pictures become {shapes}: resize them to one size first")
    return torch.stack(pixels)


def _spec(
    source: Source, model: nn.Module, preprocessing: Preprocessing, dim: int
) -> ExtractorSpec:
    digest = hashlib.blake2b(repr(preprocessing).encode(), digest_size=20)
    for name, value in sorted(model.state_dict().items()):
        values = value.detach().to("cpu", torch.float32).contiguous()
        digest.update(f"{name}{tuple(values.shape)}".encode())
        digest.update(values.numpy().data)
    return ExtractorSpec(
        name=source.name, dim=dim, resize=preprocessing.words, hash=digest.hexdigest()
    )
