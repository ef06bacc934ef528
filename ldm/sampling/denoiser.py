"""How does a network become a denoiser, (x, level) -> (x0, eps)?"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from ldm.diffusion.objective import Objective
from ldm.types import Conditioning, Denoised, Level

Denoise = Callable[[Tensor, Level], Denoised]  # what solvers are given
# x [B,C,h,w], t [B], context [B,L,D] or None, mask [B,L] or None -> F [B,C',h,w]
Network = Callable[[Tensor, Tensor, Tensor | None, Tensor | None], Tensor]
TEXTS = 4  # kept by a denoiser: guidance alternates between a few (both halves, the prompt alone)


@runtime_checkable
class Projecting(Protocol):
    """A network that can do its work on a text once and be called with the result many times."""

    def project(self, context: Tensor, mask: Tensor | None) -> Any: ...

    def __call__(
        self, x: Tensor, t: Tensor, context: Any, mask: Tensor | None = None
    ) -> Tensor: ...


@dataclass(frozen=True)
class Denoiser:
    """A network and the objective it was trained with, for one sampling.

    With gradients off a text is projected at its first step only, so weights and adapters must not
    change while a denoiser lives; what it keeps goes with it.
    """

    unet: Network | Projecting
    objective: Objective
    # context, mask and what the network made of them; compared by identity, the newest last
    _texts: list[tuple[Tensor, Tensor | None, Any]] = field(
        default_factory=list, init=False, repr=False, compare=False
    )

    def __call__(self, x: Tensor, level: Level, cond: Conditioning) -> Denoised:
        """x0 and eps, [B,C,h,w]; level: scalars or [B]."""
        return self.objective.recover(x, self.output(x, level, cond), on_rows(level, x))

    def output(self, x: Tensor, level: Level, cond: Conditioning) -> Tensor:
        """The network's own output F, at least float32, [B,C,h,w]."""
        rows = on_rows(level, x)
        net_input = self.objective.net_input(x, rows)
        if cond.concat is not None:
            net_input = torch.cat([net_input, cond.concat], dim=1)
        out = self._called(net_input, self.objective.net_time(rows), cond)
        return out.to(torch.promote_types(out.dtype, torch.float32))

    def _called(self, x: Tensor, t: Tensor, cond: Conditioning) -> Tensor:
        if cond.context is None or torch.is_grad_enabled() or not isinstance(self.unet, Projecting):
            return self.unet(x, t, cond.context, cond.mask)
        return self.unet(x, t, self._projected(self.unet, cond.context, cond.mask))

    def _projected(self, unet: Projecting, context: Tensor, mask: Tensor | None) -> Any:
        for known_context, known_mask, keys in self._texts:
            if known_context is context and known_mask is mask:
                return keys
        keys = unet.project(context, mask)
        self._texts.append((context, mask, keys))
        del self._texts[:-TEXTS]
        return keys


def on_rows(level: Level, x: Tensor) -> Level:
    """The level with one entry for each row of x, beside x. Level fields: [B]."""
    rows = level.rows(x.shape[0]) if level.t.ndim == 0 else level
    dtype = torch.promote_types(x.dtype, torch.float32)
    return Level(*(value.to(x.device, dtype) for value in (rows.t, rows.alpha, rows.sigma)))
