"""What is the small CLIP that this project trains itself?

B pairs, L tokens, D embedding width, H x W image size.
"""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import CLIPConfig, CLIPModel, CLIPTextConfig, CLIPTokenizer, CLIPVisionConfig

from ldm.models.text.keys import file_names
from ldm.models.text.sources import Origin, tokenizer_folder, write_weights
from ldm.models.text.tokens import CaptionTokens

MAX_SCALE = 100.0  # Radford et al. 2021, section 2.5: a higher temperature made training unstable


@dataclass(frozen=True, kw_only=True)
class TinyClipConfig:
    """Sizes of both towers; the defaults give 2 M parameters."""

    width: int = 128
    text_layers: int = 4
    vision_layers: int = 3
    heads: int = 4
    image_px: int = 64
    patch_px: int = 8
    projection: int = 128
    max_tokens: int = 24


def build_tiny_clip(vocab_size: int, config: TinyClipConfig) -> CLIPModel:
    """transformers' CLIPModel in small. The last two ids are start and end, as in CLIP."""
    shared: dict[str, Any] = {
        "hidden_size": config.width,
        "intermediate_size": 4 * config.width,
        "num_attention_heads": config.heads,
        "projection_dim": config.projection,
    }
    text = CLIPTextConfig(
        vocab_size=vocab_size,
        num_hidden_layers=config.text_layers,
        max_position_embeddings=config.max_tokens,
        bos_token_id=vocab_size - 2,
        eos_token_id=vocab_size - 1,
        pad_token_id=vocab_size - 1,
        **shared,
    )
    vision = CLIPVisionConfig(
        num_hidden_layers=config.vision_layers,
        image_size=config.image_px,
        patch_size=config.patch_px,
        **shared,
    )
    return CLIPModel(
        CLIPConfig(
            text_config=text.to_dict(),
            vision_config=vision.to_dict(),
            projection_dim=config.projection,
        )
    )


def clip_pair(*, tokenizer: str, config: TinyClipConfig) -> ClipPair:
    """An untrained pair of towers for the vocabulary in `tokenizer` (a folder, or 'tiny')."""
    vocabulary = CLIPTokenizer.from_pretrained(tokenizer_folder(Origin(tokenizer)))
    return ClipPair(build_tiny_clip(len(vocabulary), config), vocabulary, config)


class ClipPair(nn.Module):
    """Both towers and the tokenizer: what contrastive training needs."""

    def __init__(self, clip: CLIPModel, tokenizer: CLIPTokenizer, config: TinyClipConfig) -> None:
        super().__init__()
        self.clip = clip
        self.config = config
        self.tokens = CaptionTokens(
            tokenizer, max_tokens=config.max_tokens, pad_id=tokenizer.pad_token_id
        )

    def tokenize(self, captions: Sequence[str]) -> tuple[Tensor, Tensor]:
        """ids [B,L] and mask [B,L], True up to the end token."""
        tokens = self.tokens(captions)
        return tokens.ids, tokens.mask

    def forward(self, pixels: Tensor, ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Pictures [B,3,H,W] in [-1,1] and captions [B,L] to unit vectors [B,D], and the scale."""
        image = functional.normalize(self.image_features(pixels).float(), dim=-1)
        text = functional.normalize(self.text_features(ids, mask).float(), dim=-1)
        scale = self.clip.logit_scale.float().clamp(max=math.log(MAX_SCALE)).exp()
        return image, text, scale

    def image_features(self, pixels: Tensor) -> Tensor:
        """[B,3,H,W] -> [B,D]. Other sizes are resized: the shapes are smaller than the tower's."""
        size = (self.config.image_px, self.config.image_px)
        if pixels.shape[-2:] != size:
            pixels = functional.interpolate(pixels, size, mode="bilinear", antialias=True)
        pooled = self.clip.vision_model(pixel_values=pixels).pooler_output
        return self.clip.visual_projection(pooled)

    def text_features(self, ids: Tensor, mask: Tensor) -> Tensor:
        """[B,L] -> [B,D], read off at the end token, the last that the mask keeps."""
        states = self.clip.text_model(input_ids=ids).last_hidden_state
        end = mask.long().sum(1) - 1
        return self.clip.text_projection(states[torch.arange(len(ids), device=ids.device), end])

    def spec(self) -> dict[str, Any]:
        """For the card: sizes and vocabulary."""
        return {
            "kind": "clip_pair",
            **asdict(self.config),
            "vocab_size": len(self.tokens.tokenizer),
            "tokenizer_hash": self.tokens.hash(),
        }

    def export(self, folder: Path, dtype: torch.dtype = torch.float16) -> None:
        """Both towers, tokenizer and picture preprocessing, as transformers reads them."""
        write_weights(_cast(self.clip.state_dict(), dtype), folder)
        _save_config(self.clip.config, "CLIPModel", dtype, folder)
        self.tokens.save(folder)
        (folder / "preprocessor_config.json").write_text(
            json.dumps(_preprocessing(self.config.image_px), indent=2) + "\n"
        )

    def export_text(self, folder: Path, dtype: torch.dtype = torch.float16) -> None:
        """The text tower and the tokenizer alone."""
        write_weights(_cast(file_names(self.clip.state_dict()), dtype), folder)
        _save_config(self.clip.config.text_config, "CLIPTextModel", dtype, folder)
        self.tokens.save(folder)


def _cast(state: dict[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    return {name: value.to(dtype) for name, value in state.items()}


def _save_config(config: Any, architecture: str, dtype: torch.dtype, folder: Path) -> None:
    config = copy.deepcopy(config)
    config.architectures = [architecture]
    config.dtype = dtype
    config.save_pretrained(folder)


def _preprocessing(size_px: int) -> dict[str, Any]:
    """transformers' CLIPImageProcessor from uint8 to our range: [0,255] -> [-1,1]."""
    return {
        "image_processor_type": "CLIPImageProcessor",
        "do_resize": True,
        "size": {"height": size_px, "width": size_px},
        "resample": 2,
        "do_center_crop": False,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
        "do_convert_rgb": True,
    }
