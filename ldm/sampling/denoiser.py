"""How does a network become a denoiser, (x, level) -> (x0, eps)?"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ldm.diffusion.objective import Objective
from ldm.types import Conditioning, Denoised, Level

Denoise = Callable[[Tensor, Level], Denoised]  # what solvers are given
# x [B,C,h,w], t [B], context [B,L,D] or None, mask [B,L] or None -> F [B,C',h,w]
Network = Callable[[Tensor, Tensor, Tensor | None, Tensor | None], Tensor]


@dataclass(frozen=True)
class Denoiser:
    """A network and the objective it was trained with."""

    unet: Network
    objective: Objective

    def __call__(self, x: Tensor, level: Level, cond: Conditioning) -> Denoised:
        """x0 and eps, [B,C,h,w]; level: scalars or [B]."""
        return self.objective.recover(x, self.output(x, level, cond), on_rows(level, x))

    def output(self, x: Tensor, level: Level, cond: Conditioning) -> Tensor:
        """The network's own output F, at least float32, [B,C,h,w]."""
        rows = on_rows(level, x)
        net_input = self.objective.net_input(x, rows)
        if cond.concat is not None:
            net_input = torch.cat([net_input, cond.concat], dim=1)
        out = self.unet(net_input, self.objective.net_time(rows), cond.context, cond.mask)
        return out.to(torch.promote_types(out.dtype, torch.float32))


def on_rows(level: Level, x: Tensor) -> Level:
    """The level with one entry for each row of x, beside x. Level fields: [B]."""
    rows = level.rows(x.shape[0]) if level.t.ndim == 0 else level
    dtype = torch.promote_types(x.dtype, torch.float32)
    return Level(*(value.to(x.device, dtype) for value in (rows.t, rows.alpha, rows.sigma)))
