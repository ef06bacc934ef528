"""How do the members of a cached sample become latents, a context and a caption?

`moments.npy` [2C,h,w] (mean, logvar; unscaled) or `latents.npy`/`npy` [C,h,w], float16 or float32,
or `safetensors` with a tensor of one of these names; optionally `context.npy` [L,D], or the tensor
`context`. data/README.md has the format, manifest.py what the cache was made with.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ldm import rng
from ldm.data.arrays import Floats, Shape, from_npy, from_safetensors, is_finite
from ldm.data.captions import BadSampleError, Captions
from ldm.data.picture_size import LATENT_EXTS
from ldm.data.shards import ShardIndex, read
from ldm.types import LatentBatch, Skipped

NPY_MEMBERS = {"moments.npy": "moments", "latents.npy": "latents", "npy": "latents"}
CONTEXT_EXT = "context.npy"
CERTAIN_LOGVAR = -30.0  # of latents without a variance: the least that the VAE's own clamp allows
CERTAIN_STD = 1e-6  # what numbers that are all the same seem to deviate by, sums being rounded
_PROBED = 64  # samples that may be unusable before the first good one
_MEASURED = 256  # samples whose deviation is taken for that of all
LEAST_STD, MOST_STD = 0.3, 3.0  # of latents ready to be trained on

Pair = tuple[int, int]


@dataclass(frozen=True)
class Layout:
    """What every sample of a cache has. kind: moments | latents; shape: [2C,h,w] or [C,h,w]."""

    kind: str
    shape: Shape
    context: Shape | None


@dataclass(frozen=True)
class Cached:
    """One sample of the run. array: as in Layout; context: [L,D] or None."""

    index: int
    key: str
    caption: str
    array: Floats
    context: Floats | None


@dataclass(frozen=True, kw_only=True)
class LatentExamples:
    """Read, check, choose the caption; the counterpart of Examples for cached latents.

    A sample of another layout, or with values that are not finite, cannot be used.
    """

    layout: Layout
    seed: int
    captions: Captions = field(default_factory=Captions)

    @property
    def exts(self) -> tuple[str, ...]:
        """The members that are needed."""
        context = () if self.layout.context is None else (CONTEXT_EXT,)
        return (*LATENT_EXTS, *context, *self.captions.exts)

    def draws(self, index: Tensor) -> NDArray[np.float32]:
        """The uniforms of these samples, all in one go: [B] int64 -> [B,1]."""
        return rng.uniform(self.seed, "caption", index, (1,)).numpy()

    def make(
        self,
        number: int,
        key: str,
        members: Mapping[str, bytes],
        draws: NDArray[np.float32],
        shape: Pair | None = None,
    ) -> Cached:
        """Sample `number` of the run; BadSampleError when it cannot be used.

        shape: (h, w) of its bucket; None: that of the layout.
        """
        u = float(draws[0])
        caption = self.captions.make(members, u, seed=self.seed, number=number)
        kind, array, context = arrays_of(members)
        wanted = self.layout.shape if shape is None else (self.layout.shape[0], *shape)
        if kind != self.layout.kind or array.shape != wanted:
            raise BadSampleError(
                f"it holds {kind} {list(array.shape)}, the others {self.layout.kind} {list(wanted)}"
            )
        if self.layout.context is None:
            context = None
        elif context is None or context.shape != self.layout.context:
            got = "no context" if context is None else f"a context {list(context.shape)}"
            raise BadSampleError(f"it holds {got}, the others one {list(self.layout.context)}")
        if not is_finite(array):
            raise BadSampleError(f"the {kind} are not finite")
        if context is not None and not is_finite(context):
            raise BadSampleError("the context is not finite")
        return Cached(number, key, caption, array, context)

    def collate(self, examples: Sequence[Cached], skipped: Sequence[Skipped] = ()) -> LatentBatch:
        """Samples of one shape -> LatentBatch, in the precision of the cache."""
        moments = torch.from_numpy(np.stack([example.array for example in examples]))
        if self.layout.kind == "latents":  # [B,C,h,w] -> [B,2C,h,w]
            moments = torch.cat([moments, torch.full_like(moments, CERTAIN_LOGVAR)], dim=1)
        context = None
        if self.layout.context is not None:
            rows = [example.context for example in examples if example.context is not None]
            context = torch.from_numpy(np.stack(rows))  # [B,L,D]
        return LatentBatch(
            moments=moments,
            captions=tuple(example.caption for example in examples),
            keys=tuple(example.key for example in examples),
            index=torch.tensor([example.index for example in examples], dtype=torch.int64),
            context=context,
            skipped=tuple(skipped),
        )


def arrays_of(members: Mapping[str, bytes]) -> tuple[str, Floats, Floats | None]:
    """(kind, array, context) of the members of a sample."""
    context = from_npy(members[CONTEXT_EXT], CONTEXT_EXT) if CONTEXT_EXT in members else None
    for ext, kind in NPY_MEMBERS.items():
        if ext in members:
            return kind, from_npy(members[ext], ext), context
    if "safetensors" not in members:
        raise BadSampleError(f"no latents; the sample has {', '.join(sorted(members))}")
    tensors = from_safetensors(members["safetensors"], "safetensors")
    for kind in ("moments", "latents"):
        if kind in tensors:
            return kind, tensors[kind], tensors.get("context", context)
    raise BadSampleError(
        f"the .safetensors member has {', '.join(sorted(tensors)) or 'nothing'}; "
        "it needs `moments` or `latents`"
    )


def probe(index: ShardIndex) -> Layout:
    """The layout of the first usable sample; ValueError where the first ones are all unusable."""
    exts = (*LATENT_EXTS, CONTEXT_EXT)
    problems: list[str] = []
    places = ((s, n) for s, size in enumerate(index.sizes) for n in range(size))
    for _, (shard, n) in zip(range(_PROBED), places, strict=False):
        try:
            kind, array, context = arrays_of(read(index, shard, n, exts))
            return _layout(kind, array, context)
        except BadSampleError as error:
            problems.append(f"{index.key(shard, n)}: {error}")
    raise ValueError(
        f"{index.shards[0]}: the first {len(problems)} samples hold no usable latents: "
        f"{'; '.join(problems[:3])}"
    )


def measured_std(batch: Callable[[Tensor], LatentBatch], size: int) -> float:
    """The deviation of the first samples of a run, unscaled: of the posterior's draws about their
    common mean (Rombach et al. 2022, section G). All channels and places count alike.

    batch: gives the samples at positions [B] of the order (`Reader.batch`); size: of an epoch. To
    six digits, so that no two machines get two numbers; the same on all ranks. Raises ValueError
    when the latents do not vary.
    """
    count, total, squares, variances = 0, 0.0, 0.0, 0.0
    for position in range(min(_MEASURED, size)):  # one by one: in buckets they differ in size
        mean, logvar = batch(torch.tensor([position])).moments.double().chunk(2, dim=1)
        count += mean.numel()
        total += float(mean.sum())
        squares += float(mean.square().sum())
        variances += float(logvar.clamp(max=20.0).exp().sum())  # as the VAE does
    std = math.sqrt(max(squares / count - (total / count) ** 2, 0.0) + variances / count)
    if not std > CERTAIN_STD:
        raise ValueError(f"the first {min(_MEASURED, size)} latents do not vary; are they latents?")
    return float(f"{std:.6g}")


def scale_problems(std: float, scale: float) -> list[str]:
    """Whether latents of this deviation, once scaled, are far from the 1 that a diffusion model is
    made for: scaled twice (0.18), or not at all (5)."""
    if LEAST_STD <= std * scale <= MOST_STD:
        return []
    return [
        f"the cached latents have the deviation {std * scale:.3g} after the scale {scale:g}; about "
        "1 is expected: were they scaled when they were cached? The cache holds unscaled moments"
    ]


def _layout(kind: str, array: Floats, context: Floats | None) -> Layout:
    if array.ndim != 3 or not array.size or (kind == "moments" and array.shape[0] % 2):
        shape = "[2C,h,w], mean and logvar" if kind == "moments" else "[C,h,w]"
        raise BadSampleError(f"the {kind} are {list(array.shape)}; they should be {shape}")
    if not is_finite(array) or (context is not None and not is_finite(context)):
        raise BadSampleError("values are not finite")
    if context is not None and context.ndim != 2:
        raise BadSampleError(f"the context is {list(context.shape)}; it should be [L,D]")
    return Layout(kind, array.shape, None if context is None else context.shape)
