"""How are captions dropped, so that classifier-free guidance works?"""

from __future__ import annotations

import torch
from torch import Tensor

from ldm.types import Conditioning


def drop_context(cond: Conditioning, null: Conditioning, mask: Tensor) -> Conditioning:
    """Ho & Salimans 2022: rows of `cond` become the null context where `mask` [B] is True.

    cond.context: [B,L,D]; null.context: [1,L',D], padded or cut to the same L by its last token
    when lengths differ. The concat latents of inpainting stay: they are not the caption.
    """
    if cond.context is None or null.context is None:
        return cond
    length = cond.context.shape[1]
    context = torch.where(mask[:, None, None], _fit(null.context, length), cond.context)
    if cond.mask is None:
        return Conditioning(context, None, cond.concat)
    if null.mask is None:
        null_mask = torch.ones_like(cond.mask[:1])
    else:
        null_mask = _fit(null.mask[..., None], length)[..., 0]
    return Conditioning(context, torch.where(mask[:, None], null_mask, cond.mask), cond.concat)


def _fit(value: Tensor, length: int) -> Tensor:
    if value.shape[1] >= length:
        return value[:, :length]
    return torch.cat([value, value[:, -1:].expand(-1, length - value.shape[1], -1)], dim=1)
