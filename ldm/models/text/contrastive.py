"""What makes pictures and their captions agree?

B pairs, D embedding width.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional


def contrastive_loss(
    image_embeds: Tensor, text_embeds: Tensor, scale: Tensor, captions: Sequence[str]
) -> Tensor:
    """Radford et al. 2021, fig. 3: symmetric InfoNCE on unit vectors [B,D], a scalar in fp32.

    Another pair with the very same caption is no negative: it is left out of the sums.
    """
    logits = scale.float() * image_embeds.float() @ text_embeds.float().T  # [B,B] image x text
    repeated = same_caption(captions).to(logits.device).fill_diagonal_(False)
    logits = logits.masked_fill(repeated, float("-inf"))
    own = torch.arange(len(captions), device=logits.device)
    return (functional.cross_entropy(logits, own) + functional.cross_entropy(logits.T, own)) / 2


def same_caption(captions: Sequence[str]) -> Tensor:
    """[B,B] bool: do rows i and j have the same caption?"""
    number = {caption: i for i, caption in enumerate(dict.fromkeys(captions))}
    ids = torch.tensor([number[caption] for caption in captions])
    return ids[:, None] == ids
