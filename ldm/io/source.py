"""What does a path hold, before anything big is read?"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ldm.io.reading import TensorFile
from ldm.models.codec import Codec
from ldm.models.text.base import TextEncoder

log = logging.getLogger(__name__)
Tensors = Mapping[str, Tensor]  # in memory, or a `Renamed` that reads when asked
Shape = tuple[int, ...]
WEIGHTS = ("ema", "raw")


class Renamed(Mapping[str, Tensor]):
    """Tensors of a file under other names, read when asked for.

    names: this mapping's name -> the file's. shapes: what a tensor is reshaped to, by our name.
    """

    def __init__(
        self, file: TensorFile, names: Mapping[str, str], shapes: Mapping[str, Shape] | None = None
    ) -> None:
        self.file = file
        self.names = dict(names)
        self._shapes = dict(shapes or {})

    def __getitem__(self, name: str) -> Tensor:
        return self._reshaped(name, self.file[self.names[name]])

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)

    def __contains__(self, name: object) -> bool:
        return name in self.names

    def shape(self, name: str) -> Shape:
        return self._shapes.get(name) or self.file.shape(self.names[name])

    def read(self, names: Iterable[str], dtype: torch.dtype | None) -> Iterator[tuple[str, Tensor]]:
        ours = {self.names[name]: name for name in names}
        for theirs, value in self.file.read(list(ours), dtype):
            yield ours[theirs], self._reshaped(ours[theirs], value)

    def _reshaped(self, name: str, value: Tensor) -> Tensor:
        return value.reshape(self._shapes[name]) if name in self._shapes else value


@dataclass(frozen=True)
class Source:
    """A model that can be built. form: document, export, single or diffusers.

    card: what the file says (complete only once built, see load.load_model); networks: the UNet's
    tensors under our names, by which weights they are; weights: the chosen ones; file: where they
    lie; dtypes: of unet, vae and text as stored; extras: tensors that the model does not use and
    that a conversion carries along; stated: specs of prediction and schedule, where the file says
    them; beside: the chosen tensors of a run's adapters and trained text encoder (see adapted.py);
    frozen_text: of a run, the text encoder as it was before training.
    """

    form: str
    path: Path
    card: dict[str, Any]
    networks: Mapping[str, Tensors]
    weights: str
    file: Path
    codec: Callable[[torch.dtype], Codec]
    text: Callable[[], TextEncoder]
    dtypes: Mapping[str, torch.dtype]
    extras: Tensors = field(default_factory=dict)
    stated: Mapping[str, Any] = field(default_factory=dict)
    beside: Tensors = field(default_factory=dict)
    frozen_text: Callable[[], TextEncoder] | None = None

    @property
    def unet(self) -> Tensors:
        """The chosen weights."""
        return self.networks[self.weights]


def choose(networks: Mapping[str, Tensors], weights: str, where: str) -> str:
    """`weights` where a file has them, else what it has. Raises ValueError for another word."""
    if weights not in WEIGHTS:
        raise ValueError(f"weights={weights!r}; allowed: {', '.join(WEIGHTS)}")
    if weights in networks:
        return weights
    only = next(iter(networks))
    log.info("%s holds %s weights only; using them", where, only)
    return only


def stream(
    tensors: Tensors, names: Iterable[str], dtype: torch.dtype | None
) -> Iterator[tuple[str, Tensor]]:
    """Name and tensor, floating ones in `dtype`; each in memory of its own where it was a file."""
    if isinstance(tensors, Renamed | TensorFile):
        yield from tensors.read(names, dtype)
        return
    for name in names:
        value = tensors[name]
        yield name, value.to(dtype) if dtype and value.is_floating_point() else value


def shape_of(tensors: Tensors, name: str) -> Shape:
    """Without reading it."""
    if isinstance(tensors, Renamed | TensorFile):
        return tuple(tensors.shape(name))
    return tuple(tensors[name].shape)


def dtype_of(tensors: Tensors) -> torch.dtype:
    """Of the first floating tensor; fp32 without one."""
    for name in tensors:
        if isinstance(tensors, Renamed):
            dtype = tensors.file.dtype(tensors.names[name])
        elif isinstance(tensors, TensorFile):
            dtype = tensors.dtype(name)
        else:
            dtype = tensors[name].dtype
        if dtype.is_floating_point:
            return dtype
    return torch.float32


def fill(module: nn.Module, tensors: Tensors, where: str, dtype: torch.dtype) -> None:
    """Gives a module built on the meta device its weights. Strict: see `check_fit`."""
    check_fit(module, tensors, where)
    values = dict(stream(tensors, list(module.state_dict()), dtype))
    module.load_state_dict(values, assign=True)
    log.info("%s: loaded %d/%d tensors", where, len(values), len(module.state_dict()))


@torch.no_grad()
def copy_into(
    module: nn.Module, tensors: Tensors, where: str, *, widen: Iterable[str] = ()
) -> None:
    """Overwrites a module's weights. Strict, but for the named differences.

    widen: modules that take more input channels than the file's; the new ones begin at zero, so
    that the output is the narrower network's whatever they are fed.
    """
    wider = _widened(module, tensors, where, widen)
    check_fit(module, tensors, where, but=wider)
    own = module.state_dict()
    for name, value in stream(tensors, list(own), torch.float32):
        if name in wider:
            own[name].zero_()
            own[name][:, : value.shape[1]].copy_(value)
        else:
            own[name].copy_(value)
    log.info("%s: loaded %d/%d tensors%s", where, len(own), len(own), _note(wider))


def check_fit(module: nn.Module, tensors: Tensors, where: str, *, but: Iterable[str] = ()) -> None:
    """Raises ValueError listing missing, unexpected and differently shaped keys."""
    own = {name: tuple(value.shape) for name, value in module.state_dict().items()}
    missing = sorted(own.keys() - tensors.keys())
    extra = sorted(tensors.keys() - own.keys())
    common = sorted((own.keys() & tensors.keys()) - set(but))
    shapes = [
        f"{name}: file {shape}, model {own[name]}"
        for name in common
        if (shape := shape_of(tensors, name)) != own[name]
    ]
    if missing or extra or shapes:
        raise ValueError(
            f"{where} holds another architecture: {len(missing)} keys missing {missing[:3]}, "
            f"{len(extra)} unexpected {extra[:3]}, {len(shapes)} of another shape {shapes[:3]}"
        )


def _widened(module: nn.Module, tensors: Tensors, where: str, widen: Iterable[str]) -> set[str]:
    """The weights that may have more input channels than the file's."""
    own = module.state_dict()
    wider, problems = set(), []
    for part in widen:
        name = f"{part}.weight"
        if name not in own or name not in tensors:
            near = [n.removesuffix(".weight") for n in own if n.endswith("conv_in.weight")]
            problems.append(f"widen={part}: no such layer; the usual one is {', '.join(near)}")
            continue
        new, old = tuple(own[name].shape), shape_of(tensors, name)
        same = (new[0], *new[2:]) == (old[0], *old[2:])
        if not same or len(new) < 2 or new[1] <= old[1]:
            problems.append(
                f"widen={part}: {where} has {old}, the model {new}; only the number of input "
                "channels (the second) may grow"
            )
        wider.add(name)
    if problems:
        raise ValueError("\n".join(problems))
    return wider


def _note(wider: set[str]) -> str:
    return f" ({', '.join(sorted(wider))} widened with zeros)" if wider else ""
